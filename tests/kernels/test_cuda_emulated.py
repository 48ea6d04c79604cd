"""The CUDA kernels' own sources, compiled as plain C++ and run on the CPU, against the compiled core and OpenCV.

native/cuda holds the emulator: threads of a block are fibers that run in three different orders and, in one of them,
also change places at atomics; memory and shared memory are watched by the sanitizers. What only a device can show
(its own arithmetic units, weak memory, speed) is in test_cuda_gpu.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import ops, reference
from kernels.spec import CROP_SIZE, UNIT, Box, Normalization, PreprocessSpec

from .images import IMAGENET

REPOSITORY = Path(__file__).parents[2]
CORE = REPOSITORY / "kernels" / "csrc"
NATIVE = Path(__file__).parent / "native" / "cuda"
SOURCES = [
    *sorted(NATIVE.glob("*.cpp")),
    *sorted((CORE / "cuda").glob("*.cu")),
    CORE / "cuda" / "plan.cpp",
    CORE / "cpu" / "colour_scalar.cpp",
    CORE / "cpu" / "resize_scalar.cpp",
]
FLAGS = ["-std=c++20", "-O1", "-g1", "-ffp-contract=off"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2}
SIZES = [
    (1, 1), (1, 2), (2, 1), (1, 769), (769, 1), (7, 7), (83, 7), (7, 83), (31, 33), (64, 64), (63, 257), (128, 129),
    (33, 513), (257, 255), (300, 400),
]  # fmt: skip

Image = NDArray[np.uint8]


class Emulator:
    """Runs one request in a process of its own, so that a sanitizer's finding is a failed test and no more."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def run(self, what: str, payload: bytes, *, order: str = "ascending", seed: int = 0) -> bytes:
        request = struct.pack("<qQ", ORDERS[order], seed) + payload
        done = subprocess.run([self._program, what], input=request, capture_output=True, timeout=120, check=False)
        if done.returncode == 2:
            raise ValueError(done.stderr.decode())
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def crop(
        self, images: Sequence[Image], *, what: str = "crop", bgr: bool = True, order: str = "ascending"
    ) -> tuple[list[Box | None], Image]:
        raw = self.run(what, batch(images, bgr=bgr), order=order)
        boxes, rest = _split_boxes(raw, len(images))
        return boxes, np.frombuffer(rest, np.uint8).reshape(-1, CROP_SIZE, CROP_SIZE)

    def denoise(self, crops_NHW: Image, order: str) -> Image:
        payload = struct.pack("<q", len(crops_NHW)) + crops_NHW.tobytes()
        return np.frombuffer(self.run("denoise", payload, order=order), np.uint8).reshape(crops_NHW.shape)

    def finish(
        self, crops_NHW: Image, spec: PreprocessSpec, dtype: str, *, what: str = "finish"
    ) -> NDArray[np.generic]:
        payload = _output(spec) + struct.pack("<q", len(crops_NHW)) + crops_NHW.tobytes()
        return _planes(self.run(f"{what} {dtype}", payload), spec, dtype)

    def preprocess(
        self, images: Sequence[Image], spec: PreprocessSpec, *, dtype: str = "float32", order: str = "ascending"
    ) -> tuple[list[Box | None], NDArray[np.generic]]:
        raw = self.run(f"preprocess {dtype}", _output(spec) + batch(images), order=order)
        boxes, rest = _split_boxes(raw, len(images))
        return boxes, _planes(rest, spec, dtype)

    def contours(self, masks: Sequence[Image], order: str, seed: int) -> list[Box | None]:
        return _split_boxes(self.run("contour", batch(masks), order=order, seed=seed), len(masks))[0]

    def plan(self, sizes: Sequence[tuple[int, int, int]]) -> list[list[int]]:
        headers = [struct.pack("<qqqqq", height, width, width, channels, 1) for height, width, channels in sizes]
        lines = self.run("plan", struct.pack("<q", len(sizes)) + b"".join(headers)).decode().splitlines()
        return [[int(number) for number in line.split()] for line in lines]


def batch(images: Sequence[Image], *, bgr: bool = True) -> bytes:
    """Each image with its strides: rows may lie apart or run backwards, as on a device."""
    parts = [struct.pack("<q", len(images))]
    for image in images:
        height, width = image.shape[:2]
        channels = 1 if image.ndim == 2 else 3
        stride = image.strides[0]
        rows = image if stride >= 0 else image[::-1]
        memory = np.zeros(abs(stride) * (height - 1) + width * channels, np.uint8)
        for y, row in enumerate(rows):
            memory[y * abs(stride) :][: width * channels] = row.reshape(-1)
        parts += [struct.pack("<qqqqq", height, width, stride, channels, bgr), memory.tobytes()]
    return b"".join(parts)


def _output(spec: PreprocessSpec) -> bytes:
    numbers = ops.normalisation_numbers(spec)
    floats = np.array([numbers["scale"], *numbers["mean"], *numbers["stddev"]], np.float32)
    return struct.pack("<qqqq", spec.size, *numbers["channel"]) + floats.tobytes()


def _planes(raw: bytes, spec: PreprocessSpec, dtype: str) -> NDArray[np.generic]:
    stored = np.float32 if dtype == "float32" else np.uint16
    return np.frombuffer(raw, stored).reshape(-1, 3, spec.size, spec.size)


def _split_boxes(raw: bytes, count: int) -> tuple[list[Box | None], bytes]:
    corners_N4 = np.frombuffer(raw[: 16 * count], np.int32).reshape(count, 4).tolist()
    return [Box(*corners) if any(corners) else None for corners in corners_N4], raw[16 * count :]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler: set CXX or install g++")
    folder = tmp_path_factory.mktemp("cuda_emulated")
    includes = [f"-I{NATIVE}", f"-I{CORE}", f"-I{CORE / 'cuda'}"]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        _call([compiler, *FLAGS, *SANITIZERS, *includes, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, SOURCES))
    program = folder / "emulate"
    _call([compiler, *SANITIZERS, *map(str, objects), "-o", str(program)])
    return Emulator(program)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def noise(height: int, width: int, seed: int) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def blobs(height: int, width: int, seed: int) -> Image:
    """Noise around the threshold with bright and dark rectangles, so that parts, holes and ties are frequent."""
    random = np.random.default_rng(seed)
    image_HW = random.integers(0, random.choice([40, 60, 90]), (height, width), np.uint8)
    for _ in range(random.integers(0, 14)):
        rows, columns = [(5, 5), (5, 30), (30, 5), (12, 12), (40, 41), (1, 9)][random.integers(6)]
        top, left = random.integers(-rows, height), random.integers(-columns, width)
        part = image_HW[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        part[:] = random.choice([0, 44, 46, 90, 255])
    return image_HW


def grating(num_down: int, num_across: int, *, first: int = 3) -> Image:
    """As many runs and parts as an opened mask can have: squares of 5x5, one pixel apart.

    first 3: 3x3 remains of the squares in the corners; 0: background all around, so that most of its runs are there.
    """
    cut = 5 if first else -1
    image_HW = np.full((6 * num_down - cut, 6 * num_across - cut), 88, np.uint8)
    image_HW[first::6] = image_HW[:, first::6] = 0  # the blur leaves 44 there, and 49 in the squares' corners
    return image_HW


def assert_same_crops(boxes: Sequence[Box | None], crops_NHW: Image, images: Sequence[Image]) -> None:
    for box, crop_HW, image in zip(boxes, crops_NHW, images, strict=True):
        truth = ops.crop(image)
        assert box == truth.box, f"{image.shape}"
        np.testing.assert_array_equal(crop_HW, truth.crop_HW, err_msg=f"{image.shape}")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("what", ["crop", "crop in parts"])
def test_boxes_and_crops_of_awkward_images_are_the_cores(emulator: Emulator, what: str, order: str) -> None:
    images = [make(*size, seed=i) for i, size in enumerate(SIZES) for make in (noise, blobs)]
    images += [np.full(size, level, np.uint8) for size in SIZES[::3] for level in (0, 255)]
    images += [grating(*size, first=first) for size in [(2, 2), (11, 51), (50, 23)] for first in (0, 3)]
    boxes, crops_NHW = emulator.crop(images, what=what, order=order)
    assert_same_crops(boxes, crops_NHW, images)


def test_more_runs_than_fit_shared_memory_are_no_different(emulator: Emulator) -> None:
    squares_HW = grating(66, 67)
    assert ops.crop(squares_HW).box == Box(388, 382, 392, 386), "the last whole square: no two are joined"
    bars = [np.tile(grating(2, 67, first=first)[1], (300, 1)) for first in (0, 3)]  # the most runs in every row
    images = [squares_HW, *bars]
    boxes, crops_NHW = emulator.crop(images, what="crop in parts", order="shuffled")
    assert_same_crops(boxes, crops_NHW, images)


@pytest.mark.parametrize("bgr", [True, False], ids=["bgr", "rgb"])
def test_colour_is_read_as_the_core_reads_it(emulator: Emulator, bgr: bool) -> None:
    random = np.random.default_rng(8)
    images = [random.integers(0, 110, (*size, 3), np.uint8) for size in [(1, 1), (9, 301), (64, 64), (97, 130)]]
    boxes, crops_NHW = emulator.crop(images, bgr=bgr)
    for box, crop_HW, image in zip(boxes, crops_NHW, images, strict=True):
        truth = ops.crop(image, channel_order="bgr" if bgr else "rgb")
        assert box == truth.box
        np.testing.assert_array_equal(crop_HW, truth.crop_HW)


def test_rows_may_lie_apart_or_run_backwards(emulator: Emulator) -> None:
    whole_HW = blobs(120, 203, 3)
    color_HWC = np.random.default_rng(4).integers(0, 110, (60, 80, 3), np.uint8)
    images = [whole_HW[::2], whole_HW[::-1], whole_HW[5:77, 9:83], whole_HW[::-3, 1:200], color_HWC[::-1, 3:70]]
    boxes, crops_NHW = emulator.crop(images)
    assert_same_crops(boxes, crops_NHW, images)


def test_box_of_exactly_twice_the_crop_takes_the_mean_of_four(emulator: Emulator) -> None:
    image_HW = np.random.default_rng(3).integers(0, 30, (560, 600), np.uint8)
    image_HW[20:533, 40:553] += 100  # 513 pixels: the half-open box leaves 512
    boxes, crops_NHW = emulator.crop([image_HW])
    assert boxes == [Box(40, 20, 552, 532)]
    assert_same_crops(boxes, crops_NHW, [image_HW])


@st.composite
def masks(draw: st.DrawFn) -> list[Image]:
    """Any masks, also such as no opening leaves: scattered pixels, or rectangles and frames of few sizes."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.02, 0.2, 0.42, 0.5, 0.6, 0.95]))
    result = []
    for _ in range(16):
        mask_HW = np.zeros((random.integers(1, 60), random.integers(1, 140)), np.uint8)
        if random.random() < 0.5:
            mask_HW[random.random(mask_HW.shape) < share] = 255
        for _ in range(random.integers(0, 10)):
            rows, columns = [(1, 1), (1, 6), (6, 1), (3, 5), (5, 3), (9, 9)][random.integers(6)]
            top, left = random.integers(0, mask_HW.shape[0]), random.integers(0, mask_HW.shape[1])
            mask_HW[top : top + rows, left : left + columns] = 255
            if random.random() < 0.5:
                mask_HW[top + 1 : top + rows - 1, left + 1 : left + columns - 1] = 0
        result.append(mask_HW)
    return result


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_of_masks=masks(), order=st.sampled_from(sorted(ORDERS)), seed=st.integers(0, 1000))
def test_largest_contour_of_any_mask_is_the_one_opencv_users_pick(
    emulator: Emulator, batch_of_masks: list[Image], order: str, seed: int
) -> None:
    for box, mask_HW in zip(emulator.contours(batch_of_masks, order, seed), batch_of_masks, strict=True):
        truth = reference.largest_contour(mask_HW)
        empty = truth is None or truth.left == truth.right or truth.top == truth.bottom
        assert box == (None if empty else truth)


def test_winding_parts_and_rings_within_rings_need_no_tracing(emulator: Emulator) -> None:
    comb_HW = np.zeros((120, 200), np.uint8)
    comb_HW[::4] = comb_HW[2::8, :1] = comb_HW[6::8, -1:] = 1
    comb_HW[1:4:2, 0] = 1
    rings_HW = np.zeros((90, 90), np.uint8)
    for k in range(0, 44, 2):
        rings_HW[k : 90 - k, k : 90 - k] = (k // 2) % 2 == 0
    winding = [comb_HW, rings_HW, 1 - rings_HW, np.eye(70, dtype=np.uint8), np.eye(70, dtype=np.uint8)[::-1]]
    for order in ORDERS:
        boxes = emulator.contours([np.ascontiguousarray(mask_HW) for mask_HW in winding], order, 1)
        assert boxes == [reference.largest_contour(mask_HW.astype(np.uint8)) for mask_HW in winding]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("normalization", [UNIT, IMAGENET], ids=["unit", "imagenet"])
@pytest.mark.parametrize("size", [1, 2, 7, 83, 127, 128, 200, 256, 300, 769])
def test_finished_images_are_the_cores_bit_for_bit(
    emulator: Emulator, size: int, normalization: Normalization, dtype: str
) -> None:
    crops_NHW = np.stack([noise(CROP_SIZE, CROP_SIZE, size), blobs(CROP_SIZE, CROP_SIZE, size)])
    spec = PreprocessSpec(size=size, normalization=normalization)
    truth_NCHW = ops.finish(crops_NHW, spec, dtype=dtype)  # type: ignore[call-overload]
    np.testing.assert_array_equal(emulator.finish(crops_NHW, spec, dtype), truth_NCHW)


@pytest.mark.parametrize("order", ORDERS)
def test_denoised_crops_are_the_cores(emulator: Emulator, order: str) -> None:
    crops_NHW = np.stack([noise(CROP_SIZE, CROP_SIZE, 1), blobs(CROP_SIZE, CROP_SIZE, 2)])
    np.testing.assert_array_equal(emulator.denoise(crops_NHW, order), ops.denoise(crops_NHW))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [31, 128, 200])
def test_coloured_smooth_crops_are_the_cores_bit_for_bit(emulator: Emulator, size: int, dtype: str) -> None:
    smooth_NHW = noise(2 * CROP_SIZE, CROP_SIZE, size).reshape(2, CROP_SIZE, CROP_SIZE)
    spec = PreprocessSpec(size=size, normalization=IMAGENET)
    truth_NCHW = ops.color(smooth_NHW, spec, dtype=dtype)  # type: ignore[call-overload]
    np.testing.assert_array_equal(emulator.finish(smooth_NHW, spec, dtype, what="color"), truth_NCHW)


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_of_mixed_images_goes_the_whole_way(emulator: Emulator, order: str) -> None:
    images = [blobs(20 + 3 * i, 150 - 2 * i, i) for i in range(35)]  # more than one kernel's arguments hold
    images[3] = np.zeros((30, 40), np.uint8)
    images[4] = np.random.default_rng(1).integers(0, 110, (40, 50, 3), np.uint8)
    spec = PreprocessSpec(size=24, normalization=IMAGENET)
    boxes, images_NCHW = emulator.preprocess(images, spec, order=order)
    truth_NCHW, found_N = ops.preprocess(images, spec)
    np.testing.assert_array_equal(images_NCHW, truth_NCHW)
    assert [box is not None for box in boxes] == found_N.tolist()


def test_an_empty_batch_starts_nothing(emulator: Emulator) -> None:
    spec = PreprocessSpec(size=8)
    assert emulator.crop([])[0] == []
    assert emulator.preprocess([], spec)[1].shape == (0, 3, 8, 8)


def test_the_parts_of_a_workspace_lie_apart_and_aligned(emulator: Emulator) -> None:
    sizes = [(512, 512, 1), (1, 1, 3), (2, 2**20, 1), (33, 257, 3)]
    (num_tiles, num_bytes), *tasks = emulator.plan(sizes)
    assert num_tiles == 32 + 1 + 4096 + 4
    assert [task[0] for task in tasks] == [0, 32, 33, 33 + 4096]
    offsets = [offset for task in tasks for offset in task[1:]]
    assert offsets == sorted(set(offsets)) and all(offset % 256 == 0 for offset in [*offsets, num_bytes])
    for (height, width, _), (_, mask, nodes, row_starts, components) in zip(sizes, tasks, strict=True):
        assert nodes - mask >= 4 * height * -(-width // 32)
        assert components - row_starts >= 4 * (height + 1)
    assert num_bytes < 1.45 * sum(h * w for h, w, _ in sizes) + len(sizes) * 66_000 + 40_000_000


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 5, 1), "image 1 is 0x5, expected sides of 1 to 2\\^20"),
        ((5, 2**20 + 1, 1), "image 1 is 5x1048577"),
        ((2**16, 2**15, 1), "at most 2\\^30 pixels"),
        ((5, 5, 2), "image 1 has 2 channels, expected 1 \\(grey\\) or 3 \\(colour\\)"),
    ],
)
def test_images_beyond_the_limits_are_refused_by_name(
    emulator: Emulator, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        emulator.plan([(9, 9, 1), size])


def test_batches_and_outputs_beyond_the_limits_are_refused(emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="batch has 65537 images, expected at most 65536"):
        emulator.plan([(1, 1, 1)] * 65537)
    with pytest.raises(ValueError, match="too many pixels for one call"):
        emulator.plan([(2**15, 2**15, 1)] * 20000)
    spec_of_2049 = struct.pack("<qqqq", 2049, 0, 1, 2) + np.ones(7, np.float32).tobytes()
    with pytest.raises(ValueError, match="output side is 2049, expected 1 to 2048"):
        emulator.run("preprocess float32", spec_of_2049 + batch([]))
