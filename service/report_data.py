"""What the report reads from a run folder, typed; every piece that may be missing has a default.

These models describe format 1 of `result.json`. They are lenient on purpose (unknown keys are ignored, a
number written as null reads as NaN), because a report of a run that went badly is the one most needed.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from fl.errors import GliofedError
from service.report_base import NAN, Number, Read
from service.report_release import Release

RESULT_FORMAT = 1
_IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_MAX_IMAGE_BYTES = 2 * 1024 * 1024
_FAULT_WORDS = re.compile(
    r"warn|error|fail|fault|(?<![a-z])late|refus|left_?out|quarantin|retry|quorum|stop|lost", re.I
)


class ReportError(GliofedError):
    """A run folder cannot be shown."""


class ClassRates(Read):
    """One class against the rest."""

    name: str
    support: int
    precision: Number
    recall: Number
    specificity: Number
    f1: Number


class Metrics(Read):
    """The JSON of `fl.evaluation.metrics.ClassificationMetrics`."""

    num_examples: int
    accuracy: Number
    accuracy_interval: tuple[float, float]
    macro_precision: Number
    macro_recall: Number
    macro_specificity: Number
    macro_f1: Number
    per_class: tuple[ClassRates, ...]
    confusion: tuple[tuple[int, ...], ...]
    loss: Number = NAN
    calibration_error: Number = NAN
    undefined: tuple[str, ...] = ()


class PairedMetrics(Read):
    """The JSON of `fl.evaluation.metrics.EvaluationReport`."""

    as_published: Metrics
    deduplicated: Metrics
    num_near_duplicates: int = 0


class Warmup(Read):
    """Training of the global model before round 1."""

    epochs: int
    validation_accuracy: Number
    seconds: Number = NAN


class AnalyticStart(Read):
    """The closed-form head from one round of sums, before round 1."""

    validation_accuracy: Number
    num_sites: int
    bytes_up_per_site: int = 0
    seconds: Number = NAN


class PersonalRow(Read):
    """What the global model and a locally tuned head are worth on one site's own distribution."""

    site: str
    num_examples: int
    accuracy_global: Number
    accuracy_tuned: Number


class LeftOut(Read):
    """A site whose answer did not count in a round."""

    site: str
    reason: str = ""


class Round(Read):
    """One federated round."""

    round: int
    train_loss: Number = NAN
    validation_accuracy: Number = NAN
    validation_loss: Number = NAN
    seconds: Number = NAN
    bytes_down: int = 0
    bytes_up: int = 0
    sites: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


class Arm(Read):
    """One way of training on the run's data: the scenario itself, or a baseline beside it."""

    role: Literal["scenario", "baseline"]
    rounds_run: int
    best_round: int = 0
    stopped_early: bool = False
    strategy: str = ""
    encoding: str = ""
    secure_aggregation: bool = False
    warmup: Warmup | None = None
    analytic: AnalyticStart | None = None
    personal: tuple[PersonalRow, ...] = ()
    validation: Metrics | None = None
    test: PairedMetrics
    seconds_total: Number = NAN
    seconds_per_round: Number = NAN
    bytes_per_round: Number = NAN
    bytes_per_site_round: Number = NAN
    history: tuple[Round, ...] = ()


class SiteRow(Read):
    """One site over the whole run."""

    name: str
    group: str = "all"
    class_counts: dict[str, int] = Field(default_factory=dict)
    num_shared: int = 0
    rounds_trained: int = 0
    failures: int = 0
    seconds_mean: Number = NAN
    last_loss: Number = NAN


class QuarantinedFile(Read):
    """A file refused at admission."""

    path: str
    reason: str
    detail: str = ""


class DataCounts(Read):
    """How many images the run saw, and how many test images are copies of training images."""

    num_training: int = 0
    num_validation: int = 0
    num_test: int = 0
    num_shared: int = 0
    exact_test_copies: int = 0
    near_test_copies: int = 0


class Phase(Read):
    """One stage of the run by wall time."""

    name: str
    seconds: Number


class Hardware(Read):
    """The machine that ran the server."""

    cpu: str = ""
    cores: int = 0
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()


class Sample(Read):
    """One explained test image; image and overlay are paths inside the run folder."""

    image: str
    overlay: str = ""
    label: str
    predicted: str
    probability: Number = NAN
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventLog:
    """The end of `events.jsonl`: what is shown, of how many, and how many lines could not be read."""

    shown: tuple[dict[str, Any], ...]
    num_matching: int
    num_unreadable: int


class RunResult(Read):
    """The whole of `result.json`."""

    format: int
    run_id: str
    name: str
    scenario: str
    data_kind: Literal["phantom", "mri"]
    created: datetime
    seed: int = 0
    arms: dict[str, Arm] = Field(min_length=1)
    sites: tuple[SiteRow, ...] = ()
    quarantined: tuple[QuarantinedFile, ...] = ()
    data: DataCounts = DataCounts()
    phases: tuple[Phase, ...] = ()
    peak_memory_bytes: int = 0
    software: dict[str, str] = Field(default_factory=dict)
    hardware: Hardware = Hardware()
    samples: tuple[Sample, ...] = ()
    bundle: str | None = None
    release: Release | None = None
    spec: dict[str, Any] = Field(default_factory=dict)


def read_result(path: Path) -> RunResult:
    """Read `result.json`; raises ReportError that names the file and the field that does not fit."""
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist; it is written when a run ends, so resume the run first") from None
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); resume the run to write it again") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != RESULT_FORMAT:
        raise ReportError(f"{path} has format {found!r}; this version reads format {RESULT_FORMAT}")
    try:
        return RunResult.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        many = f" ({error.error_count()} fields do not fit)" if error.error_count() > 1 else ""
        raise ReportError(f"{path}, field {field}: {first['msg']}{many}") from None


def read_warnings(path: Path, *, limit: int = 40) -> EventLog:
    """Return the last warnings and faults of a JSON-lines event file; an absent file has none.

    An event counts when its `level` is warning or error, or its name speaks of a fault.
    """
    kept: deque[dict[str, Any]] = deque(maxlen=limit)
    num_matching = num_unreadable = 0
    if not path.is_file():
        return EventLog(shown=(), num_matching=0, num_unreadable=0)
    with path.open("rb") as lines:
        for line in filter(bytes.strip, lines):
            event = _parse_event(line)
            num_unreadable += event is None
            if event is not None and _is_warning(event):
                kept.append(event)
                num_matching += 1
    return EventLog(shown=tuple(kept), num_matching=num_matching, num_unreadable=num_unreadable)


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the line's object; None for the torn line that a crash leaves."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _is_warning(event: dict[str, Any]) -> bool:
    if "level" in event:
        return str(event["level"]).lower() in {"warning", "error", "critical"}
    return _FAULT_WORDS.search(str(event.get("event", ""))) is not None


def image_data_uri(run_dir: Path, relative: str) -> str | None:
    """Return the image as a data URI, None where the run folder has no such image of at most 2 MiB."""
    root = run_dir.resolve()
    path = (root / relative).resolve()
    media_type = _IMAGE_TYPES.get(path.suffix.lower())
    if not relative or media_type is None or not path.is_relative_to(root) or not path.is_file():
        return None
    if path.stat().st_size > _MAX_IMAGE_BYTES:
        return None
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
