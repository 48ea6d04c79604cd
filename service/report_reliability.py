"""Geometry of the diagram that sets what the model said against what came true."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.report_charts import Frame, Tick, path_of, steps
from service.report_release import Bin, Reliability
from service.report_text import percent

LARGEST_SPOT = 11.0
SMALLEST_SPOT = 2.2
"""Radii, in user units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A group of scans on a reliability diagram; its area goes with their number."""

    x: float
    y: float
    radius: float
    tip: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One set of probabilities on a reliability diagram."""

    name: str
    slot: int
    path: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityChart:
    """A reliability diagram; the line of true probabilities runs from corner to corner."""

    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    traces: tuple[Trace, ...]


def reliability_chart(figures: Mapping[str, Reliability]) -> ReliabilityChart | None:
    """Return what was said against what came true, one trace a set of figures; None where there is nothing to draw."""
    frame = Frame(width=400, height=402, left=56, right=386, top=30, bottom=356, x_range=(0.0, 1.0), y_range=(0.0, 1.0))
    traces = [_trace(name, slot, found.bins, frame) for slot, (name, found) in enumerate(figures.items())]
    if not any(trace.spots for trace in traces):
        return None
    ticks = steps(0.0, 1.0, 0.2)
    return ReliabilityChart(
        frame=frame,
        x_ticks=tuple((frame.x(value), f"{value * 100:.0f} %") for value in ticks),
        y_ticks=tuple((frame.y(value), f"{value * 100:.0f} %") for value in ticks),
        traces=tuple(traces),
    )


def _trace(name: str, slot: int, bins: Sequence[Bin], frame: Frame) -> Trace:
    drawn = [one for one in bins if one.count > 0 and math.isfinite(one.confidence) and math.isfinite(one.accuracy)]
    drawn.sort(key=lambda one: one.confidence)
    most = max((one.count for one in drawn), default=1)
    spots = tuple(
        Spot(
            x=frame.x(one.confidence),
            y=frame.y(one.accuracy),
            radius=round(max(SMALLEST_SPOT, LARGEST_SPOT * math.sqrt(one.count / most)), 1),
            tip=f"{name}: said {percent(one.confidence)}, right {percent(one.accuracy)} "
            f"({one.count} {'scan' if one.count == 1 else 'scans'})",
        )
        for one in drawn
    )
    path = path_of({at: (spot.x, spot.y) for at, spot in enumerate(spots)})
    return Trace(name=name, slot=slot, path=path, spots=spots)
