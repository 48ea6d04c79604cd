"""What differs between TensorRT 10, TensorRT 11 and TensorRT-RTX, and nothing else.

- Types. In 10 a network is strongly typed if asked to be; in 11 and RTX always, and the flags for weak typing (FP16,
  BF16, INT8) are gone. We set the one flag that asks wherever it exists and never the others, so a value's type is the
  file's everywhere.
- TF32. On by default in all of them: cleared unless asked for, for float32 is to be float32.
- Targets. RTX compiles for named architectures without a GPU; the others for the GPU at hand, which they need.
- Timing caches. RTX keeps none, and asking for one makes it look for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

from export.errors import EngineError

Library = Literal["tensorrt", "tensorrt_rtx"]

RTX_TARGET = "SM80"
"""Architecture that TensorRT-RTX compiles for in a check: the oldest with bf16, whose engines run on newer ones."""

_EXTRA: dict[Library, str] = {"tensorrt": "gliofed[tensorrt]", "tensorrt_rtx": "tensorrt-rtx"}


def load(library: Library) -> Any:
    """Return the library's module. Raises EngineError where it is absent or does not load.

    Without an NVIDIA driver TensorRT may end the whole process instead: ask export.driver first, or be in a subprocess.
    """
    try:
        return import_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{library} cannot be used here ({error}). Install {_EXTRA[library]}") from error


def collecting_logger(trt: Any, texts: list[str]) -> Any:
    """Return a logger that adds warnings and errors to `texts` and prints nothing."""

    class Collecting(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                texts.append(f"{getattr(severity, 'name', severity)}: {text}")

    return Collecting()


def create_network(trt: Any, builder: Any) -> Any:
    """Return an empty network whose values have the types that its file gives them."""
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))


def configure(trt: Any, builder: Any, *, tf32: bool) -> Any:
    """Return a builder's configuration: TF32 as asked, and engines that can tell about their layers."""
    config = builder.create_builder_config()
    (config.set_flag if tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if is_rtx(trt):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, RTX_TARGET), 0)
    return config


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT-RTX."""
    return str(trt.__name__) == "tensorrt_rtx"


@contextmanager
def timing_cache(config: Any, stored: bytes) -> Iterator[list[bytes]]:
    """Time kernels with what earlier builds measured; on leaving, the list holds the cache to store.

    stored: empty for none. A cache of another version or GPU is not used: TensorRT refuses it, and a new one is begun.
    """
    cache, kept = config.create_timing_cache(stored), list[bytes]()
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    yield kept
    kept.append(bytes(memoryview(config.get_timing_cache().serialize())))
