"""What this package raises on purpose."""

from __future__ import annotations

from fl.errors import GliofedError


class UnreadableDicom(GliofedError):
    """A DICOM object that cannot be answered. reason: what is the matter and what to do; names no patient."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeliveryError(GliofedError):
    """Results could not be handed to their destination this time."""
