"""Everything that `fl` raises on purpose.

GliofedError
├── DataError       a folder, split or partition cannot be used as asked
├── WeightsError    pretrained weights cannot be had or do not fit the network
├── ProtocolError   a message between server and site does not say what it must
├── UpdateRefused   one site's reply is not usable (shape, NaN, stale); carries the site's name
├── SiteStateError  what a site remembers of its rounds is missing or damaged
├── StatisticsError sums over features cannot be formed, added or solved
├── QuorumLost      too few sites replied for a round to count
├── SecureAggregationError  a round's masked sum cannot be had, or a message of its protocol is refused
├── CheckpointError no valid checkpoint to resume from, or one that belongs to another job
├── HospitalError   keys, certificates, or the line between a site and the coordinator are not in order
│   └── AuditLogError  an audit log cannot be written or read, or was changed after it was written
└── Stopped         a signal asked to stop; everything up to the last checkpoint is on disk
"""

from __future__ import annotations


class GliofedError(Exception):
    """Base of all deliberate failures; the command line prints the message alone and exits 1."""


class DataError(GliofedError):
    """A folder, split or partition cannot be used as asked."""


class WeightsError(GliofedError):
    """Pretrained weights cannot be had, or do not fit the network."""


class ProtocolError(GliofedError):
    """A message between server and site does not say what it must."""


class UpdateRefused(GliofedError):
    """One site's reply is not usable; the round goes on without it."""

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"update of site {site!r} refused: {reason}")
        self.site = site
        self.reason = reason


class SiteStateError(GliofedError):
    """What a site remembers of its rounds is missing or damaged; the round goes on without the site."""


class StatisticsError(GliofedError):
    """Sums over features cannot be formed, added, or solved for a head."""


class QuorumLost(GliofedError):
    """Too few sites replied for a round to count."""


class SecureAggregationError(GliofedError):
    """A message of the secure aggregation is refused, or the round's sum cannot be had; never a wrong sum.

    phase: "plan", "advertise keys", "share keys", "masked input" or "unmask". site: whose message it is, or None
    where the fault is no single site's.
    """

    def __init__(self, phase: str, reason: str, *, site: str | None = None) -> None:
        of = "" if site is None else f", site {site!r}"
        super().__init__(f"secure aggregation, {phase}{of}: {reason}")
        self.phase = phase
        self.site = site
        self.reason = reason


class CheckpointError(GliofedError):
    """No valid checkpoint to resume from, or one that belongs to another job."""


class HospitalError(GliofedError):
    """Keys, certificates, or the line between a site and the coordinator are not in order."""


class AuditLogError(HospitalError):
    """An audit log cannot be written or read, is held by another process, or was changed after it was written."""


class Stopped(GliofedError):
    """A signal asked the job to stop; everything up to the last checkpoint is on disk."""
