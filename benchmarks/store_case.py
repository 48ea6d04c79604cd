"""Later passes: from memory-mapped crops to tensors, against what memory can carry.

A run turns a store of 128 crops into eight batches of 16 that all stay alive, as in a loader's queue: 8 MiB in and
74 MiB out as float32, more than the last cache of most processors, so memory and not the cache takes the result.
Each batch takes the place of the one made a run before, and the C library hands its pages out again: no page is
touched for the first time while the clock runs, neither here nor in the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.case import Case, Run, Target
from benchmarks.memory_limit import moves
from benchmarks.opencv_ways import color_chain, finish_chain, to_bfloat16, with_and_without_ipp
from kernels import ops
from kernels.spec import CROP_SIZE, PreprocessSpec

BATCH = 16


def store_cases(
    grays: Sequence[NDArray[np.uint8]], spec: PreprocessSpec, folder: Path, num_batches: int
) -> Iterator[Case]:
    """From the store's denoised crops, one case an output type; then from crops that are yet to be denoised.

    The stores' files are written to `folder`.
    """
    crops_NHW = np.empty((num_batches * BATCH, CROP_SIZE, CROP_SIZE), np.uint8)
    ops.crop_into([grays[number % len(grays)] for number in range(len(crops_NHW))], crops_NHW)
    smooth_NHW = _mapped(ops.denoise(crops_NHW), folder / "smooth.rows")
    sized = (len(crops_NHW), 3, spec.size, spec.size)
    yield Case(
        name="store_to_tensor",
        items=len(smooth_NHW),
        ours=_batches(smooth_NHW, lambda batch_NHW: ops.color(batch_NHW, spec)),
        peers=with_and_without_ipp("OpenCV+NumPy", _batches(smooth_NHW, _each(color_chain, spec)), spec),
        limits=moves(smooth_NHW, np.ones(sized, np.float32)),
        target=Target(figure="limit_fraction", at_least=0.65),
    )
    yield Case(
        name="store_to_tensor_bfloat16",
        items=len(smooth_NHW),
        ours=_batches(smooth_NHW, lambda batch_NHW: ops.color(batch_NHW, spec, dtype="bfloat16")),
        peers=with_and_without_ipp(
            "OpenCV+NumPy+torch",
            _batches(smooth_NHW, lambda batch_NHW: to_bfloat16(_each(color_chain, spec)(batch_NHW))),
            spec,
            "bfloat16",
        ),
        limits=moves(smooth_NHW, np.ones(sized, np.uint16)),
    )
    crops_NHW = _mapped(crops_NHW, folder / "crops.rows")
    yield Case(
        name="crop_to_tensor",
        items=len(crops_NHW),
        ours=_batches(crops_NHW, lambda batch_NHW: ops.finish(batch_NHW, spec)),
        peers=with_and_without_ipp("OpenCV+NumPy", _batches(crops_NHW, _each(finish_chain, spec)), spec),
        limits=moves(crops_NHW, np.ones(sized, np.float32)),
    )


def _batches(crops_NHW: NDArray[np.uint8], finish: Callable[[NDArray[np.uint8]], Any]) -> Run:
    queue: list[Any] = [None] * (len(crops_NHW) // BATCH)

    def run() -> list[Any]:
        for place in range(len(queue)):
            queue[place] = finish(crops_NHW[place * BATCH : (place + 1) * BATCH])
        return queue

    return run


def _each(
    chain: Callable[[NDArray[np.uint8], PreprocessSpec], NDArray[np.float32]], spec: PreprocessSpec
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    return lambda batch_NHW: np.stack([chain(crop_HW, spec) for crop_HW in batch_NHW])


def _mapped(crops_NHW: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    crops_NHW.tofile(path)
    return np.memmap(path, np.uint8, "r", shape=crops_NHW.shape)
