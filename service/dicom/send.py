"""Results on their way: C-STORE to a peer, or files in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import (
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, _config
from pynetdicom.association import Association

from fl.durable import write_file
from service.dicom.errors import DeliveryError
from service.dicom.settings import PeerSettings

_config.LOG_HANDLER_LEVEL = "none"  # its own log quotes what it sends and takes

RESULT_CLASSES = (SecondaryCaptureImageStorage, ParametricMapStorage, EnhancedSRStorage)
_CONVERTED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

Deliver = Callable[[Sequence[Path]], None]
"""Hands files over and deletes each that arrived. Raises DeliveryError if one did not."""


def send(files: Sequence[Path], peer: PeerSettings, *, own_title: str, timeout_seconds: float) -> None:
    """Send DICOM files of results by C-STORE in one association; each that the peer took is deleted.

    Raises DeliveryError if the peer cannot be reached, or after the last file if it did not take one of them. A
    warning status counts as taken.
    """
    refused = []
    with _associated(peer, own_title, timeout_seconds) as association:
        for path in files:
            try:
                status = association.send_c_store(dcmread(path)).get("Status")
            except (ValueError, RuntimeError) as error:  # class not accepted; association lost
                refused.append(f"{path.name}: {error}")
                continue
            if status is not None and (status == 0 or status >> 12 == 0xB or status == 1):
                path.unlink()
            else:
                refused.append(f"{path.name}: " + ("no answer" if status is None else f"status 0x{status:04X}"))
    if refused:
        raise DeliveryError(f"{peer.ae_title} at {peer.host}:{peer.port} did not take " + "; ".join(refused))


def store(files: Sequence[Path], folder: Path) -> None:
    """Move DICOM files of results into a folder, named by what they are and their UID. Raises DeliveryError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in files:
            name = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
            write_file(folder / f"{path.stem}-{name}.dcm", path.read_bytes())
            path.unlink()
    except OSError as error:
        raise DeliveryError(
            f"{folder}: results cannot be written ({error.strerror}); free space or give another"
        ) from error


@contextmanager
def _associated(peer: PeerSettings, own_title: str, timeout_seconds: float) -> Iterator[Association]:
    entity = AE(ae_title=own_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_seconds
    entity.connection_timeout = timeout_seconds
    for sop_class in RESULT_CLASSES:
        entity.add_requested_context(sop_class, _CONVERTED)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if not association.is_established:
        raise DeliveryError(
            f"no association with {peer.ae_title} at {peer.host}:{peer.port}; check that it runs, and that it knows "
            f"{own_title}"
        )
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
