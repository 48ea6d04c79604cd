"""The pool's size follows from what the cluster has; importing and planning touch no Ray."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from fl.runtime.cluster import RaySettings, WorkerPlan, plan_workers, prepare_environment


def plan(resources: dict[str, float], sites_per_round: int = 8, **settings: int) -> WorkerPlan:
    return plan_workers(RaySettings.model_validate(settings), resources, sites_per_round)


@pytest.mark.parametrize(
    ("num_cpus", "sites_per_round", "num_workers", "num_threads"),
    [(2, 8, 2, 1), (16, 8, 8, 2), (16, 3, 3, 5), (1, 8, 1, 1), (4, 1, 1, 4)],
)
def test_without_gpus_cores_are_divided_among_the_sites_of_a_round(
    num_cpus: int, sites_per_round: int, num_workers: int, num_threads: int
) -> None:
    found = plan({"CPU": num_cpus}, sites_per_round)

    assert found == WorkerPlan(num_workers=num_workers, num_threads=num_threads, num_gpus=0.0)
    assert found.num_workers * found.num_threads <= num_cpus


@pytest.mark.parametrize(("threads", "num_workers"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_threads_that_are_set_leave_room_for_fewer_workers(threads: int, num_workers: int) -> None:
    found = plan({"CPU": 8}, threads=threads)

    assert (found.num_workers, found.num_threads) == (num_workers, threads)


def test_workers_that_are_set_divide_the_cores_even_where_they_outnumber_them() -> None:
    assert plan({"CPU": 8}, workers=2) == WorkerPlan(num_workers=2, num_threads=4, num_gpus=0.0)
    assert plan({"CPU": 2}, workers=3) == WorkerPlan(num_workers=3, num_threads=1, num_gpus=0.0)
    assert plan({"CPU": 2}, workers=3, threads=2) == WorkerPlan(num_workers=3, num_threads=2, num_gpus=0.0)


@pytest.mark.parametrize(("num_gpus", "sites_per_round", "num_workers"), [(1, 8, 1), (4, 8, 4), (4, 2, 2)])
def test_gpus_come_first_one_worker_each(num_gpus: int, sites_per_round: int, num_workers: int) -> None:
    found = plan({"CPU": 16, "GPU": num_gpus}, sites_per_round)

    assert found.num_workers == num_workers and found.num_gpus == 1.0
    assert found.num_threads == 16 // num_workers


@pytest.mark.parametrize(("num_gpus", "workers"), [(1, 2), (2, 3), (2, 4), (3, 7), (4, 5), (1, 3)])
def test_workers_that_share_gpus_all_fit_without_a_share_being_split_over_two(num_gpus: int, workers: int) -> None:
    share = plan({"CPU": 16, "GPU": num_gpus}, workers=workers).num_gpus

    assert 0 < share <= 1
    assert num_gpus * int(1 / share + 1e-9) >= workers


def test_resources_that_name_no_cpu_still_give_a_worker() -> None:
    assert plan({}).num_workers == 1


def test_settings_refuse_no_workers_and_no_threads() -> None:
    for field in ("workers", "threads"):
        with pytest.raises(ValidationError):
            RaySettings.model_validate({field: 0})


def test_planning_does_not_import_ray() -> None:
    """Ray reads its environment when it is imported, and `prepare_environment` must come before that."""
    program = (
        "import sys; from fl.runtime.cluster import *\n"
        "plan_workers(RaySettings(), {'CPU': 2.0}, 4); prepare_environment(RaySettings())\n"
        "import service.spec; assert 'ray' not in sys.modules, 'ray was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_environment_of_a_local_ray_is_closed_and_silent_and_the_users_values_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)

    prepare_environment(RaySettings(address="10.0.0.1:6379"))
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and "RAY_AUTH_MODE" not in os.environ

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    prepare_environment(RaySettings())
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
