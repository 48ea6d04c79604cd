"""Images that wait for an answer and results that wait for delivery, on disk, so that a restart loses neither.

    received/<key>.dcm     accepted, not yet answered
    outgoing/<key>/*.dcm   results not yet delivered; `attempts` counts the tries
    failed/<key>/          what was given up: the image or the undelivered results, and `reason.txt`

A key is the SHA-256 of the image's bytes, so the same image sent twice waits once and no name tells whose it is. The
files themselves name the patient: the folder is for this user's eyes, and its disk should be encrypted.
"""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl.durable import fsync_folder, write_file
from service.dicom.errors import DeliveryError

_ATTEMPTS = "attempts"


class SpoolFull(DeliveryError):
    """As many images wait as may; the sender should come again later."""


class Spool:
    """The three folders. Safe for several threads of one process; two processes must not share one."""

    def __init__(self, folder: Path, *, max_waiting: int) -> None:
        """Open or make the folder; what waits in it from before waits on. Raises DeliveryError if it cannot be used."""
        self._received, self._outgoing, self._failed = (folder / name for name in ("received", "outgoing", "failed"))
        try:
            for part in (folder, self._received, self._outgoing, self._failed):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            waiting = sorted(self._received.glob("*.dcm"), key=lambda path: path.stat().st_mtime)
            for left_over in self._outgoing.glob(".*.part"):
                shutil.rmtree(left_over)  # its image is still in received/
        except OSError as error:
            raise DeliveryError(
                f"{folder}: cannot be the spool ({error}); give a folder that can be written"
            ) from error
        self._lock = threading.Lock()
        self._max_waiting = max_waiting
        self._waiting = {path.stem for path in waiting}
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        for path in waiting:
            self._queue.put(path.stem)

    @property
    def num_waiting(self) -> int:
        """How many images wait for an answer, the one in work included."""
        return len(self._waiting)

    @property
    def num_failed(self) -> int:
        """How many images or their results were given up and not taken away since."""
        return sum(1 for _ in self._failed.iterdir())

    def admit(self, data: bytes) -> str:
        """Keep an image until it is answered and return its key. Raises SpoolFull; on return it is on the disk."""
        key = hashlib.sha256(data).hexdigest()
        with self._lock:
            if key in self._waiting:
                return key
            if len(self._waiting) >= self._max_waiting:
                raise SpoolFull(f"{len(self._waiting)} images wait for an answer already; send again later")
            try:
                write_file(self._received / f"{key}.dcm", data)
            except OSError as error:
                raise SpoolFull(
                    f"the spool's disk takes no more ({error.strerror}); free space and send again"
                ) from error
            self._waiting.add(key)
        self._queue.put(key)
        return key

    def next_image(self, seconds: float) -> str | None:
        """Return the key of the image that waited longest, None if none came in that time."""
        try:
            return self._queue.get(timeout=seconds)
        except queue.Empty:
            return None

    def read(self, key: str) -> bytes:
        """Return a waiting image's bytes."""
        return (self._received / f"{key}.dcm").read_bytes()

    def answered(self, key: str, results: Mapping[str, bytes]) -> None:
        """Put an image's results, by file name, into outgoing/ in one step, and let go of the image."""
        part, parcel = self._outgoing / f".{key}.part", self._outgoing / key
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        for name, data in results.items():
            write_file(part / name, data)
        shutil.rmtree(parcel, ignore_errors=True)  # an earlier answer to the same image, not delivered yet
        part.rename(parcel)
        fsync_folder(self._outgoing)
        self._forget(key)

    def give_up_image(self, key: str, reason: str) -> None:
        """Move an image that cannot be answered to failed/."""
        home = self._failed_home(key, reason)
        (self._received / f"{key}.dcm").replace(home / "image.dcm")
        self._forget(key)

    def parcels(self) -> list[str]:
        """Return the keys of results that are not delivered yet."""
        return sorted(path.name for path in self._outgoing.iterdir() if not path.name.startswith("."))

    def contents(self, key: str) -> Sequence[Path]:
        """Return a parcel's files that are not delivered yet."""
        return sorted((self._outgoing / key).glob("*.dcm"))

    def delivered(self, key: str) -> None:
        """Let go of a parcel."""
        shutil.rmtree(self._outgoing / key)

    def count_attempt(self, key: str) -> int:
        """Count one more try that failed, over restarts, and return how many there were."""
        counter = self._outgoing / key / _ATTEMPTS
        tries = 1 + (int(counter.read_text()) if counter.exists() else 0)
        write_file(counter, str(tries).encode())
        return tries

    def give_up_parcel(self, key: str, reason: str) -> None:
        """Move results that could not be delivered to failed/."""
        home = self._failed_home(key, reason)
        for path in self.contents(key):
            path.replace(home / path.name)
        self.delivered(key)

    def _failed_home(self, key: str, reason: str) -> Path:
        home = self._failed / key
        home.mkdir(mode=0o700, exist_ok=True)
        write_file(home / "reason.txt", f"{reason}\n".encode())
        return home

    def _forget(self, key: str) -> None:
        (self._received / f"{key}.dcm").unlink(missing_ok=True)
        with self._lock:
            self._waiting.discard(key)
