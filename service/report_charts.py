"""Geometry of the report's charts: from numbers to coordinates. The templates draw it, and escape every name.

Coordinates are SVG user units, y downwards. A value that is not finite leaves a gap, never a false point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from service.report_data import Arm, Round
from service.report_text import number, percent, shorten

Point = tuple[float, float]
Tick = tuple[float, str]
MAX_SLOTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A plot's outer size, inner box, and the values at the box's edges."""

    width: float = 560
    height: float = 270
    left: float = 52
    right: float = 450
    top: float = 14
    bottom: float = 232
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Return the abscissa of a value."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Return the ordinate of a value, held within the box."""
        low, high = self.y_range
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.bottom - share * (self.bottom - self.top), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One arm's curve. `slot` picks its colour; marks are None where there is nothing to mark."""

    name: str
    slot: int
    path: str
    dots: tuple[Point, ...]
    best: Point | None
    stop: Point | None
    start: Point | None
    label: Point | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One round's full-height strip, which carries the words of its tooltip."""

    x: float
    centre: float
    width: float
    tip: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LineChart:
    """Everything that a curve panel draws."""

    title: str
    frame: Frame
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    chance: float | None
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]


def accuracy_chart(arms: Mapping[str, Arm], *, num_classes: int) -> LineChart:
    """Return validation accuracy per round. The axis starts below all values, at 80 % at most."""
    values = [entry.validation_accuracy for arm in arms.values() for entry in arm.history]
    values += [arm.warmup.validation_accuracy for arm in arms.values() if arm.warmup]
    lowest = min(filter(math.isfinite, values), default=0.0)
    floor = min(max(math.floor(lowest * 10 - 0.3) / 10, 0.0), 0.8)
    frame = Frame(x_range=_round_range(arms), y_range=(floor, 1.0))
    step = 0.05 if floor >= 0.75 else 0.1 if floor >= 0.45 else 0.2
    ticks = [value for value in steps(0.0, 1.0, step) if value >= floor - 1e-9]
    return LineChart(
        title="Validation accuracy",
        frame=frame,
        x_ticks=_round_ticks(frame),
        y_ticks=tuple((frame.y(value), f"{value * 100:.0f} %") for value in ticks),
        chance=frame.y(1 / num_classes) if num_classes and floor < 1 / num_classes else None,
        lines=_lines(arms, frame, {n: [e.validation_accuracy for e in a.history] for n, a in arms.items()}, True),
        columns=_columns(arms, frame, lambda entry: percent(entry.validation_accuracy)),
    )


def loss_chart(arms: Mapping[str, Arm]) -> LineChart:
    """Return validation loss per round, from zero."""
    losses = {name: [entry.validation_loss for entry in arm.history] for name, arm in arms.items()}
    highest = max((v for of in losses.values() for v in of if math.isfinite(v)), default=1.0)
    step = nice_step(max(highest, 1e-6) / 4)
    frame = Frame(x_range=_round_range(arms), y_range=(0.0, step * math.ceil(max(highest, 1e-6) / step)))
    digits = max(0, -math.floor(math.log10(step)))
    return LineChart(
        title="Validation loss (cross-entropy)",
        frame=frame,
        x_ticks=_round_ticks(frame),
        y_ticks=tuple((frame.y(v), f"{v:.{digits}f}") for v in steps(0.0, frame.y_range[1], step)),
        chance=None,
        lines=_lines(arms, frame, losses, False),
        columns=_columns(arms, frame, lambda entry: number(entry.validation_loss)),
    )


def nice_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least` > 0."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _round_range(arms: Mapping[str, Arm]) -> tuple[float, float]:
    """Return the first and last abscissa; round 0 is where a warm start stands."""
    last = max((entry.round for arm in arms.values() for entry in arm.history), default=1)
    from_zero = last == 1 or any(arm.warmup for arm in arms.values())
    return (0.0 if from_zero else 1.0), float(last)


def _round_ticks(frame: Frame) -> tuple[Tick, ...]:
    low, last = (int(value) for value in frame.x_range)
    every = max(1, round(nice_step(max(last / 10, 1))))
    rounds = [r for r in range(low, last + 1) if r in (low, last) or r % every == 0]
    crowded = {r for r in rounds if r not in (low, last) and (last - r) * 2 < every}
    return tuple((frame.x(r), str(r)) for r in rounds if r not in crowded)


def steps(low: float, high: float, step: float) -> list[float]:
    return [low + index * step for index in range(round((high - low) / step) + 1)]


def _lines(
    arms: Mapping[str, Arm], frame: Frame, values: Mapping[str, Sequence[float]], with_start: bool
) -> tuple[Line, ...]:
    lines = [
        _line(name, arm, values[name], slot=slot, frame=frame, with_start=with_start)
        for slot, (name, arm) in enumerate(arms.items())
    ]
    return _spread_labels(lines)


def _line(name: str, arm: Arm, values: Sequence[float], *, slot: int, frame: Frame, with_start: bool) -> Line:
    points = {
        entry.round: (frame.x(entry.round), frame.y(value))
        for entry, value in zip(arm.history, values, strict=True)
        if math.isfinite(value)
    }
    last = max(points, default=None)
    start = None
    if with_start and arm.warmup and math.isfinite(arm.warmup.validation_accuracy):
        start = (frame.x(0), frame.y(arm.warmup.validation_accuracy))
    return Line(
        name=shorten(name, 14),
        slot=min(slot, MAX_SLOTS - 1),
        path=path_of(points),
        dots=tuple(points.values()) if len(points) <= 30 else (),
        best=points.get(arm.best_round),
        stop=points[last] if last is not None and arm.stopped_early else None,
        start=start,
        label=(points[last][0] + 12, points[last][1] + 4) if last is not None else None,
    )


def path_of(points: Mapping[int, Point]) -> str:
    """Return an SVG path that breaks where a round is missing."""
    pieces = [f"{'L' if r - 1 in points else 'M'}{x:g} {y:g}" for r, (x, y) in sorted(points.items())]
    return " ".join(pieces)


def _spread_labels(lines: Sequence[Line], gap: float = 17.0) -> tuple[Line, ...]:
    """Push labels that would overlap downwards, from the top one on."""
    moved, lowest = {}, -math.inf
    for line in sorted((line for line in lines if line.label), key=lambda line: line.label[1] if line.label else 0):
        assert line.label is not None
        lowest = max(line.label[1], lowest + gap)
        moved[line.name, line.slot] = replace(line, label=(line.label[0], lowest))
    return tuple(moved.get((line.name, line.slot), line) for line in lines)


def _columns(arms: Mapping[str, Arm], frame: Frame, words: Callable[[Round], str]) -> tuple[Column, ...]:
    told: dict[int, list[str]] = {}
    for name, arm in arms.items():
        for entry in arm.history:
            told.setdefault(entry.round, []).append(f"{shorten(name, 24)} {words(entry)}")
    spacing = (frame.right - frame.left) / max(frame.x_range[1] - frame.x_range[0], 1)
    return tuple(
        Column(
            x=round(frame.x(r) - spacing / 2, 1),
            centre=frame.x(r),
            width=round(spacing, 1),
            tip=f"Round {r}: " + ", ".join(parts),
        )
        for r, parts in sorted(told.items())
    )
