"""Numbers and words as the report prints them. A number that is not there prints as a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

ABSENT = "–"
_THIN = "\u202f"
_LATE = re.compile(r"\blate\b|time[ds]?[ -]?(out|limit)|deadline|straggl", re.I)
_REFUSED = re.compile(r"refus|reject|\bnan\b|not finite|invalid|shape|stale", re.I)
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def percent(share: float, digits: int = 1) -> str:
    """Return 0.9512 as `95.1 %`. What is not quite all or nothing never rounds to 100 or 0."""
    if not math.isfinite(share):
        return ABSENT
    step = 10.0**-digits
    value = share * 100
    if 0 < share < 1:
        value = min(max(value, step), 100 - step)
    return f"{value:.{digits}f}{_THIN}%"


def interval(low_high: tuple[float, float]) -> str:
    """Return (0.938, 0.962) as `93.8 to 96.2 %`."""
    if not all(map(math.isfinite, low_high)):
        return ABSENT
    return f"{low_high[0] * 100:.1f} to {low_high[1] * 100:.1f}{_THIN}%"


def points(difference: float) -> str:
    """Return a difference of shares as signed percentage points, `+3.1 points`, with a true minus sign."""
    if not math.isfinite(difference):
        return ABSENT
    rounded = round(difference * 100, 1)
    return f"{rounded:+.1f} points".replace("-", "\u2212") if rounded else "0.0 points"


def number(value: float, digits: int = 3) -> str:
    """Return a plain number with a fixed count of decimals."""
    # a loss of -1e-17 is a rounding error of nothing, and must not read as less than nothing
    return f"{round(value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else ABSENT


def count(value: float) -> str:
    """Return 1311 as `1,311`."""
    return f"{value:,.0f}" if math.isfinite(value) else ABSENT


def duration(seconds: float) -> str:
    """Return 0.42 as `420 ms`, 12.3 as `12.3 s`, 252 as `4 min 12 s`, 3840 as `1 h 04 min`."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 1:
        return f"{seconds * 1000:.0f}{_THIN}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}{_THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_THIN}min {whole % 60:02d}{_THIN}s"
    return f"{whole // 3600}{_THIN}h {whole % 3600 // 60:02d}{_THIN}min"


def data_size(num_bytes: float) -> str:
    """Return bytes in decimal units, three significant digits: 47204368 as `47.2 MB`."""
    if not math.isfinite(num_bytes):
        return ABSENT
    value, unit = float(num_bytes), 0
    while abs(value) >= 999.5 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{_THIN}{_BYTE_UNITS[unit]}"


def rounds(numbers: Iterable[int]) -> str:
    """Return 3, 4, 5, 9 as `rounds 3–5, 9`, one number as `round 3`, none as an empty text."""
    runs: list[list[int]] = []
    for value in sorted(set(numbers)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    listed = ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in runs)
    return "" if not runs else f"round {listed}" if listed.isdigit() else f"rounds {listed}"


def fault_kind(reason: str) -> str:
    """Return `late`, `refused` or `left out`, read from the reason that the server noted."""
    if _LATE.search(reason):
        return "late"
    return "refused" if _REFUSED.search(reason) else "left out"


def shorten(text: str, limit: int) -> str:
    """Return text of at most `limit` characters, its end replaced by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
