"""Suite `kernels`: preprocessing against OpenCV, against the usual chain, and against what memory can carry.

Every case says what both sides start from. One thread each, unless the name says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import opencv_ways
from benchmarks.agreement import identical
from benchmarks.case import Case, Peer, Run, Suite, Target
from benchmarks.inputs import Slices, collect_slices
from benchmarks.opencv_ways import with_and_without_ipp
from benchmarks.store_case import store_cases
from kernels import dispatch, ops
from kernels.decode import decode_gray
from kernels.spec import Normalization, PreprocessSpec

IMAGENET = Normalization(channel_order="rgb", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SPEC = PreprocessSpec(size=224, normalization=IMAGENET)
STUDY = PreprocessSpec()
OPENCV_TARGETS = {"avx512": Target(figure="ratio", at_least=7), "avx2": Target(figure="ratio", at_least=4)}

Images = Sequence[NDArray[np.uint8]]


def suite(folder: Path, *, num_slices: int = 14, num_batches: int = 8) -> Suite:
    """Cases over slices that are first copied to, or drawn in, `folder`; num_batches of the store make one run.

    Fewer of either are for tests of the suite itself: a smaller store fits the cache.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    slices = collect_slices(folder, num_slices)
    return Suite(inputs=slices.source, cases=_cases(slices, folder, num_batches))


def _cases(slices: Slices, folder: Path, num_batches: int) -> Iterator[Case]:
    grays, colors = slices.grays(), slices.colors()
    yield from _after_decode_vs_opencv(grays)
    yield from _after_decode_vs_chain(grays, colors)
    yield from _two_threads(grays)
    yield from _from_jpeg(slices)
    yield from store_cases(grays, SPEC, folder, num_batches)


def _after_decode_vs_opencv(grays: Images) -> Iterator[Case]:
    """From grey planes. Ours makes the float tensor, OpenCV stops at 8-bit levels. Once for every instruction set."""
    best, *others = reversed(dispatch.isas())
    for isa in (best, *others):
        yield Case(
            name="after_decode_vs_opencv" if isa == best else f"after_decode_vs_opencv_{isa}",
            items=len(grays),
            ours=_on(isa, lambda: ops.preprocess(grays, SPEC)[0]),
            peers=with_and_without_ipp("OpenCV", lambda: _levels(grays, SPEC), SPEC),
            target=OPENCV_TARGETS.get(isa),
        )
    yield Case(
        name="after_decode_vs_opencv_200px",
        items=len(grays),
        ours=lambda: ops.preprocess(grays, STUDY)[0],
        peers=with_and_without_ipp("OpenCV", lambda: _levels(grays, STUDY), STUDY),
    )


def _after_decode_vs_chain(grays: Images, colors: Images) -> Iterator[Case]:
    """To a batch of floats, from what each one's own decoder returns: grey planes, and cv2.imread's colour.

    Then from colour for both.
    """
    chain = with_and_without_ipp("OpenCV+NumPy", lambda: _chains(colors), SPEC)
    yield Case(
        name="after_decode_vs_chain",
        items=len(grays),
        ours=lambda: ops.preprocess(grays, SPEC)[0],
        peers=chain,
        target=Target(figure="ratio", at_least=12),
    )
    yield Case(
        name="after_decode_vs_chain_color",
        items=len(colors),
        ours=lambda: ops.preprocess(colors, SPEC)[0],
        peers=chain,
    )
    yield Case(
        name="after_decode_vs_chain_bfloat16",
        items=len(grays),
        ours=lambda: ops.preprocess(grays, SPEC, dtype="bfloat16")[0],
        peers=with_and_without_ipp(
            "OpenCV+NumPy+torch",
            lambda: opencv_ways.to_bfloat16(_chains(colors)),
            SPEC,
            "bfloat16",
        ),
    )


def _two_threads(grays: Images) -> Iterator[Case]:
    """How much a second thread gains. Left out on one core."""
    if len(os.sched_getaffinity(0)) < 2:
        return
    yield Case(
        name="after_decode_2_threads_vs_1",
        items=len(grays),
        ours=lambda: ops.preprocess(grays, SPEC, num_threads=2)[0],
        peers=(Peer(name="ours, 1 thread", run=lambda: ops.preprocess(grays, SPEC)[0], differs=identical),),
    )


def _from_jpeg(slices: Slices) -> Iterator[Case]:
    """From files in memory: decoding alone, then to the tensor. The chain reads colour; the last peer, grey at once."""
    paths, files = slices.paths, [path.read_bytes() for path in slices.paths]
    yield Case(
        name="decode_vs_opencv",
        items=len(files),
        ours=lambda: [decode_gray(data) for data in files],
        peers=(
            Peer(name="imdecode, BGR2GRAY", run=_each(opencv_ways.decode_color_to_gray, files), differs=identical),
            Peer(name="imdecode grey", run=_each(opencv_ways.decode_gray, files), differs=identical),
        ),
    )
    yield Case(
        name="jpeg_to_tensor_vs_chain",
        items=len(files),
        ours=lambda: _ours_from_files(paths),
        peers=with_and_without_ipp(
            "imread+OpenCV+NumPy", lambda: _chains([opencv_ways.read_color(path) for path in paths]), SPEC
        ),
        target=Target(figure="ratio", at_least=4),
    )
    yield Case(
        name="jpeg_to_tensor_vs_opencv",
        items=len(files),
        ours=lambda: _ours_from_files(paths),
        peers=with_and_without_ipp(
            "imread grey+OpenCV", lambda: _levels([opencv_ways.read_gray(path) for path in paths], SPEC), SPEC
        ),
    )


def _on(isa: dispatch.Isa, run: Run) -> Run:
    def run_so() -> Any:
        with dispatch.using_isa(isa):
            return run()

    return run_so


def _each(decode: Callable[[bytes], Any], files: Sequence[bytes]) -> Run:
    return lambda: [decode(data) for data in files]


def _ours_from_files(paths: Sequence[Path]) -> NDArray[np.float32]:
    return ops.preprocess([decode_gray(path.read_bytes(), source=str(path)) for path in paths], SPEC)[0]


def _levels(grays: Images, spec: PreprocessSpec) -> list[NDArray[np.uint8]]:
    return [opencv_ways.levels(gray_HW, spec.size) for gray_HW in grays]


def _chains(colors: Images) -> NDArray[np.float32]:
    return np.stack([opencv_ways.chain(color_HWC, SPEC) for color_HWC in colors])
