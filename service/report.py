"""The page that a run leaves behind: `report.html`, one file that needs no network and no script to be read.

It is made of the run folder alone (`result.json`, `events.jsonl`, `samples/`) and can be made again any time.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from service import report_text
from service.report_charts import MAX_SLOTS, LineChart, accuracy_chart, loss_chart
from service.report_data import (
    Arm,
    EventLog,
    Phase,
    RunResult,
    Sample,
    image_data_uri,
    read_result,
    read_warnings,
)
from service.report_grid import SiteGrid, site_grid
from service.report_reliability import ReliabilityChart, reliability_chart

REPORT_NAME = "report.html"
MAX_QUARANTINED_SHOWN = 200
MAX_FAULTS_SHOWN = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One site's answer that did not count."""

    arm: str
    round: int
    site: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmView:
    """One arm as the page shows it."""

    name: str
    slot: int
    arm: Arm
    grid: SiteGrid
    lossless_rounds: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleView:
    """One explained slice with its pictures as data URIs, None where a picture is missing."""

    sample: Sample
    image: str | None
    overlay: str | None

    @property
    def wrong(self) -> bool:
        """Whether the model named another class."""
        return self.sample.label != self.sample.predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseBar:
    """One phase on the run's time line; start and share are parts of the whole."""

    name: str
    seconds: float
    start: float
    share: float


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a finished run's folder and return its path; an older one is replaced.

    Raises ReportError when `result.json` is missing, broken or of another format.
    """
    result_path = run_dir / "result.json"
    result = read_result(result_path)
    page = render_report(
        result,
        log=read_warnings(run_dir / "events.jsonl"),
        samples=tuple(_sample_view(run_dir, sample) for sample in result.samples),
        result_sha256=hashlib.sha256(result_path.read_bytes()).hexdigest(),
    )
    path = run_dir / REPORT_NAME
    unfinished = run_dir / f".{REPORT_NAME}.{os.getpid()}"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)
    return path


def render_report(
    result: RunResult, *, log: EventLog, samples: tuple[SampleView, ...] = (), result_sha256: str = ""
) -> str:
    """Return the page as text. Pure but for reading the templates."""
    arms = dict(sorted(result.arms.items(), key=lambda item: item[1].role != "scenario"))
    main = next(iter(arms.values()))
    class_names = [rates.name for rates in main.test.as_published.per_class]
    script = _asset("report.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            result=result,
            arms=[_arm_view(name, slot, arm, result) for slot, (name, arm) in enumerate(arms.items())],
            class_names=class_names,
            unit="phantom slices" if result.data_kind == "phantom" else "slices",
            charts=_charts(arms, num_classes=len(class_names)),
            reliability=_reliability(result),
            faults=_faults(arms)[-MAX_FAULTS_SHOWN:],
            num_faults=len(_faults(arms)),
            samples=samples,
            log=log,
            most_examples=max((n for site in result.sites for n in site.class_counts.values()), default=0),
            site_classes=_site_classes(result, class_names),
            quarantine_reasons=Counter(file.reason for file in result.quarantined).most_common(),
            max_quarantined=MAX_QUARANTINED_SHOWN,
            phases=_phase_bars(result.phases),
            phase_total=sum(bar.seconds for bar in _phase_bars(result.phases)),
            spec_text=yaml.safe_dump(result.model_dump(mode="json")["spec"], sort_keys=False, allow_unicode=True),
            style=Markup(_asset("report.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            result_sha256=result_sha256,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_name in (
        "percent",
        "interval",
        "points",
        "number",
        "count",
        "duration",
        "data_size",
        "shorten",
    ):
        environment.filters[filter_name] = getattr(report_text, filter_name)
    return environment


def _asset(name: str) -> str:
    return resources.files("service").joinpath("templates", name).read_text(encoding="utf-8")


def _charts(arms: Mapping[str, Arm], *, num_classes: int) -> list[LineChart]:
    if not any(arm.history for arm in arms.values()):
        return []
    return [accuracy_chart(arms, num_classes=num_classes), loss_chart(arms)]


def _reliability(result: RunResult) -> ReliabilityChart | None:
    confidence = result.release.confidence if result.release else None
    return reliability_chart(confidence.views) if confidence else None


def _arm_view(name: str, slot: int, arm: Arm, result: RunResult) -> ArmView:
    return ArmView(
        name=name,
        slot=min(slot, MAX_SLOTS - 1),
        arm=arm,
        grid=site_grid([site.name for site in result.sites], arm.history),
        lossless_rounds=report_text.rounds(e.round for e in arm.history if math.isnan(e.validation_loss)),
    )


def _faults(arms: Mapping[str, Arm]) -> list[Fault]:
    return [
        Fault(
            arm=name,
            round=entry.round,
            site=left_out.site,
            kind=report_text.fault_kind(left_out.reason),
            reason=left_out.reason,
        )
        for name, arm in arms.items()
        for entry in arm.history
        for left_out in entry.left_out
    ]


def _phase_bars(phases: Sequence[Phase]) -> list[PhaseBar]:
    """Return the phases that took any time, one after the other."""
    timed = [phase for phase in phases if math.isfinite(phase.seconds) and phase.seconds > 0]
    total, bars, elapsed = math.fsum(phase.seconds for phase in timed), [], 0.0
    for phase in timed:
        share = phase.seconds / total
        bars.append(PhaseBar(name=phase.name, seconds=phase.seconds, start=elapsed / total, share=share))
        elapsed += phase.seconds
    return bars


def _site_classes(result: RunResult, class_names: list[str]) -> list[str]:
    """Return the classes of the sites' table: those of the test set, then any other that a site has."""
    return list(dict.fromkeys([*class_names, *(name for site in result.sites for name in site.class_counts)]))


def _sample_view(run_dir: Path, sample: Sample) -> SampleView:
    return SampleView(
        sample=sample,
        image=image_data_uri(run_dir, sample.image),
        overlay=image_data_uri(run_dir, sample.overlay),
    )
