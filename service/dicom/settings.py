"""Settings of DICOM in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MIB = 1 << 20
AeTitle = Annotated[str, StringConstraints(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
"""1 to 16 printable characters, no backslash, no space at either end (PS3.5, VR AE)."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DicomLimits(_Settings):
    """What a DICOM object may be before it is decoded; checked against its header, not its pixels."""

    max_file_bytes: int = Field(default=256 * MIB, ge=1024, description="Largest object, before and after inflating.")
    max_header_bytes: int = Field(default=16 * MIB, ge=1024, description="Most bytes that come before the pixel data.")
    max_side: int = Field(default=4096, ge=1, le=65535, description="Most rows, and most columns, of a frame.")
    max_frames: int = Field(default=64, ge=1, description="Most frames of one object that are answered.")
    other_modalities: Literal["refuse", "caution"] = Field(
        default="refuse", description="Objects that do not say MR: refuse them, or answer with a remark."
    )


class PeerSettings(_Settings):
    """A DICOM node that takes results by C-STORE."""

    ae_title: AeTitle = Field(description="Its application entity title.")
    host: str = Field(min_length=1, description="Its host name or address.")
    port: int = Field(ge=1, le=65535, description="Its port.")


class DicomSettings(_Settings):
    """The `dicom:` section: who may send images, how many at a time, and where the results go."""

    ae_title: AeTitle = Field(default="GLIOFED", description="Our application entity title; callers must name it.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 for all of this machine's.")
    port: int = Field(default=11112, ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")
    callers: tuple[AeTitle, ...] = Field(min_length=1, description="Titles of those who may send; nobody else may.")
    spool: Path = Field(description="Folder where images and results wait; holds patient data, survives restarts.")
    send_to: PeerSettings | None = Field(default=None, description="Where results are sent by C-STORE.")
    store_in: Path | None = Field(default=None, description="Folder where results are written instead.")
    frames: Literal["middle", "all"] = Field(default="middle", description="Frames answered of a multi-frame image.")
    limits: DicomLimits = Field(default_factory=DicomLimits, description="What an image may be.")
    max_pdu_bytes: int = Field(default=65536, ge=4096, le=1 << 20, description="Largest PDU that we take.")
    max_associations: int = Field(default=8, ge=1, le=64, description="Associations at the same time.")
    timeout_seconds: float = Field(default=30, gt=0, description="Longest silence of a peer before we hang up.")
    max_waiting: int = Field(default=256, ge=1, description="Images that may wait; more are refused with A700.")
    attempts: int = Field(default=10, ge=1, description="Tries to deliver a result before it is put aside.")
    retry_seconds: float = Field(default=5, gt=0, description="Wait before the second try; doubles, at most 15 min.")

    def model_post_init(self, _: object) -> None:
        """Refuse settings with no destination or two."""
        if (self.send_to is None) == (self.store_in is None):
            raise ValueError("give one of send_to and store_in: where the results go")
