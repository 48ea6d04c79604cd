"""No op reads or writes a byte that is not its own.

Rows and outputs here end, or begin, at pages that nobody may touch, so that one byte too far kills the (child)
process whichever instruction reads it; AddressSanitizer does not see masked loads and gathers.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from kernels import _C, ops
from kernels.dispatch import using_isa
from kernels.spec import CROP_SIZE, PreprocessSpec

PAGE = mmap.PAGESIZE
PROT_NONE = 0
LIBC = ctypes.CDLL(None)
ASAN = hasattr(LIBC, "__asan_init")
EDGES = [*range(1, 131), 191, 192, 193, 200, 255, 256, 257, 511, 512, 513, 1023, 1025]


def guarded_rows(num_rows: int, row_bytes: int, *, flush_right: bool, backwards: bool = False) -> NDArray[np.uint8]:
    """[num_rows, row_bytes], each row alone between two forbidden pages, at the end or the beginning of its own."""
    inside = -(-row_bytes // PAGE) * PAGE
    pitch = inside + PAGE
    memory = mmap.mmap(-1, num_rows * pitch + PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for y in range(num_rows + 1):
        assert LIBC.mprotect(ctypes.c_void_p(address + y * pitch), PAGE, PROT_NONE) == 0
    offset = PAGE + (inside - row_bytes if flush_right else 0)
    rows = np.ndarray((num_rows, row_bytes), np.uint8, memory, offset, (pitch, 1))
    return rows[::-1] if backwards else rows


def guarded(shape: tuple[int, ...], dtype: Any, *, flush_right: bool) -> NDArray[Any]:
    """A C-contiguous array between two forbidden pages."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array: NDArray[Any] = guarded_rows(1, num_bytes, flush_right=flush_right)[0].view(dtype).reshape(shape)
    return array


def exit_code_of(work: Callable[[], object]) -> int | None:
    """Run `work` in a forked process, which alone dies of what it does."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(timeout=200)
    return process.exitcode


def placements() -> Iterator[dict[str, bool]]:
    for flush_right in (True, False):
        for backwards in (True, False):
            yield {"flush_right": flush_right, "backwards": backwards}


def placed(image: NDArray[np.uint8], **placement: bool) -> NDArray[np.uint8]:
    rows = guarded_rows(len(image), image[0].size, **placement)
    rows[:] = image.reshape(len(image), -1)
    strides = (rows.strides[0], *image.strides[1:])
    return as_strided(rows, image.shape, strides)


def crop_all() -> None:
    random = np.random.default_rng(0)
    for width in EDGES:
        height = int(random.integers(1, 9))
        for shape in ((height, width), (height, width, 3)):
            image = random.integers(20, 75, shape, np.uint8)
            truth = ops.crop(image)
            for placement in placements():
                crops_NHW = guarded((1, CROP_SIZE, CROP_SIZE), np.uint8, flush_right=True)
                boxes = ops.crop_into([placed(image, **placement)], crops_NHW)
                assert boxes == [truth.box] and np.array_equal(crops_NHW[0], truth.crop_HW)


def gray_all() -> None:
    random = np.random.default_rng(1)
    for width in EDGES:
        color_HWC = random.integers(0, 256, (3, width, 3), np.uint8)
        truth_HW = ops.gray(color_HWC)
        for placement in placements():
            gray_HW = guarded((3, width), np.uint8, flush_right=placement["flush_right"])
            _C.gray(placed(color_HWC, **placement), gray_HW, bgr=True)
            assert np.array_equal(gray_HW, truth_HW)


def resize_all() -> None:
    random = np.random.default_rng(2)
    for width in EDGES:
        height, new_height = (int(side) for side in random.integers(1, 12, 2))
        gray_HW = random.integers(0, 256, (height, width), np.uint8)
        for new_width in {1, 33, max(1, width // 2), int(random.integers(1, 300))}:
            target = (height // 2, width // 2) if new_width == width // 2 and height > 1 else (new_height, new_width)
            truth_HW = np.empty(target, np.uint8)
            _C.resize(gray_HW, truth_HW)
            for placement in placements():
                out_HW = guarded(target, np.uint8, flush_right=placement["flush_right"])
                _C.resize(placed(gray_HW, **placement), out_HW)
                assert np.array_equal(out_HW, truth_HW)


def finish_all() -> None:
    random = np.random.default_rng(3)
    crops_NHW = guarded((1, CROP_SIZE, CROP_SIZE), np.uint8, flush_right=True)
    crops_NHW[:] = random.integers(0, 256, crops_NHW.shape, np.uint8)
    smooth_NHW = guarded((1, CROP_SIZE, CROP_SIZE), np.uint8, flush_right=True)
    _C.denoise(crops_NHW, smooth_NHW, num_threads=1)
    assert np.array_equal(smooth_NHW, ops.denoise(crops_NHW))
    for size in [*range(1, 70), 127, 128, 129, 199, 200, 201, 224, 255, 256, 257]:
        for dtype, stored in (("float32", np.float32), ("bfloat16", np.uint16)):
            spec = PreprocessSpec(size=size)
            truth_NCHW = ops.finish(crops_NHW, spec, dtype=dtype)  # type: ignore[call-overload]
            for flush_right in (True, False):
                out_NCHW = guarded((1, 3, size, size), stored, flush_right=flush_right)
                _C.color(smooth_NHW, out_NCHW, num_threads=1, **ops.normalisation_numbers(spec))
                assert np.array_equal(out_NCHW, truth_NCHW)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("work", [crop_all, gray_all, resize_all, finish_all])
def test_ops_stay_within_their_arrays(work: Callable[[], None]) -> None:
    assert exit_code_of(work) == 0


@pytest.mark.parametrize("flush_right", [True, False])
def test_the_pages_beside_guarded_rows_kill(flush_right: bool) -> None:
    rows = guarded_rows(2, 100, flush_right=flush_right)
    first = rows[1].ctypes.data

    def read(address: int, num_bytes: int) -> None:
        faulthandler.disable()  # its report would look like a failure
        ctypes.string_at(address, num_bytes)

    assert exit_code_of(lambda: read(first, 100)) == 0
    # AddressSanitizer takes the signal first, reports, and exits with 1.
    assert exit_code_of(lambda: read(first + (100 if flush_right else -1), 1)) == (1 if ASAN else -signal.SIGSEGV)


@pytest.mark.skipif(not ASAN, reason="only where AddressSanitizer runs: make sanitize")
@pytest.mark.parametrize("width", [1, 100, 5000])
def test_the_sanitizer_reports_one_byte_beyond_a_numpy_array(width: int, capfd: pytest.CaptureFixture[str]) -> None:
    array_HW = np.full((1, width), 7, np.uint8)
    longer_HW = as_strided(array_HW, (1, width + 1))

    def crop() -> None:
        with using_isa("scalar"):
            ops.crop(longer_HW)

    assert exit_code_of(crop) != 0
    assert "heap-buffer-overflow" in capfd.readouterr().err
