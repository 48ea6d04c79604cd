"""The last lines of a job: a table of results and where everything is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.progress import Display


def print_summary(display: Display, folder: Path) -> None:
    """Print a finished run's figures, read from its result.json."""
    result = json.loads((folder / "result.json").read_text())
    header = ("", *(f"{name} ({arm['role']})" for name, arm in result["arms"].items()))
    figures = [_figures(arm) for arm in result["arms"].values()]
    rows = [(name, *(column[name] for column in figures)) for name in figures[0]]
    display.table(f"results on {result['data_kind']} data ({result['data']['num_test']} test images)", header, rows)
    minutes, peak = (
        sum(phase["seconds"] for phase in result["phases"]) / 60,
        result["peak_memory_bytes"] / 2**30,
    )
    display.say(f"\n{minutes:.1f} minutes, at most {peak:.2f} GiB of memory in all processes")
    display.say(f"report   {folder / 'report.html'}")
    display.say(f"figures  {folder / 'result.json'}")
    display.say(f"bundle   {folder / 'bundle'}")
    display.say(f"try      gliofed predict --bundle {folder / 'bundle'} {folder / 'samples' / '00.png'}")


def _figures(arm: Mapping[str, Any]) -> dict[str, str]:
    published, deduplicated = arm["test"]["as_published"], arm["test"]["deduplicated"]
    return {
        "test accuracy, as published": f"{published['accuracy']:.4f}",
        "test accuracy, deduplicated": f"{deduplicated['accuracy']:.4f}",
        "macro F1, as published": f"{published['macro_f1']:.4f}",
        "validation accuracy before round 1": f"{arm['start_validation_accuracy']:.4f}",
        "rounds run (best)": f"{arm['rounds_run']} ({arm['best_round']})",
        "seconds a round": _or_dash(arm["seconds_per_round"], 1.0, 1),
        "MB a site and round": _or_dash(arm["bytes_per_site_round"], 1e6, 2),
    }


def _or_dash(value: float | None, unit: float, digits: int) -> str:
    """Return a figure, or a dash where no round was run."""
    return "-" if value is None else f"{value / unit:.{digits}f}"
