"""Between receiving and delivering: one thread answers images, another hands the results over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from service.dicom.errors import UnreadableDicom
from service.dicom.model import Engine
from service.dicom.objects import answer_slices, file_bytes, kind_of
from service.dicom.read import DicomSlices, check_dicom, read_slices
from service.dicom.send import Deliver
from service.dicom.settings import DicomSettings
from service.dicom.source import source_of
from service.dicom.spool import Spool

LOG = logging.getLogger("gliofed.dicom")
Note = Callable[[str, DicomSlices], bool]
_POLL_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 900.0


class Desk:
    """Takes images in, lets the model answer them one after the other, and delivers the results.

    One answer an image: the images of a study are not grouped and not weighed against each other.
    """

    def __init__(
        self,
        settings: DicomSettings,
        spool: Spool,
        engine: Callable[[], Engine | None],
        deliver: Deliver,
        note: Note | None = None,
    ) -> None:
        """engine: asked for anew for every image, so that a model may be exchanged; it may wait for one, and gives None
        where none comes before the end: then the image waits for the next start. Call `start`.

        note: told of every image that was answered, by its key, before the results can leave; it may wait, and returns
        whether they may.
        """
        self._settings, self._spool, self._engine, self._deliver = settings, spool, engine, deliver
        self._note = note
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"dicom-{work.__name__.strip('_')}", daemon=True)
            for work in (self._answer_all, self._deliver_all)
        ]

    def start(self) -> None:
        """Begin to answer and to deliver what waits."""
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float = 30) -> None:
        """Finish the image and the delivery in work, no further; what waits stays in the spool."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(seconds)

    def receive(self, data: bytes) -> str:
        """Take an image in and return its key; on return it is on the disk.

        Raises UnreadableDicom for what could not be answered, as far as its header tells, and SpoolFull.
        """
        source_of(check_dicom(data, self._settings.limits), 0)
        key = self._spool.admit(data)
        LOG.info("image %s received, %d wait", key[:12], self._spool.num_waiting)
        return key

    def undelivered(self) -> int:
        """Return how many images wait for their answer or its delivery."""
        return self._spool.num_waiting + len(self._spool.parcels())

    def given_up(self) -> int:
        """Return how many images lie in failed/, unanswered or undelivered."""
        return self._spool.num_failed

    def _answer_all(self) -> None:
        while not self._stopping.is_set():
            key = self._spool.next_image(_POLL_SECONDS)
            if key is not None:
                self._answer(key)

    def _answer(self, key: str) -> None:
        started = time.monotonic()
        try:
            slices = read_slices(self._spool.read(key), self._settings.limits, frames=self._settings.frames)
            if (engine := self._engine()) is None:
                return  # it stays in received/ for the next start
            made = answer_slices(slices, engine)
            if self._note is not None and not self._note(key, slices):
                return  # likewise
            names = [f"{number:04d}-{kind_of(one)}.dcm" for number, one in enumerate(made)]
            self._spool.answered(key, {name: file_bytes(one) for name, one in zip(names, made, strict=True)})
        except UnreadableDicom as error:
            self._give_up(key, error.reason)
        except Exception as error:  # a model's or a disk's fault must not end the thread that answers
            self._give_up(key, f"{type(error).__name__} while answering; the image is kept")
        else:
            LOG.info("image %s answered in %.2f s", key[:12], time.monotonic() - started)

    def _give_up(self, key: str, reason: str) -> None:
        LOG.warning("image %s not answered: %s", key[:12], reason)
        try:
            self._spool.give_up_image(key, reason)
        except OSError as error:
            LOG.error("image %s stays in received/: %s", key[:12], error.strerror)

    def _deliver_all(self) -> None:
        due: dict[str, float] = {}
        while not self._stopping.wait(_POLL_SECONDS):
            keys = self._spool.parcels()
            due = {key: at for key, at in due.items() if key in keys}
            for key in keys:
                if self._stopping.is_set():
                    return
                if time.monotonic() < due.get(key, 0):
                    continue
                try:
                    wait = self._hand_over(key)
                except (OSError, ValueError) as error:  # the spool itself cannot be read or written
                    LOG.error("results of %s stay in outgoing/: %s", key[:12], type(error).__name__)
                    wait = _LONGEST_WAIT_SECONDS
                due[key] = time.monotonic() + wait

    def _hand_over(self, key: str) -> float:
        """Try to deliver a parcel; return how many seconds to wait before the next try."""
        try:
            self._deliver(self._spool.contents(key))
            self._spool.delivered(key)
        except Exception as error:  # whatever it is, it must neither end the thread nor be tried without end
            tries = self._spool.count_attempt(key)
            if tries >= self._settings.attempts:
                self._spool.give_up_parcel(key, f"not delivered after {tries} tries: {error}")
                LOG.error("results of %s put aside in failed/ after %d tries: %s", key[:12], tries, error)
                return 0
            wait: float = min(self._settings.retry_seconds * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS)
            LOG.warning("results of %s not delivered, try %d, next in %.0f s: %s", key[:12], tries, wait, error)
            return wait
        LOG.info("results of %s delivered", key[:12])
        return 0
