"""The first pass over scans: both ways give the same denoised crops and refuse what is no longer what was admitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fl.data import crops
from fl.data.admission import pixels_digest
from fl.data.crops import AdmittedFile, CropBackend, resolve_backend, smooth_crops
from fl.errors import DataError
from kernels import dali, reference

NUM_FILES = 7


@pytest.fixture(params=["native", "dali"])
def backend(request: pytest.FixtureRequest) -> CropBackend:
    usable, reason = dali.available()
    if request.param == "dali" and not usable:
        pytest.skip(f"DALI cannot be used: {reason}")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def files(tmp_path: Path) -> list[AdmittedFile]:
    """Grey and colour JPEGs and a PNG, discs on noise, one without any head."""
    random, admitted = np.random.default_rng(1), []
    for index in range(NUM_FILES):
        image = random.integers(0, 40, (90 + 5 * index, 100, 3) if index % 3 == 1 else (90, 110 + index), np.uint8)
        if index != 4:
            cv2.circle(image, (50, 45), 30 + index, (90, 180, 140), -1)
        path = tmp_path / f"{index}.{'png' if index == 2 else 'jpg'}"
        assert cv2.imwrite(str(path), image)
        admitted.append(AdmittedFile(path, pixels_digest(gray_of(path))))
    return admitted


def gray_of(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_crops_are_opencvs_in_the_order_of_the_files(
    files: list[AdmittedFile], backend: CropBackend, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops, "BATCH", 3)
    truth_NHW = reference.denoise(np.stack([reference.crop(gray_of(file.path)).crop_HW for file in files]))
    batches = list(smooth_crops(files, backend, num_threads=num_threads))
    assert [len(batch_NHW) for batch_NHW in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), truth_NHW)


def vanish(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def repaint(path: Path) -> None:
    assert cv2.imwrite(str(path), np.full((90, 115), 77, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(vanish, "cannot be read any more"), (empty, "cannot be read any more"), (repaint, "changed since its admission")],
)
def test_a_scan_that_is_not_the_admitted_one_is_named_and_refused(
    files: list[AdmittedFile], backend: CropBackend, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(files[5].path)
    with pytest.raises(DataError, match=rf"5\.jpg.*{message}"):
        list(smooth_crops(files, backend))


def test_what_a_job_admitted_by_limits_of_its_own_is_not_refused_again(tmp_path: Path, backend: CropBackend) -> None:
    path = tmp_path / "small.jpg"
    assert cv2.imwrite(str(path), np.full((20, 24), 120, np.uint8))
    (crops_NHW,) = smooth_crops([AdmittedFile(path, pixels_digest(gray_of(path)))], backend)
    assert crops_NHW.shape == (1, 256, 256)


def test_no_files_give_no_crops(backend: CropBackend) -> None:
    assert list(smooth_crops([], backend)) == []


def test_dali_is_only_used_where_it_is_asked_for_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backend("auto") == resolve_backend("native") == "native"
    monkeypatch.setattr(dali, "available", lambda: (True, ""))
    assert resolve_backend("dali") == "dali"
    monkeypatch.setattr(dali, "available", lambda: (False, "the package is not installed"))
    with pytest.raises(DataError, match=r"preprocess\.backend is dali, but the package is not installed"):
        resolve_backend("dali")
