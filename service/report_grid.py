"""Geometry of the grid that shows which site took part in which round, and where one fell out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.report_charts import Tick, nice_step
from service.report_data import LeftOut, Round
from service.report_text import fault_kind, shorten


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One site's fault in one round."""

    x: float
    y: float
    kind: str
    tip: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteGrid:
    """Sites by rounds: a filled cell where a site's work counted, a mark where it was left out."""

    width: float
    height: float
    left: float
    cell_x: float
    cell_y: float
    rows: tuple[tuple[float, str, str], ...]
    x_ticks: tuple[Tick, ...]
    trained: str
    marks: tuple[Mark, ...]
    num_hidden_sites: int


def site_grid(site_names: Sequence[str], history: Sequence[Round], *, max_sites: int = 100) -> SiteGrid:
    """Return the grid of one arm; of more than `max_sites` sites, those that had faults are shown first."""
    faulty = {fault.site for entry in history for fault in entry.left_out}
    known = list(dict.fromkeys([*site_names, *(s for e in history for s in e.sites), *sorted(faulty)]))
    if len(known) > max_sites:
        known.sort(key=lambda name: name not in faulty)
    shown, left, top = known[:max_sites], 128.0, 22.0
    last = max((entry.round for entry in history), default=1)
    cell_x, cell_y = round(min(max(900 / last, 9.0), 40.0), 1), 14.0
    row_of = {name: round(top + index * cell_y, 1) for index, name in enumerate(shown)}
    column_of = {entry.round: round(left + (entry.round - 1) * cell_x, 1) for entry in history}
    every = max(1, round(nice_step(max(last / 12, 1))))
    return SiteGrid(
        width=round(left + last * cell_x + 16, 1),
        height=round(top + len(shown) * cell_y + 4, 1),
        left=left,
        cell_x=cell_x,
        cell_y=cell_y,
        rows=tuple((row_of[name], shorten(name, 17), name) for name in shown),
        x_ticks=tuple((column_of[r] + cell_x / 2, str(r)) for r in column_of if r == 1 or r % every == 0),
        trained=_trained_path(history, row_of, column_of, cell_x, cell_y),
        marks=tuple(
            _mark(entry.round, fault, column_of[entry.round] + cell_x / 2, row_of[fault.site] + cell_y / 2)
            for entry in history
            for fault in entry.left_out
            if fault.site in row_of
        ),
        num_hidden_sites=len(known) - len(shown),
    )


def _trained_path(
    history: Sequence[Round],
    row_of: Mapping[str, float],
    column_of: Mapping[int, float],
    cell_x: float,
    cell_y: float,
) -> str:
    """Return one path of all filled cells, which keeps a page of 50 sites and 50 rounds small."""
    width, height = round(cell_x - 2, 1), round(cell_y - 3, 1)
    cells = []
    for entry in history:
        absent = {fault.site for fault in entry.left_out}
        for site in entry.sites:
            if site in row_of and site not in absent:
                corner = f"M{column_of[entry.round] + 1:g} {row_of[site] + 1.5:g}"
                cells.append(f"{corner}h{width:g}v{height:g}h{-width:g}z")
    return "".join(cells)


def _mark(round_number: int, fault: LeftOut, x: float, y: float) -> Mark:
    kind = fault_kind(fault.reason)
    why = f": {fault.reason}" if fault.reason else ""
    return Mark(x=round(x, 1), y=round(y, 1), kind=kind, tip=f"Round {round_number}, {fault.site} {kind}{why}")
