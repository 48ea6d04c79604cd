"""What a case is: our way and its peers' ways to the same result, and how far apart they should be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from benchmarks.contest import Contest
    from benchmarks.measure import Budget
    from benchmarks.row import Row

Run = Callable[[], Any]
"""Does a case's whole work once, all items, and returns what it made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """Another way to the same result.

    differs(ours, theirs) compares what the two runs made: None where they agree, else what is wrong, as one line.
    """

    name: str
    run: Run
    differs: Callable[[Any, Any], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a run with --check accepts of one figure: a smallest value or, where less is better, a largest.

    ratio: peer over ours. slowdown: ours over the peer, for what adds to the peer's work. limit_fraction: limit over
    ours. ours_seconds: ours by itself, where a user feels an absolute time.
    """

    figure: Literal["ratio", "slowdown", "limit_fraction", "ours_seconds"]
    at_least: float = -math.inf
    at_most: float = math.inf

    def __post_init__(self) -> None:
        if math.isfinite(self.at_least) == math.isfinite(self.at_most):
            raise ValueError(
                f"target for {self.figure}: at_least is {self.at_least}, at_most is {self.at_most}; give one of them"
            )

    def __str__(self) -> str:
        if math.isfinite(self.at_least):
            return f"≥ {self.at_least:g}"
        return f"{self.figure} ≤ {self.at_most:g}"

    def is_met(self, value: float) -> bool:
        """Return whether the figure's value is good enough."""
        return self.at_least <= value <= self.at_most

    def to_json(self) -> dict[str, float]:
        """Return {figure: least}, or {figure_at_most: most}."""
        if math.isfinite(self.at_least):
            return {self.figure: self.at_least}
        return {f"{self.figure}_at_most": self.at_most}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One line of a suite.

    items: how many one run does; seconds are told an item. peers, limits: the fastest of each counts. A limit is a run
    that does only what no way to the result can avoid, so it makes nothing to compare. clock: seconds, wall time unless
    the case is about something else.
    """

    name: str
    items: int
    ours: Run
    peers: tuple[Peer, ...]
    limits: tuple[Run, ...] = ()
    target: Target | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if self.items < 1 or not self.peers:
            raise ValueError(
                f"case {self.name!r} has {self.items} items and {len(self.peers)} peers, expected 1 or more"
            )
        if self.target is not None and self.target.figure == "limit_fraction" and not self.limits:
            raise ValueError(f"case {self.name!r} has a target for limit_fraction and no limit to measure it by")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A case that measures itself, because what it is about is no call that could be repeated."""

    name: str
    run: Callable[[Budget], list[Row]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Cases in the order of the table; made one at a time, so that their buffers do not add up.

    inputs: what they all work on, as one line.
    """

    inputs: str
    cases: Iterable[Case | Contest | Trial]
