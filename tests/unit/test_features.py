"""Features from scans on disk: cached or not, alone or in a batch, they are the same bits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fl.data.admission import AdmissionSettings, admit
from fl.data.crops import CropBackend
from fl.data.layout import LabelledFile
from fl.errors import DataError
from fl.model.features import PREFIX_BATCH, FeatureSource, Request, prefix_digest
from fl.model.speed import Execution, SpeedSettings, place, resolve_execution
from fl.model.vgg import NetworkSettings, SplitVgg19, initialise_from_nothing
from fl.training.augment import IDENTITY, View
from fl.types import Scan
from kernels.ops import preprocess
from kernels.spec import PreprocessSpec

NETWORK = NetworkSettings(width=0.125)
SPEC = PreprocessSpec(size=64)
VIEWS = (IDENTITY, View(angle_degrees=8, shift_right=0.03), View(flip=True))


def write_scans(folder: Path, num: int) -> list[Scan]:
    """Noise with a bright disc, as JPEG and PNG in turn, admitted."""
    random, files = np.random.default_rng(3), []
    for index in range(num):
        gray_HW = random.integers(0, 60, (90 + index, 100)).astype(np.uint8)
        cv2.circle(gray_HW, (50, 45), 20 + index, 200, -1)
        path = folder / f"{index}.{'jpg' if index % 2 else 'png'}"
        assert cv2.imwrite(str(path), gray_HW)
        files.append(LabelledFile(path=path, label=index % 4))
    scans = list(admit(files, AdmissionSettings()))
    assert all(isinstance(scan, Scan) for scan in scans)
    return scans  # type: ignore[return-value]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Scan]:
    return write_scans(tmp_path_factory.mktemp("scans"), 7)


def execution(precision: str = "float32") -> Execution:
    return resolve_execution(SpeedSettings.model_validate({"precision": precision, "compile": "off"}))


def make_model(seed: int = 1, network: NetworkSettings = NETWORK) -> SplitVgg19:
    torch.set_num_threads(1)
    model = SplitVgg19(network)
    initialise_from_nothing(model, torch.Generator().manual_seed(seed))
    return place(model, execution()).eval()


def make_source(
    root: Path,
    *,
    cached: bool,
    precision: str = "float32",
    model: SplitVgg19 | None = None,
    backend: CropBackend = "native",
    num_threads: int = 1,
) -> FeatureSource:
    return FeatureSource(
        model or make_model(),
        network=NETWORK,
        execution=execution(precision),
        preprocess=SPEC,
        store_root=root,
        cached=cached,
        crop_backend=backend,
        num_threads=num_threads,
    )


def requests_of(scans: list[Scan], views: tuple[View, ...] = VIEWS) -> list[Request]:
    return [Request(path=scan.path, pixels_sha256=scan.pixels_sha256, view=view) for view in views for scan in scans]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_uncached_and_stored_features_are_the_same_bits(
    tmp_path: Path, scans: list[Scan], precision: str
) -> None:
    requests = requests_of(scans)
    uncached = make_source(tmp_path / "a", cached=False, precision=precision).features(requests)

    first = make_source(tmp_path / "b", cached=True, precision=precision).features(requests)
    again = make_source(tmp_path / "b", cached=True, precision=precision).features(requests)

    assert uncached.dtype is getattr(torch, precision) and tuple(uncached.shape) == (21, 64, 8, 8)
    assert torch.equal(first, uncached) and torch.equal(again, uncached)
    assert uncached.float().std() > 1e-3


def test_feature_does_not_depend_on_what_else_is_in_its_batch(tmp_path: Path, scans: list[Scan]) -> None:
    """A resumed run finds other entries missing than the first one did, so its batches are made up differently."""
    source, requests = make_source(tmp_path, cached=False), requests_of(scans)
    together = source.features(requests)

    for number in (0, 3, PREFIX_BATCH - 1, PREFIX_BATCH, len(requests) - 1):
        assert torch.equal(source.features(requests[number : number + 1])[0], together[number])
    assert torch.equal(source.features(requests[::-1]), together.flip(0))


def test_features_are_the_prefix_of_the_preprocessed_image(tmp_path: Path, scans: list[Scan]) -> None:
    model = make_model()
    grays = [cv2.imread(str(scan.path), cv2.IMREAD_GRAYSCALE) for scan in scans]
    images_NCHW, _ = preprocess(grays, SPEC)  # type: ignore[arg-type]

    found = make_source(tmp_path, cached=True, model=model).features(requests_of(scans, (IDENTITY,)))

    with torch.no_grad():
        torch.testing.assert_close(found, model.prefix(torch.from_numpy(images_NCHW)), rtol=1e-5, atol=1e-6)


def test_prepare_computes_what_is_missing_once(tmp_path: Path, scans: list[Scan]) -> None:
    requests = requests_of(scans)
    source = make_source(tmp_path, cached=True)

    assert source.prepare(requests[:9]) == 9
    assert source.prepare([*requests, *requests]) == 12
    assert source.prepare(requests) == 0
    assert make_source(tmp_path, cached=True).prepare(requests) == 0


def test_features_that_are_stored_are_not_decoded_for_again(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    scans = write_scans(tmp_path / "scans", 3)
    assert make_source(tmp_path / "store", cached=True).prepare(requests_of(scans)) == 9
    crops = [rows for rows in (tmp_path / "store").glob("*/*.rows") if rows.stat().st_size == 3 * 256**2]
    assert len(crops) == 1
    shutil.rmtree(crops[0].parent)
    for scan in scans:
        scan.path.unlink()

    assert make_source(tmp_path / "store", cached=True).prepare(requests_of(scans)) == 0


def test_source_without_a_cache_prepares_crops_alone(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    scans = write_scans(tmp_path / "scans", 2)
    source = make_source(tmp_path / "store", cached=False)

    assert source.prepare(requests_of(scans)) == 0
    for scan in scans:
        scan.path.unlink()

    assert source.features(requests_of(scans)).shape[0] == 6, "the crops were not stored"


@pytest.mark.parametrize("fault", ["changed", "vanished", "garbage"])
def test_scan_that_changed_since_its_admission_is_a_data_error(tmp_path: Path, fault: str) -> None:
    (tmp_path / "scans").mkdir()
    scan = write_scans(tmp_path / "scans", 1)[0]
    if fault == "changed":
        gray_HW = cv2.imread(str(scan.path), cv2.IMREAD_GRAYSCALE)
        assert gray_HW is not None
        gray_HW[0, 0] ^= 1
        cv2.imwrite(str(scan.path), gray_HW)
    elif fault == "vanished":
        scan.path.unlink()
    else:
        scan.path.write_bytes(b"no image")

    with pytest.raises(DataError, match=rf"{scan.path}.*(changed|read any more)"):
        make_source(tmp_path / "store", cached=True).features(requests_of([scan]))


def test_pixels_under_a_wrong_name_are_a_data_error(tmp_path: Path, scans: list[Scan]) -> None:
    wrong = replace(scans[0], pixels_sha256=scans[1].pixels_sha256)

    with pytest.raises(DataError, match="changed since its admission"):
        make_source(tmp_path, cached=False).features(requests_of([wrong]))


def test_prefix_digest_knows_weights_precision_and_layout_but_not_the_tail() -> None:
    base, run = make_model(), execution()
    digest = prefix_digest(base, run)
    assert prefix_digest(make_model(), run) == digest

    with torch.no_grad():
        base.head.bias.add_(1)
        next(base.tail.parameters()).add_(1)
    assert prefix_digest(base, run) == digest

    with torch.no_grad():
        list(base.prefix.parameters())[-1][-1] += 1e-6
    assert prefix_digest(base, run) != digest
    assert prefix_digest(make_model(seed=2), run) != digest
    for changed in (
        replace(run, dtype=torch.bfloat16),
        replace(run, compiled=True),
        replace(run, memory_format=torch.contiguous_format),
    ):
        assert prefix_digest(make_model(), changed) != digest


def test_new_weights_never_read_the_features_of_old_ones(tmp_path: Path, scans: list[Scan]) -> None:
    requests = requests_of(scans)
    make_source(tmp_path, cached=True, model=make_model(seed=1)).prepare(requests)

    other = make_source(tmp_path, cached=True, model=make_model(seed=2))

    assert other.prepare(requests) == len(requests)
