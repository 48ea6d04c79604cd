"""The kernels against OpenCV on real MRI slices of many sizes, and on phantoms where those are not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.data.phantoms import NOMINAL_SCANNER, PhantomSettings, load_atlas, make_phantom
from kernels import ops, reference
from kernels.decode import decode_gray
from kernels.spec import UNIT, Normalization, PreprocessSpec

from .images import IMAGENET, assert_same_crop, assert_same_images

DEFAULT_FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
FOLDER = Path(os.environ.get("GLIOFED_REAL_DATA", DEFAULT_FOLDER)) / "mri-fullres"
FILES = sorted(FOLDER.glob("*/*.jpg"))
NUM_PHANTOMS = 200
NUM_CLASSES = 4

Grays = list[NDArray[np.uint8]]

pytestmark = pytest.mark.usefixtures("every_isa")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Grays:
    atlas = load_atlas(tmp_path_factory.mktemp("atlas"))
    images = []
    for index in range(NUM_PHANTOMS):
        settings = PhantomSettings(size_pixels=64 + index * 37 % 97)
        phantom = make_phantom(
            atlas, label=index % NUM_CLASSES, index=index, settings=settings, scanner=NOMINAL_SCANNER
        )
        images.append(phantom.image_HW)
    return images


@pytest.fixture(
    scope="session",
    params=[
        "phantoms",
        pytest.param(
            "slices",
            marks=[
                pytest.mark.real_data,
                pytest.mark.skipif(not FILES, reason=f"no JPEG slices under {FOLDER}; set GLIOFED_REAL_DATA"),
            ],
        ),
    ],
)
def images(request: pytest.FixtureRequest) -> Grays:
    if request.param == "slices":
        return [decode_gray(path.read_bytes(), source=str(path)) for path in FILES]
    phantoms: Grays = request.getfixturevalue("phantoms")
    return phantoms


def test_boxes_and_crops_are_identical(images: Grays) -> None:
    for gray_HW in images:
        assert_same_crop(gray_HW)


@pytest.mark.parametrize(("size", "normalization"), [(200, UNIT), (224, IMAGENET)], ids=["study", "imagenet"])
def test_final_images_are_identical(images: Grays, size: int, normalization: Normalization) -> None:
    spec = PreprocessSpec(size=size, normalization=normalization)
    few = images[:40]
    ours_NCHW, found_N = ops.preprocess(few, spec, num_threads=2)
    truth_NCHW, truth_found_N = reference.preprocess(few, spec)
    np.testing.assert_array_equal(found_N, truth_found_N)
    assert_same_images(ours_NCHW, truth_NCHW, normalization.scale / min(normalization.std))
