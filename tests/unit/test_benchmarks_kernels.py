"""The suite `kernels`: every case runs, agrees with its peers, and would notice if it did not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks.__main__ import Options, run_suite
from benchmarks.agreement import SAME_LEVEL, identical, within_levels
from benchmarks.inputs import collect_slices
from benchmarks.kernels import SPEC, suite
from benchmarks.measure import Budget
from benchmarks.memory_limit import moves
from kernels import dispatch
from kernels.reference import normalize

ONCE = Budget(case_seconds=0, sample_seconds=0, min_rounds=1, max_rounds=1)
LEVELS_NHWC = np.random.default_rng(3).integers(2, 250, (2, SPEC.size, SPEC.size, 3), np.uint8)
IMAGES_NCHW = np.stack([normalize(levels_HWC, SPEC) for levels_HWC in LEVELS_NHWC])


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    before = cv2.getNumThreads(), torch.get_num_threads()
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


def test_every_case_runs_and_is_correct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIOFED_REAL_DATA", str(tmp_path / "none"))
    output = tmp_path / "figures.json"
    assert run_suite(suite(tmp_path, num_slices=4, num_batches=1), ONCE, Options(suite="kernels", output=output)) == 0
    written = json.loads(output.read_text())
    assert "phantom slices" in written["machine"]["inputs"]
    cases = {case["case"]: case for case in written["cases"]}
    assert len(cases) == len(written["cases"])
    others = {f"after_decode_vs_opencv_{isa}" for isa in dispatch.isas()[:-1]}
    named = {"after_decode_vs_opencv", "after_decode_vs_chain", "jpeg_to_tensor_vs_chain", "store_to_tensor"}
    assert named | others <= set(cases)
    assert all(case["correct"] and case["ratio"] > 0 for case in cases.values())
    limited = {name for name, case in cases.items() if case["limit_fraction"] is not None}
    assert limited == {"store_to_tensor", "store_to_tensor_bfloat16", "crop_to_tensor"}


def test_real_slices_are_taken_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, folder = tmp_path / "data" / "mri-fullres" / "glioma", tmp_path / "copies"
    real.mkdir(parents=True)
    folder.mkdir()
    for name, side in (("large.jpg", 512), ("small.jpg", 300)):
        cv2.imwrite(str(real / name), np.full((side, side), 90, np.uint8))
    monkeypatch.setenv("GLIOFED_REAL_DATA", str(tmp_path / "data"))
    slices = collect_slices(folder, num_slices=14)
    assert slices.source == "1 real slices of 512x512, JPEG"
    assert [path.name for path in slices.paths] == ["large.jpg"]
    assert slices.colors()[0].shape == (512, 512, 3) and slices.grays()[0].shape == (512, 512)


@pytest.mark.parametrize("theirs", [list(LEVELS_NHWC), IMAGES_NCHW, list(IMAGES_NCHW)], ids=["levels", "array", "list"])
def test_equal_images_agree_in_every_form(theirs: object) -> None:
    assert within_levels(SPEC, SAME_LEVEL)(IMAGES_NCHW, theirs) is None


def test_bfloat16_bits_agree_with_torchs_bfloat16() -> None:
    rounded = torch.from_numpy(IMAGES_NCHW).to(torch.bfloat16)
    bits_NCHW = rounded.view(torch.int16).numpy().view(np.uint16)
    assert within_levels(SPEC, SAME_LEVEL)(bits_NCHW, rounded) is None
    assert within_levels(SPEC, SAME_LEVEL)(bits_NCHW ^ np.uint16(1), rounded) is not None


@pytest.mark.parametrize("levels", [1, 3])
def test_a_difference_is_told_in_levels(levels: int) -> None:
    other_NHWC = LEVELS_NHWC.copy()
    other_NHWC[1, 5, 7, 2] += levels
    assert within_levels(SPEC, levels)(IMAGES_NCHW, list(other_NHWC)) is None
    complaint = within_levels(SPEC, max(levels - 1, SAME_LEVEL))(IMAGES_NCHW, list(other_NHWC))
    assert complaint is not None and f"up to {levels} levels" in complaint


def test_nothing_passes_that_is_nan_or_of_another_shape() -> None:
    broken_NCHW = IMAGES_NCHW.copy()
    broken_NCHW[0, 0, 0, 0] = np.nan
    assert within_levels(SPEC, 255)(broken_NCHW, IMAGES_NCHW) is not None
    assert within_levels(SPEC, 255)(IMAGES_NCHW[:1], IMAGES_NCHW) is not None


def test_identical_names_the_first_item_that_differs() -> None:
    other_NCHW = IMAGES_NCHW.copy()
    other_NCHW[1] += 1
    assert identical(IMAGES_NCHW, IMAGES_NCHW.copy()) is None
    assert identical(IMAGES_NCHW, other_NCHW) == "1 of 2 items differ, first item 1"


def test_each_way_of_moving_bytes_writes_the_whole_target() -> None:
    source = np.arange(4096, dtype=np.uint8)
    for dtype in (np.float32, np.uint16):
        target = np.zeros((3, 50, 32), dtype)
        for move in moves(source, target):
            target[:] = 0
            move()
            assert (target.view(np.uint8) != 0).all()
