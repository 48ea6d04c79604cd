"""From the samples of one case to its line in the table and in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.case import Case, Target
from benchmarks.measure import Budget, measure


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Figures of one case. complaint: what was wrong with a result, None where all agreed.

    Seconds are medians, an item. ratio (peer over ours) and limit_fraction (limit over ours) are medians of the
    quotients within one round, because a machine that slows down for a while slows both halves of a quotient;
    ratio_quartiles are the quartiles of those quotients.

    cpu_seconds: (ours, the peer's) over all processes, an item, where a case measures them. remarks: what else a
    reader has to know, above all what limits each side; one line each.
    """

    case: str
    ours_seconds: float
    peer: str
    peer_seconds: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    limit_fraction: float | None
    samples: int
    target: Target | None
    complaint: str | None
    cpu_seconds: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def misses_target(self) -> bool:
        """Whether the case has a target and misses it."""
        if self.target is None:
            return False
        reached = {"ratio": self.ratio, "slowdown": 1 / self.ratio, "limit_fraction": self.limit_fraction}
        reached["ours_seconds"] = self.ours_seconds
        value = reached[self.target.figure]
        return value is None or not self.target.is_met(value)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; to four digits, as many as a timing can bear. What was not measured is left out."""
        return {**self._figures(), **self._circumstances()}

    def _figures(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "ours_seconds": _digits(self.ours_seconds),
            "peer": self.peer,
            "peer_seconds": _digits(self.peer_seconds),
            "ratio": _digits(self.ratio),
            "ratio_quartiles": [_digits(quartile) for quartile in self.ratio_quartiles],
            "limit_fraction": None if self.limit_fraction is None else _digits(self.limit_fraction),
            "target": None if self.target is None else self.target.to_json(),
            "samples": self.samples,
            "correct": self.complaint is None,
        }

    def _circumstances(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.cpu_seconds is not None:
            found["ours_cpu_seconds"], found["peer_cpu_seconds"] = map(_digits, self.cpu_seconds)
        if self.remarks:
            found["remarks"] = list(self.remarks)
        return found


def run_case(case: Case, budget: Budget) -> Row:
    """Check the case, then measure it. A wrong result is timed all the same and told in the row."""
    complaint = _first_complaint(case)
    for limit in case.limits:
        limit()
    runs = (case.ours, *(peer.run for peer in case.peers), *case.limits)
    return summarise(case, measure(runs, budget, case.clock), complaint)


def summarise(case: Case, seconds_RC: NDArray[np.float64], complaint: str | None) -> Row:
    """The row of a case from measure()'s samples, whose columns are ours, the peers, the limits."""
    ours_R, peers_RC, limits_RC = np.split(seconds_RC, (1, 1 + len(case.peers)), axis=1)
    fastest = int(np.median(peers_RC, axis=0).argmin())
    ratio_R = peers_RC[:, fastest] / ours_R[:, 0]
    low, high = np.quantile(ratio_R, (0.25, 0.75))
    return Row(
        case=case.name,
        ours_seconds=float(np.median(ours_R)) / case.items,
        peer=case.peers[fastest].name,
        peer_seconds=float(np.median(peers_RC[:, fastest])) / case.items,
        ratio=float(np.median(ratio_R)),
        ratio_quartiles=(float(low), float(high)),
        limit_fraction=float(np.median(limits_RC / ours_R, axis=0).min()) if case.limits else None,
        samples=len(seconds_RC),
        target=case.target,
        complaint=complaint,
    )


def _first_complaint(case: Case) -> str | None:
    ours = case.ours()
    for peer in case.peers:
        if (complaint := peer.differs(ours, peer.run())) is not None:
            return f"{peer.name}: {complaint}"
    return None


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
