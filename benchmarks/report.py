"""The table that a suite prints and the file that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.row import Row
from service.progress import Display

HEADER = ("case", "fastest peer", "correct", "ours", "peer", "ratio", "quartiles", "of limit", "target", "pairs")


def print_table(display: Display, title: str, rows: Sequence[Row]) -> None:
    """Print one line a case and, below, CPU times, remarks and what was wrong with wrong results."""
    display.table(title, HEADER, [_cells(row) for row in rows], num_text_columns=3)
    for row in rows:
        if row.cpu_seconds is not None:
            ours, theirs = map(_duration, row.cpu_seconds)
            display.say(f"{row.case}: CPU time of all processes, ours {ours}, peer {theirs}")
        for remark in row.remarks:
            display.say(f"{row.case}: {remark}")
        if row.complaint is not None:
            display.say(f"WRONG RESULT in {row.case}: {row.complaint}")


def write_json(path: Path, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write machine and cases; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    text = json.dumps({"machine": machine, "cases": [row.to_json() for row in rows]}, indent=1, allow_nan=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def _cells(row: Row) -> tuple[str, ...]:
    low, high = row.ratio_quartiles
    return (
        row.case,
        row.peer,
        "yes" if row.complaint is None else "WRONG",
        _duration(row.ours_seconds),
        _duration(row.peer_seconds),
        f"{row.ratio:.2f}",
        f"{low:.2f}–{high:.2f}",
        "" if row.limit_fraction is None else f"{row.limit_fraction:.2f}",
        _target(row),
        str(row.samples),
    )


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    return f"{row.target} {'missed' if row.misses_target else 'met'}"


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:#.3g} {unit}".replace(". ", " ")
    return f"{seconds * 1e9:.0f} ns"


def title_of(machine: Mapping[str, Any]) -> str:
    """The machine in one line above the table."""
    gpu = "" if machine["gpu"] is None else f", {machine['gpu']}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}{gpu}; load before the suite "
        f"{machine['load_average']}; seconds are an item's"
    )
