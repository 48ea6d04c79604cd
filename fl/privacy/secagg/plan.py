"""What all parties of one secure round must agree on. Its digest is in every message and every derived key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import ceil
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fl.errors import SecureAggregationError
from fl.privacy.secagg.encoding import ArraySpec, RingEncoding
from fl.privacy.secagg.graph import choose_degree, ring_neighbours, ring_order

_DOMAIN = b"gliofed secure aggregation, plan, version 1\0"


@dataclass(frozen=True, kw_only=True, slots=True)
class SecAggPlan:
    """One secure round.

    sites: names, sorted; a site's place, counted from 1, is the point of its Shamir shares. neighbours: how many sites
    each one masks with; even, or all others. threshold: shares that rebuild a secret, more than half of the
    neighbours + 1 holders. min_survivors: fewest sites that a sum may have. context: what else the parties must agree
    on, such as a digest of the job. Raises SecureAggregationError for anything else.
    """

    round: int
    sites: tuple[str, ...]
    neighbours: int
    threshold: int
    min_survivors: int
    encoding: RingEncoding
    context: bytes

    def __post_init__(self) -> None:
        n, k, t = len(self.sites), self.neighbours, self.threshold
        faults = [
            (n < 2, f"{n} sites; a sum of fewer than two is no secret"),
            (list(self.sites) != sorted(set(self.sites)), f"sites {self.sites} are not sorted or not distinct"),
            (not (k == n - 1 or (0 < k < n - 1 and k % 2 == 0)), f"{k} neighbours among {n} sites; expected even"),
            (not (k + 1) // 2 < t <= k + 1, f"threshold {t} of {k + 1} holders of a secret; expected more than half"),
            (not 2 <= self.min_survivors <= n, f"min_survivors {self.min_survivors} of {n} sites; expected 2 to {n}"),
            (self.encoding.num_sites < n, f"the encoding has room for {self.encoding.num_sites} sites, not for {n}"),
        ]  # fmt: skip
        for wrong, reason in faults:
            if wrong:
                raise SecureAggregationError("plan", reason)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the plan."""
        return _digest(self)

    def point(self, site: str) -> int:
        """Return the point of the site's shares."""
        return _points(self)[site]

    def neighbours_of(self, site: str) -> tuple[str, ...]:
        """Return the sites that `site` masks and shares with, sorted."""
        return _neighbours(self)[site]

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        facts = asdict(self) | {"context": self.context.hex()}
        return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> SecAggPlan:
        """Read a plan. Raises SecureAggregationError where it is none."""
        try:
            facts = json.loads(data)
            encoding = facts["encoding"]
            encoding["arrays"] = tuple(ArraySpec(**array) for array in encoding["arrays"])
            facts["encoding"] = RingEncoding(**encoding)
            facts["sites"] = tuple(facts["sites"])
            facts["context"] = bytes.fromhex(facts["context"])
            return cls(**facts)
        except (ValueError, KeyError, TypeError) as error:
            raise SecureAggregationError("plan", f"not a plan of this version: {error}") from error


class SecureAggregationSettings(BaseModel):
    """How much a secure round must withstand; the graph of masks and the threshold follow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    colluding: float = Field(
        0.15, ge=0, lt=0.5, description="Fraction of sites, rounded up, that may work together with the server."
    )
    dropping: float = Field(
        0.2, ge=0, lt=0.5, description="Fraction of sites, rounded up, that may drop out of a round; more fail it."
    )
    ring_bits: Literal[32, 64] = Field(32, description="Bits of a masked value; 64 doubles what is sent.")
    clip: float = Field(
        1.0, gt=0, description="Largest magnitude of an update's entry; larger ones are clipped, counted and reported."
    )

    def plan(
        self, *, round: int, sites: Sequence[str], arrays: Sequence[ArraySpec], context: bytes, max_weight: int = 1,
        ring_bits: Literal[32, 64] | None = None,
    ) -> SecAggPlan:  # fmt: skip
        """Return the plan of one round over these sites. ring_bits: instead of the settings', for analytic sums.

        Raises SecureAggregationError where the sites are fewer than two or named twice, ValueError where the ring has
        no room.
        """
        n = len(sites)
        dropping = min(_rounded_up(self.dropping, n), max(n - 2, 0))
        degree = choose_degree(max(n, 2), _rounded_up(self.colluding, n), dropping)
        return SecAggPlan(
            round=round,
            sites=tuple(sorted(sites)),
            neighbours=degree.neighbours,
            threshold=degree.threshold,
            min_survivors=max(n - dropping, 2),
            encoding=RingEncoding(
                bits=ring_bits or self.ring_bits, num_sites=max(n, 1), arrays=tuple(arrays), max_weight=max_weight
            ),
            context=context,
        )


def _rounded_up(fraction: float, count: int) -> int:
    return ceil(fraction * count - 1e-9)  # 0.2 of 15 sites is 3, though 0.2 * 15 is a little more


@lru_cache(maxsize=8)
def _digest(plan: SecAggPlan) -> bytes:
    return hashlib.sha256(_DOMAIN + plan.to_bytes()).digest()


@lru_cache(maxsize=8)
def _points(plan: SecAggPlan) -> dict[str, int]:
    return {site: place + 1 for place, site in enumerate(plan.sites)}


@lru_cache(maxsize=8)
def _neighbours(plan: SecAggPlan) -> dict[str, tuple[str, ...]]:
    order = ring_order(plan.sites, plan.digest)
    return {site: ring_neighbours(order, site, plan.neighbours) for site in order}
