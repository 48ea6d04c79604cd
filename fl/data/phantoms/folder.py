"""Write phantoms to disk, once for each settings, in parallel; the only module here that starts processes.

    <cache_root>/<key>/images/Training|Testing|Synthetic/<class>/*.jpg   or images/sites/<name>/<class>/*.jpg
    <cache_root>/<key>/masks/…/*.png       the tumour's mask of each image, 0 or 255, under the same name
    <cache_root>/<key>/phantoms.json       settings, generator version, digest of all files

`key` is a hash of settings and generator version. A folder appears complete or not at all: it is written
under another name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fl.data.phantoms.acquisition import NOMINAL_SCANNER, ScannerProfile, draw_scanner
from fl.data.phantoms.atlas import Atlas, load_atlas
from fl.data.phantoms.phantom import make_phantom
from fl.data.phantoms.settings import FIRST_INDEX, GENERATOR_VERSION, PhantomSettings
from fl.errors import DataError
from fl.types import CLASSES

_JPEG_QUALITY = 95
_TASKS_PER_JOB = 24
_MANIFEST = "phantoms.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomFolder:
    """Where the phantoms of one settings lie, whether or not they have been written yet."""

    root: Path

    @property
    def images(self) -> Path:
        """The folder to train from, in the Kaggle or the hospitals' layout."""
        return self.root / "images"

    @property
    def masks(self) -> Path:
        """The parallel tree of masks."""
        return self.root / "masks"

    @property
    def manifest(self) -> Path:
        """JSON with settings, generator version, number of images and the digest of all files."""
        return self.root / _MANIFEST

    @property
    def is_complete(self) -> bool:
        """Whether the folder has been written; it is renamed into place only when everything is in it."""
        return self.manifest.exists()

    def mask_of(self, image: Path) -> Path:
        """Return the mask that belongs to an image of this folder."""
        return self.masks / image.relative_to(self.images).with_suffix(".png")


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteProgress:
    """How many of the folder's slices are on disk."""

    num_done: int
    num_total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomTask:
    """One slice to write. folder: below images/ and masks/, without the class."""

    folder: str
    label: int
    index: int
    scanner: ScannerProfile

    @property
    def stem(self) -> str:
        """Path without suffix, relative to images/ and masks/. It names class and set, as real folders do."""
        return f"{self.folder}/{CLASSES[self.label]}/{self.index:07d}"


def phantom_folder(settings: PhantomSettings, cache_root: Path) -> PhantomFolder:
    """Return where `write_phantom_folder` puts these settings' phantoms; touches no disk."""
    identity = json.dumps({"generator": GENERATOR_VERSION, **settings.model_dump()}, sort_keys=True)
    return PhantomFolder(root=cache_root / f"phantoms-{hashlib.sha256(identity.encode()).hexdigest()[:16]}")


def write_phantom_folder(settings: PhantomSettings, cache_root: Path, *, num_processes: int) -> Iterator[WriteProgress]:
    """Write the phantoms, unless they are there; yields after every few dozen slices, last with all done.

    The files are the same bytes for any `num_processes`. With 1 the work is done in this process; else in
    fresh ones (spawned, so it is safe after torch and Ray; a script must guard its entry with `__main__`). An
    abandoned iterator leaves nothing behind. Raises DataError for a number below 1 or a missing template.
    """
    if num_processes < 1:
        raise DataError(f"num_processes is {num_processes}; expected at least 1")
    folder, tasks = phantom_folder(settings, cache_root), plan_tasks(settings)
    if not folder.is_complete:
        load_atlas(cache_root)  # built once here, so that the workers find it
        partial = PhantomFolder(root=cache_root / f".{folder.root.name}-{uuid.uuid4().hex[:8]}")
        try:
            yield from _write_all(settings, tasks, partial, cache_root, num_processes)
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial.root, ignore_errors=True)
    yield WriteProgress(num_done=len(tasks), num_total=len(tasks))


def plan_tasks(settings: PhantomSettings) -> tuple[PhantomTask, ...]:
    """List every slice: classes in turn, each its own scene; after each round of classes another site."""
    scanners = [draw_scanner(settings.seed, site, settings.site_variation) for site in range(settings.num_sites)] or [
        NOMINAL_SCANNER
    ]
    tasks = []
    for name, num_images in (
        ("Training", settings.num_train),
        ("Testing", settings.num_test),
        ("Synthetic", settings.num_synthetic),
    ):
        for position in range(num_images):
            label, site = position % len(CLASSES), position // len(CLASSES) % len(scanners)
            at_site = name == "Training" and settings.num_sites > 0
            tasks.append(
                PhantomTask(
                    folder=f"sites/site-{site + 1:03d}" if at_site else name,
                    label=label,
                    index=FIRST_INDEX[name] + position,
                    scanner=NOMINAL_SCANNER if name == "Synthetic" else scanners[site],
                )
            )
    return tuple(tasks)


def _write_all(
    settings: PhantomSettings,
    tasks: tuple[PhantomTask, ...],
    folder: PhantomFolder,
    cache_root: Path,
    num_processes: int,
) -> Iterator[WriteProgress]:
    """Write every task's files and the manifest into `folder`."""
    for relative in sorted({str(Path(task.stem).parent) for task in tasks}):
        (folder.images / relative).mkdir(parents=True)
        (folder.masks / relative).mkdir(parents=True)
    jobs = [tasks[start : start + _TASKS_PER_JOB] for start in range(0, len(tasks), _TASKS_PER_JOB)]
    worker = _Worker(settings=settings, folder=folder, cache_root=cache_root)
    digest, num_done = hashlib.sha256(), 0
    with closing(_run_jobs(worker, jobs, num_processes)) as listings:
        for listing in listings:
            digest.update(listing.encode())
            num_done += listing.count(".jpg\n")
            yield WriteProgress(num_done=num_done, num_total=len(tasks))
    manifest = {
        "generator": GENERATOR_VERSION,
        "settings": settings.model_dump(),
        "num_images": len(tasks),
        "files_sha256": digest.hexdigest(),
    }
    folder.manifest.write_text(json.dumps(manifest, indent=2) + "\n")


def _run_jobs(
    worker: _Worker, jobs: Iterable[tuple[PhantomTask, ...]], num_processes: int
) -> Generator[str, None, None]:
    """Yield each job's listing in the order of the jobs."""
    if num_processes == 1:
        num_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield from map(worker, jobs)
        finally:
            cv2.setNumThreads(num_threads)
        return
    pool = ProcessPoolExecutor(
        num_processes, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        yield from pool.map(worker, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Worker:
    """Writes one job's files. It travels to the workers by value, so it holds paths, not the atlas."""

    settings: PhantomSettings
    folder: PhantomFolder
    cache_root: Path

    def __call__(self, tasks: tuple[PhantomTask, ...]) -> str:
        """Return the job's listing: one "<sha256>  <path>" a line, image then mask."""
        atlas = _atlas_of_this_process(self.cache_root)
        return "".join(self._write(atlas, task) for task in tasks)

    def _write(self, atlas: Atlas, task: PhantomTask) -> str:
        phantom = make_phantom(atlas, label=task.label, index=task.index, settings=self.settings, scanner=task.scanner)
        image = _encode(phantom.image_HW, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        mask = _encode(phantom.mask_HW.astype(np.uint8) * 255, ".png", [])
        (self.folder.images / f"{task.stem}.jpg").write_bytes(image)
        (self.folder.masks / f"{task.stem}.png").write_bytes(mask)
        image_sha256, mask_sha256 = hashlib.sha256(image).hexdigest(), hashlib.sha256(mask).hexdigest()
        return f"{image_sha256}  images/{task.stem}.jpg\n{mask_sha256}  masks/{task.stem}.png\n"


_atlases: dict[Path, Atlas] = {}


def _atlas_of_this_process(cache_root: Path) -> Atlas:
    if cache_root not in _atlases:
        _atlases[cache_root] = load_atlas(cache_root)
    return _atlases[cache_root]


def _encode(image_HW: NDArray[np.uint8], suffix: str, options: list[int]) -> bytes:
    done, encoded = cv2.imencode(suffix, image_HW, options)
    if not done:
        raise DataError(f"OpenCV could not encode a {suffix} of shape {image_HW.shape}; its build lacks the codec")
    return encoded.tobytes()


def _publish(partial: PhantomFolder, folder: PhantomFolder) -> None:
    """Rename into place; where another process was quicker, its folder holds the same bytes and stays."""
    try:
        partial.root.replace(folder.root)
    except OSError:
        if not folder.is_complete:
            raise
