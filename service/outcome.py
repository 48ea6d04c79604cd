"""What a job leaves in figures: `result.json`, read by the report and by whoever compares runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.data.federation import Federation
from fl.durable import write_file
from fl.server.choice import describe_strategy
from fl.server.rounds import RoundRecord
from fl.types import CLASSES, Site
from service.arms import ArmResult
from service.machine import hardware, software
from service.runs import Run
from service.spec import JobSpec
from service.start import Start

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What the run took: wall seconds by phase, the most memory of all its processes, how its workers computed."""

    phases: Mapping[str, float]
    peak_memory_bytes: int
    workers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shipped:
    """What the exported model showed of itself: its answers to some test images, and what its release measured."""

    samples: Sequence[Mapping[str, Any]]
    measured: Mapping[str, Any]


def write_result(
    run: Run,
    federation: Federation,
    arms: Sequence[ArmResult],
    *,
    start: Start,
    shipped: Shipped,
    usage: Usage,
) -> Path:
    """Write result.json and return its path. Every figure in it was measured in this run."""
    result = {
        "format": FORMAT,
        "run_id": run.run_id,
        "name": run.spec.name,
        "scenario": run.spec.scenario,
        "data_kind": federation.data_kind,
        "created": run.created,
        "seed": run.spec.seed,
        "arms": {result.arm.name: arm_figures(result, run.spec, start) for result in arms},
        "sites": [_site_figures(site, arms[0]) for site in federation.sites],
        "quarantined": [{**asdict(item), "path": str(item.path)} for item in federation.quarantined],
        "data": _data_figures(federation),
        "phases": [{"name": name, "seconds": seconds} for name, seconds in usage.phases.items()],
        "peak_memory_bytes": usage.peak_memory_bytes,
        "software": software(),
        "hardware": {**hardware(), **usage.workers},
        "samples": list(shipped.samples),
        "bundle": "bundle",
        "release": shipped.measured,
        "spec": run.spec.model_dump(mode="json"),
    }
    path = run.folder / "result.json"
    write_file(path, json.dumps(result, indent=1).encode())
    return path


def arm_figures(result: ArmResult, spec: JobSpec, start: Start) -> dict[str, Any]:
    """Return one arm's figures, as result.json and the bundle's metrics have them."""
    state, history = result.state, result.state.history
    is_scenario, settings = result.arm.role == "scenario", result.arm.settings

    def started(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return {**facts, "validation_accuracy": state.start_score.accuracy} if facts and is_scenario else None

    return {
        "role": result.arm.role,
        "rounds_run": len(history),
        "best_round": state.best_round,
        "stopped_early": len(history) < result.arm.settings.rounds,
        "start_validation_accuracy": state.start_score.accuracy,
        "strategy": describe_strategy(settings.strategy, settings.aggregation),
        "encoding": settings.encoding,
        "secure_aggregation": settings.secure_aggregation is not None,
        "warmup": started(start.warmup),
        "analytic": started(start.analytic),
        "validation": result.validation.to_json(),
        "test": result.test.to_json(),
        "seconds_total": result.seconds,
        "seconds_per_round": _mean([record.seconds for record in history]),
        "bytes_per_round": _mean([record.bytes_down + record.bytes_up for record in history]),
        "bytes_per_site_round": _mean([_bytes_a_site(record) for record in history]),
        "personal": [
            {
                "site": personal.site,
                "num_examples": personal.with_global.num_examples,
                "accuracy_global": personal.with_global.accuracy,
                "accuracy_tuned": personal.with_tuned_head.accuracy,
            }
            for personal in result.personal
        ],
        "history": [{**asdict(record), "sites": [site.site for site in record.sites]} for record in history],
    }


def _bytes_a_site(record: RoundRecord) -> float:
    """Return what one site receives and sends in a round."""
    asked = len(record.sites) + len({out.site for out in record.left_out} - {site.site for site in record.sites})
    return record.bytes_down / max(1, asked) + record.bytes_up / max(1, len(record.sites))


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean, None where there were no rounds."""
    return float(np.mean(values)) if values else None


def _site_figures(site: Site, result: ArmResult) -> dict[str, Any]:
    done = [entry for record in result.state.history for entry in record.sites if entry.site == site.name]
    missed = [out for record in result.state.history for out in record.left_out if out.site == site.name]
    return {
        "name": site.name,
        "group": site.group,
        "class_counts": {name: sum(scan.label == label for scan in site.scans) for label, name in enumerate(CLASSES)},
        "num_shared": len(site.shared_scans),
        "rounds_trained": len(done),
        "failures": len(missed),
        "seconds_mean": float(np.mean([entry.seconds for entry in done])) if done else 0.0,
        "last_loss": done[-1].loss if done else None,
    }


def _data_figures(federation: Federation) -> dict[str, int]:
    return {
        "num_training": len(federation.training_scans),
        "num_validation": len(federation.all_validation_scans),
        "num_test": len(federation.test_scans),
        "num_shared": len(federation.shared_scans),
        "exact_test_copies": int(federation.exact_copies_T.sum()),
        "near_test_copies": int(federation.near_copies_T.sum()),
    }
