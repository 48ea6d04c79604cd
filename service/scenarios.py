"""The founding study's scenarios, and two of ours, as defaults under a job's own settings.

Only what sets a scenario apart stands here; what all share is the settings' own defaults. Values are the study's.
"""

from __future__ import annotations

from typing import Any, Literal

ScenarioName = Literal["iid", "noniid", "holdout", "synthetic", "analytic", "noniid_zero_share"]

_ONE_CLASS_ROUNDS: dict[str, Any] = {
    "rounds": 50,
    "participation": 0.5,
    "sampling": "stratified",
    "early_stop": {"window": 5, "min_delta": 0.001, "patience": 5},
}
_WARM_START: dict[str, Any] = {**_ONE_CLASS_ROUNDS, "aggregation": "class_balanced", "warmup": {"epochs": 10}}

SCENARIOS: dict[ScenarioName, dict[str, Any]] = {
    "iid": {
        "data": {"partition": {"kind": "iid", "num_sites": 15}},
        "fl": {
            "rounds": 50,
            "participation": 0.5,
            "sampling": "uniform",
            "aggregation": "uniform",
            "early_stop": {"window": 3, "min_delta": 0.002, "patience": 3},
        },
    },
    "noniid": {
        "data": {"partition": {"kind": "one_class", "sites_per_class": 4}},
        "fl": {**_ONE_CLASS_ROUNDS, "aggregation": "uniform"},
    },
    "holdout": {
        "data": {"partition": {"kind": "one_class", "sites_per_class": 4}},
        "shared": {"source": "holdout", "holdout_fraction": 0.05},
        "fl": _WARM_START,
    },
    "synthetic": {
        "data": {"partition": {"kind": "one_class", "sites_per_class": 8}},
        "shared": {"source": "synthetic"},
        "fl": _WARM_START,
    },
    "analytic": {
        "data": {"partition": {"kind": "one_class", "sites_per_class": 4}},
        "model": {"network": {"head": "wide", "random_features": 4096}},
        "fl": {"analytic": {}, "rounds": 0, "participation": 1.0, "early_stop": None},
    },
    "noniid_zero_share": {
        "data": {"partition": {"kind": "one_class", "sites_per_class": 4}},
        "model": {"network": {"head": "wide", "random_features": 4096, "dropout": 0.0}},
        "fl": {
            "analytic": {},
            "rounds": 20,
            "participation": 1.0,
            "aggregation": "uniform",
            "strategy": {"kind": "muon"},
            "local": {"optimizer": "sgd", "learning_rate": 1.0, "steps": 1, "batch_size": 32},
            "augment": {"views": 2},
            "early_stop": None,
        },
    },
}
"""Defaults of each scenario, laid under the job file."""
