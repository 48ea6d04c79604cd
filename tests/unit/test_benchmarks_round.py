"""The suite `round`: contests, programs in processes of their own, and that both sides do the same work."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch

from benchmarks import family
from benchmarks.__main__ import Options, run_suite
from benchmarks.case import Suite, Target
from benchmarks.contest import Contest, Outcome, Program, run_contest
from benchmarks.family import run_program
from benchmarks.job_flower import accuracy_of, fit, network, read_settings
from benchmarks.job_inputs import DATA_VARIABLE, JobInputs, JobSize, federation_of, lay_down
from benchmarks.marks import Marks
from benchmarks.measure import QUICK
from benchmarks.opencv_ways import chain
from benchmarks.round_programs import CopyRounds, Folder, write_parameters
from benchmarks.rounds import require_machine, same_parameters, worse_accuracy
from fl.model.flat import gather
from fl.model.vgg import SplitVgg19
from fl.training.trainer import load_model_state
from fl.types import CLASSES
from kernels.spec import PreprocessSpec
from service.spec import load_spec
from service.start import initial_model_state

TINY = JobSize(num_train=24, num_test=8, num_sites=2, rounds=2, epochs=1, pixels=32)
PATIENCE_SECONDS = 200.0


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it: a path under pytest's own folder would be too long for them."""
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> JobInputs:
    return lay_down(tmp_path_factory.mktemp("job") / "inputs", TINY)


def scripted(diary: list[str], name: str, *seconds: tuple[float, float], made: Any = 1) -> Program:
    """A program that says (wall, CPU) seconds in turn, and notes that it ran."""
    left = list(seconds)

    def run() -> Outcome:
        diary.append(name)
        wall, cpu = left.pop(0)
        return Outcome(wall_seconds=wall, cpu_seconds=cpu, made=made, remark=f"{name} is limited")

    return run


def a_contest(diary: list[str], *, peer_made: Any = 1, **more: Any) -> Contest:
    return Contest(
        name="a",
        ours=scripted(diary, "us", (1, 2), (2, 2)),
        peers=[
            ("slow", scripted(diary, "slow", (9, 9), (9, 9), made=peer_made)),
            ("fast", scripted(diary, "fast", (4, 6), (4, 6), made=peer_made)),
        ],
        differs=lambda ours, theirs: None if ours == theirs else f"{ours} against {theirs}",
        turns=2,
        **more,
    )


def test_programs_take_turns_and_every_second_turn_goes_backwards() -> None:
    diary: list[str] = []
    run_contest(a_contest(diary))
    assert diary == ["us", "slow", "fast", "fast", "slow", "us"]


def test_a_contest_is_a_row_of_wall_time_and_one_of_cpu_time_against_the_fastest_peer() -> None:
    wall, cpu = run_contest(
        a_contest(
            [],
            target=Target(figure="ratio", at_least=3),
            cpu_target=Target(figure="ratio", at_least=4),
            remarks=("so it is",),
        )
    )
    assert (wall.case, wall.peer, wall.ours_seconds, wall.peer_seconds, wall.ratio) == ("a", "fast", 1.5, 4.0, 3.0)
    assert (wall.cpu_seconds, wall.misses_target) == ((2.0, 6.0), False)
    assert wall.remarks == ("ours: us is limited", "fast: fast is limited", "so it is")
    assert (cpu.case, cpu.peer, cpu.ours_seconds, cpu.peer_seconds) == ("a_cpu", "fast", 2.0, 6.0)
    assert (cpu.ratio, cpu.misses_target) == (3.0, True)


def test_what_any_turn_made_wrong_is_told_in_every_row() -> None:
    rows = run_contest(a_contest([], peer_made=2, cpu_target=Target(figure="ratio", at_least=1)))
    assert [row.complaint for row in rows] == ["slow: 1 against 2"] * 2


def test_cpu_time_and_remarks_are_in_the_file_and_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    suite = Suite(inputs="numbers", cases=[a_contest([], target=Target(figure="slowdown", at_most=0.25))])
    assert run_suite(suite, QUICK, Options(suite="round", output=path, check=True)) == 1
    (case,) = json.loads(path.read_text())["cases"]
    assert (case["ours_cpu_seconds"], case["peer_cpu_seconds"]) == (2.0, 6.0)
    assert case["target"] == {"slowdown_at_most": 0.25}
    assert case["remarks"] == ["ours: us is limited", "fast: fast is limited"]
    screen = capsys.readouterr().out
    assert "slowdown ≤ 0.25 missed" in screen and "a: ours: us is limited" in screen
    assert "CPU time of all processes, ours 2.00 s, peer 6.00 s" in screen


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1.0, "at_most": 2.0}])
def test_a_target_has_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Target(figure="ratio", **bounds)


def test_a_program_returns_its_report_and_the_cpu_time_of_all_its_processes(tmp_path: Path) -> None:
    burn = "import time; end = time.process_time() + 2\nwhile time.process_time() < end: pass"
    report = run_program(
        "subprocess:call", tmp_path, timeout_seconds=PATIENCE_SECONDS, args=[sys.executable, "-c", burn]
    )
    assert report.values == 0  # what subprocess.call returns
    assert 2 - 3 * family.SAMPLE_SECONDS < report.cpu_seconds < report.wall_seconds * 3
    assert report.wall_seconds > 2


def test_a_program_that_fails_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)json:loads ended with exit code 1.*Expecting value"):
        run_program("json:loads", tmp_path, timeout_seconds=PATIENCE_SECONDS, s="broken")


def test_nothing_is_left_of_a_program_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "LEAVE_SECONDS", 0.1)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    detached = ["sh", "-c", "setsid sleep 600 & sleep 600"]
    with pytest.raises(RuntimeError, match="took longer than 10 s"):
        run_program("subprocess:call", tmp_path, timeout_seconds=10, args=detached)
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_the_first_round_is_no_measurement() -> None:
    marks = Marks()
    marks.take()
    time.sleep(0.5)
    marks.take()
    with pytest.raises(ValueError, match="expected 3 or more"):
        marks.to_json()
    marks.take()
    assert marks.to_json()["wall_seconds"] < 0.4


def test_plain_and_secure_rounds_and_flowers_come_to_what_they_began_with(short_folder: Path) -> None:
    parameters = write_parameters(short_folder, width=0.05)
    rounds = CopyRounds(Folder(short_folder), parameters, num_sites=3, num_rounds=1)
    begun = np.load(parameters)
    for outcome in (rounds.ours(), rounds.ours(secure=True), rounds.flower()):
        assert same_parameters(begun, outcome.made) is None
        assert outcome.wall_seconds > 0 and outcome.cpu_seconds > 0
        assert "of 2 cores are busy" in outcome.remark


def test_parameters_that_differ_are_told() -> None:
    ours = np.zeros(4, np.float32)
    assert same_parameters(ours, ours + np.float32(1e-6)) is None
    assert "differ by up to 0.001" in str(same_parameters(ours, ours + np.float32(1e-3)))
    assert "shape" in str(same_parameters(ours, ours[:3]))


def test_only_a_clearly_better_peer_is_a_complaint() -> None:
    assert worse_accuracy(0.9, 0.92) is None and worse_accuracy(0.95, 0.8) is None
    assert "accuracy 0.8000 against 0.9000" in str(worse_accuracy(0.8, 0.9))


def test_both_jobs_have_the_same_sites_and_the_same_network(inputs: JobInputs) -> None:
    settings, spec = read_settings(str(inputs.plain)), load_spec(inputs.job)
    federation = federation_of(spec, inputs.job.parent / "cache-of-plain")
    sites = [[[str(scan.path), scan.label] for scan in site.scans] for site in federation.sites]
    assert settings["sites"] == sites and len(sites) == TINY.num_sites
    assert len(settings["test"]) == TINY.num_test and settings["validation"]
    assert (settings["rounds"], settings["epochs"], settings["batch_size"]) == (2, 1, spec.fl.local.batch_size)

    ours = SplitVgg19(spec.model.network).eval()
    load_model_state(ours, initial_model_state(spec))
    theirs = network(str(inputs.plain), tuned=False).eval()
    sent = torch.cat([array.ravel() for array in theirs.trained().values()]).numpy()
    assert np.array_equal(sent, gather(ours.trained_parameters()))
    image = cv2.imread(settings["test"][0][0])
    images_NCHW = torch.from_numpy(chain(np.asarray(image, np.uint8), PreprocessSpec.from_json(settings["preprocess"])))
    with torch.no_grad():
        torch.testing.assert_close(ours(images_NCHW[None]), theirs(images_NCHW[None]))


def test_the_plain_client_trains_what_it_sends_and_nothing_else(inputs: JobInputs) -> None:
    settings = {**read_settings(str(inputs.plain)), "tuned": False, "bfloat16": False}
    net = network(str(inputs.plain), tuned=False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert fit(net, settings["sites"][0], settings) > 0
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(net.trained())
    net.load_state_dict(before)
    assert 0 <= accuracy_of(net, settings["test"], settings) <= 1


def test_real_scans_are_taken_where_a_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, label in [(place, label) for place in ("Training", "Testing") for label in CLASSES]:
        folder = tmp_path / "real" / place / label
        folder.mkdir(parents=True)
        for index in range(7):
            cv2.imwrite(str(folder / f"{index}.jpg"), _a_head(len(label) + 40 * index + 7 * len(place)))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "real"))
    laid = lay_down(tmp_path / "some", TINY)
    assert "24 real training scans" in laid.source
    assert len(list((tmp_path / "some" / "scans" / "Training").glob("*/*.jpg"))) == TINY.num_train
    with pytest.raises(SystemExit, match="has 7 scans, the benchmark needs 10"):
        lay_down(tmp_path / "more", JobSize(num_train=40, num_test=8, num_sites=2))


@pytest.mark.parametrize(("cores", "free", "message"), [(1, 2**40, "needs 2 cores"), (8, 2**30, "1.0 GiB are free")])
def test_a_machine_that_is_too_small_is_told_so(cores: int, free: int, message: str) -> None:
    require_machine(2, 2**40)
    with pytest.raises(SystemExit, match=message):
        require_machine(cores, free)


def _a_head(shade: int) -> Any:
    image = np.zeros((96, 96), np.uint8)
    cv2.circle(image, (48, 48), 40, 160, -1)
    cv2.circle(image, (30 + shade % 37, 40 + shade % 23), 9, 255 - shade % 80, -1)
    return image
