"""The DICOM side of `gliofed serve`: what it starts beside HTTP, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pynetdicom.transport import ThreadedAssociationServer

from service.dicom.desk import Desk, Note
from service.dicom.model import Engine
from service.dicom.scp import start_scp
from service.dicom.send import Deliver, send, store
from service.dicom.settings import DicomSettings
from service.dicom.spool import Spool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DicomService:
    """A running DICOM side. desk: takes images in, for STOW-RS as well. port: where the SCP listens."""

    desk: Desk
    port: int
    server: ThreadedAssociationServer

    def stop(self) -> None:
        """Hang up, finish the image in work and end; what waits stays in the spool for the next start."""
        self.server.shutdown()
        self.desk.stop()


def start(settings: DicomSettings, engine: Callable[[], Engine | None], note: Note | None = None) -> DicomService:
    """Start the SCP and the threads that answer and deliver. engine: gives the model that answers, at every image.

    engine, note: see `Desk`.

    Raises DeliveryError where the spool or the port cannot be used.
    """
    desk = Desk(settings, Spool(settings.spool, max_waiting=settings.max_waiting), engine, _way_out(settings), note)
    server = start_scp(settings, desk)
    desk.start()
    return DicomService(desk=desk, port=server.server_address[1], server=server)


def _way_out(settings: DicomSettings) -> Deliver:
    if settings.send_to is not None:
        return partial(
            send, peer=settings.send_to, own_title=settings.ae_title, timeout_seconds=settings.timeout_seconds
        )
    assert settings.store_in is not None  # settings have one of the two
    return partial(store, folder=settings.store_in)
