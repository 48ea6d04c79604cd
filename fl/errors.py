"""Everything that `fl` raises on purpose.

GliofedError
├── DataError       a folder, split or partition cannot be used as asked
├── WeightsError    pretrained weights cannot be had or do not fit the network
├── UpdateRefused   one site's reply is not usable (shape, NaN, stale); carries the site's name
├── QuorumLost      too few sites replied for a round to count
├── CheckpointError no valid checkpoint to resume from, or one that belongs to another job
└── Stopped         a signal asked to stop; everything up to the last checkpoint is on disk
"""

from __future__ import annotations


class GliofedError(Exception):
    """Base of all deliberate failures; the command line prints the message alone and exits 1."""


class DataError(GliofedError):
    """A folder, split or partition cannot be used as asked."""


class WeightsError(GliofedError):
    """Pretrained weights cannot be had, or do not fit the network."""


class UpdateRefused(GliofedError):
    """One site's reply is not usable; the round goes on without it."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"update of site {site!r} refused: {reason}")
        self.site = site
        self.reason = reason


class QuorumLost(GliofedError):
    """Too few sites replied for a round to count."""


class CheckpointError(GliofedError):
    """No valid checkpoint to resume from, or one that belongs to another job."""


class Stopped(GliofedError):
    """A signal asked the job to stop; everything up to the last checkpoint is on disk."""
