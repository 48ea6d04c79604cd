"""What a machine has is found out without harm, whatever state its drivers and libraries are in."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from export.children import run_module
from export.driver import CPU, CUDA, TENSORRT, Gpu, Machine, probe
from export.errors import PredictorError
from export.predictor import open_session
from export.providers import provider_options, resolve_providers

HAS_DRIVER = Path("/proc/driver/nvidia/version").exists()

FAKE_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 40; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strcpy(name, device == 40 ? "First" : "Second"); return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 80ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? (device == 40 ? 9 : 12) : which == 76 ? 0 : -1;
  return 0;
}
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages a subprocess finds first."""
    folder = tmp_path / "packages"
    folder.mkdir()
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", str(folder) + (os.pathsep + inherited if inherited else ""))
    return folder


def install_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> None:
    """Put a libcuda.so.1 of two GPUs where the loader looks first."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler to make a stand-in for libcuda.so.1")
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(FAKE_DRIVER.replace("STATUS", str(status)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_a_machine_without_driver_is_told_as_such() -> None:
    machine = probe()
    assert (machine.driver, machine.cuda, machine.gpus, machine.providers) == (None, None, (), (CPU,))
    assert "libcuda.so.1" in machine.absent["driver"]
    assert machine.absent[CUDA] == machine.absent[TENSORRT] == "there is no GPU to run on"


def test_gpus_are_told_by_name_and_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(tmp_path, monkeypatch)
    machine = probe()
    assert machine.gpus == (
        Gpu(name="First", architecture="sm_90", memory_bytes=80 << 30),
        Gpu(name="Second", architecture="sm_120", memory_bytes=80 << 30),
    )
    assert machine.cuda == "13.1" and machine.driver is not None and "driver" not in machine.absent
    assert machine.providers == (CPU,), "a driver alone starts no provider"
    assert {CUDA, TENSORRT} <= set(machine.absent)


def test_a_driver_that_does_not_start_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(tmp_path, monkeypatch, status=999)
    machine = probe()
    assert machine.driver is None and not machine.gpus
    assert "cuInit fails with status 999" in machine.absent["driver"]


def test_a_library_that_takes_its_process_down_is_absent_and_the_others_are_still_asked(packages: Path) -> None:
    (packages / "tensorrt_rtx.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    (packages / "tensorrt.py").write_text("__version__ = '10.16.1.11'")
    machine = probe()
    assert machine.tensorrt_rtx is None and "SIGSEGV" in machine.absent["tensorrt_rtx"]
    assert machine.tensorrt == "10.16.1.11"


def test_libraries_that_hang_or_raise_or_exit_are_absent(packages: Path) -> None:
    (packages / "tensorrt_rtx.py").write_text("import time\ntime.sleep(60)")
    (packages / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    machine = probe(timeout_seconds=1.0)
    assert "more than 1 s" in machine.absent["tensorrt_rtx"]
    assert "libnvinfer.so.10" in machine.absent["tensorrt"]
    (packages / "tensorrt_rtx.py").write_text("import os\nos._exit(3)")
    assert "status 3" in probe().absent["tensorrt_rtx"]


def test_the_probes_own_network_is_a_whole_onnx_file() -> None:
    from export import probe as steps

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert model.SerializeToString() == steps.RELU


def make_machine(*providers: str) -> Machine:
    absent = {name: "its libraries are missing" for name in (CUDA, TENSORRT) if name not in providers}
    return Machine(
        driver="580.82.07",
        cuda="13.0",
        gpus=(Gpu(name="NVIDIA H100", architecture="sm_90", memory_bytes=1),),
        tensorrt=None,
        tensorrt_rtx=None,
        providers=(*providers, CPU),
        absent=absent,
    )


def test_auto_takes_the_best_that_starts_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    expected = {
        (TENSORRT, CUDA): (TENSORRT, CUDA),
        (CUDA,): (CUDA,),
        (TENSORRT,): (CPU,),  # what TensorRT leaves would go to the CPU
        (): (CPU,),
    }
    with caplog.at_level(logging.INFO):
        for working, chosen in expected.items():
            assert resolve_providers("auto", make_machine(*working)) == chosen
    assert [record.getMessage().split()[2] for record in caplog.records] == ["tensorrt", "cuda", "cpu", "cpu"]
    assert "Tensorrt: its libraries are missing" in caplog.records[1].getMessage()


def test_a_provider_that_was_asked_for_is_never_replaced() -> None:
    assert resolve_providers("cpu", make_machine(TENSORRT, CUDA)) == (CPU,)
    assert resolve_providers("cuda", make_machine(TENSORRT, CUDA)) == (CUDA,)
    assert resolve_providers("tensorrt", make_machine(TENSORRT, CUDA)) == (TENSORRT, CUDA)
    for choice, working, better in (("cuda", (), "cpu"), ("tensorrt", (CUDA,), "cuda"), ("tensorrt", (), "cpu")):
        with pytest.raises(PredictorError, match=f"provider {choice} .* libraries are missing.*Ask for {better}"):
            resolve_providers(choice, make_machine(*working))
    with pytest.raises(PredictorError, match="expected one of auto, cpu, cuda, tensorrt"):
        resolve_providers("gpu", make_machine())  # type: ignore[arg-type]


def test_options_name_our_input_and_keep_engines_only_where_told(tmp_path: Path) -> None:
    options = provider_options(image_size=224, max_batch=4)
    assert options[TENSORRT]["trt_profile_max_shapes"] == "images:4x3x224x224"
    assert options[TENSORRT]["trt_profile_opt_shapes"] == "images:4x3x224x224"
    assert options[TENSORRT]["trt_engine_cache_enable"] == options[TENSORRT]["trt_fp16_enable"] == "0"
    assert options[CUDA] == {"use_tf32": "0"}
    cached = provider_options(image_size=224, cache=tmp_path, fp16=True)[TENSORRT]
    assert cached["trt_engine_cache_path"] == cached["trt_timing_cache_path"] == str(tmp_path)
    assert cached["trt_fp16_enable"] == "1"
    assert all(isinstance(value, str) for values in options.values() for value in values.values())


ASK = """
import sys
from export.errors import PredictorError
from export.predictor import open_session
from export.providers import provider_options

try:
    open_session(open(sys.argv[1], "rb").read(), providers=sys.argv[2:], options=provider_options(image_size=4))
except PredictorError as error:
    print(error)
"""


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver, so these providers may start")
@pytest.mark.parametrize("providers", [(CUDA,), (CUDA, CPU), (TENSORRT,), (TENSORRT, CUDA), (TENSORRT, CPU)])
def test_gpu_providers_are_refused_here_and_not_replaced(
    providers: tuple[str, ...], packages: Path, tmp_path: Path
) -> None:
    """In a process of its own, which a provider could end."""
    from export import probe as steps

    (packages / "ask_for_provider.py").write_text(ASK)
    (tmp_path / "relu.onnx").write_bytes(steps.RELU)
    done = run_module("ask_for_provider", str(tmp_path / "relu.onnx"), *providers, timeout_seconds=60)
    assert done.returncode == 0, done.stderr
    assert providers[0] in done.stdout and "Falling back" not in done.stdout


def test_cpu_is_served_with_the_same_options() -> None:
    from export import probe as steps

    session = open_session(steps.RELU, options=provider_options(image_size=4))
    assert session.get_providers() == [CPU]


def test_a_child_reports_the_signal_that_ended_it(packages: Path) -> None:
    (packages / "dies.py").write_text(
        "import os, signal\nprint('so far', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = run_module("dies", timeout_seconds=30)
    assert (done.returncode, done.stdout.strip()) == (-signal.SIGKILL, "so far")
