"""The first pass over a site's scans: files in, denoised crops out, by our own decoder and kernels or through DALI.

Both ways give the same bytes and both refuse a scan that is no longer the one that was admitted. The crops are kept
(fl.model.features), so this runs once a scan and not once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.data.scans import ADMITTED, check_unchanged, read_gray, still_readable
from fl.errors import DataError
from kernels.ops import crop_into, denoise
from kernels.spec import CROP_SIZE

CropBackend = Literal["native", "dali"]
CropBackendSetting = Literal["auto", "native", "dali"]

BATCH = 64


class AdmittedFile(NamedTuple):
    """A scan's file and the SHA-256 of the pixels that were admitted."""

    path: Path
    pixels_sha256: str


def resolve_backend(setting: CropBackendSetting) -> CropBackend:
    """Decide for this machine; auto is native, which is the faster on a CPU. Raises DataError where DALI is lacking.

    DALI decodes on the CPU here even beside a GPU: a GPU's decoder rounds otherwise, and what was admitted by its
    pixels could not be recognised.
    """
    if setting != "dali":
        return "native"
    from kernels import dali

    usable, reason = dali.available()
    if not usable:
        raise DataError(f"preprocess.backend is dali, but {reason}; or set it to native")
    return "dali"


def smooth_crops(
    files: Sequence[AdmittedFile], backend: CropBackend, *, num_threads: int = 1
) -> Iterator[NDArray[np.uint8]]:
    """Yield denoised crops uint8 [N, 256, 256] of the files in order, N of at most BATCH.

    Raises DataError for the first file that vanished or changed since its admission.
    """
    return _WAYS[backend](files, num_threads)


def _native(files: Sequence[AdmittedFile], num_threads: int) -> Iterator[NDArray[np.uint8]]:
    # Decoding lets other threads run, as the kernels do.
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(files), BATCH):
            grays = list(pool.map(lambda file: read_gray(*file), files[start : start + BATCH]))
            crops_NHW = np.empty((len(grays), CROP_SIZE, CROP_SIZE), np.uint8)
            crop_into(grays, crops_NHW, num_threads=num_threads)
            yield denoise(crops_NHW, num_threads=num_threads)


def _dali(files: Sequence[AdmittedFile], num_threads: int) -> Iterator[NDArray[np.uint8]]:
    from kernels import dali

    paths = [file.path for file in files]
    with still_readable(), _told(dali.DaliFailure):
        batches = dali.crops(paths, batch_size=BATCH, num_threads=num_threads, limits=ADMITTED, with_grays=True)
        for number, batch in enumerate(batches):
            for file, gray_HW in zip(files[number * BATCH :], batch.grays, strict=False):
                check_unchanged(file.path, gray_HW, file.pixels_sha256)
            yield denoise(batch.crops_NHW, num_threads=num_threads)


@contextmanager
def _told(failure: type[Exception]) -> Iterator[None]:
    try:
        yield
    except failure as error:
        raise DataError(f"{error}; set preprocess.backend to native") from error


_WAYS: dict[CropBackend, Callable[[Sequence[AdmittedFile], int], Iterator[NDArray[np.uint8]]]] = {
    "native": _native,
    "dali": _dali,
}
