"""Hospitals that bring their own folders, and a coordinator whose memory does not grow with their number."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Finished, Launch, Workplace

NUM_HOSPITALS = 24
NUM_MODELS_IN_DRIVER = 8
"""Global and best parameters, a sum in 64 bits (two), its result, two on their way to disk, one to spare."""

JOB = {
    "name": "hospitals",
    "scenario": "iid",
    "data": {"source": "folder", "partition": None},
    "preprocess": {"size": 64},
    "model": {"network": {"width": 0.5, "frozen_through": None}, "weights": {"source": "random"}},
    "fl": {
        "rounds": 1,
        "participation": 1.0,
        "early_stop": None,
        "local": {"epochs": 1, "learning_rate": 1e-4},
        "augment": {"views": 1},
    },
    "ray": {"workers": 2, "threads": 1},
}


@pytest.fixture(scope="module")
def observed(workplace: Workplace, launch: Launch, draw: Callable) -> tuple[Finished, int]:
    """A run of many hospitals, and how many bytes of its own the driver gained while they trained."""
    root = workplace.folder / "hospitals-data"
    draw_hospitals(root, draw)
    draw_folder(root / "Testing", draw, num_scans=3, seed=99)
    folder = workplace.folder / "many-hospitals"
    command = launch("train", workplace.job("many-hospitals", JOB, root=str(root)), "--run-dir", folder)
    command.wait_for_output("round   0:")
    before = own_memory(command.process.pid)
    most = before

    def has_finished_round() -> bool:
        nonlocal most
        most = max(most, own_memory(command.process.pid))
        return "round   1:" in command.output

    command.wait_until(has_finished_round, "round")
    return command.finish(folder), most - before


def test_every_hospital_trains_on_its_own_folder_and_keeps_its_own_validation(
    observed: tuple[Finished, int],
) -> None:
    result = observed[0].result
    assert [site["name"] for site in result["sites"]] == [f"h{number:02d}" for number in range(NUM_HOSPITALS)]
    for site in result["sites"]:
        assert site["rounds_trained"] == 1
        assert site["class_counts"] == {"glioma": 1, "meningioma": 1, "notumor": 1, "pituitary": 1}
    assert result["data"]["num_validation"] == 4 * NUM_HOSPITALS


def test_the_driver_holds_a_few_models_however_many_sites_reply(observed: tuple[Finished, int]) -> None:
    run, gained = observed
    model_bytes = run.result["arms"]["iid"]["bytes_per_site_round"] // 2
    assert model_bytes > 15e6, "too small a model to tell"
    assert gained < NUM_MODELS_IN_DRIVER * model_bytes < NUM_HOSPITALS * model_bytes / 2


def draw_hospitals(root: Path, draw: Callable) -> None:
    for number in range(NUM_HOSPITALS):
        draw_folder(root / "sites" / f"h{number:02d}", draw, num_scans=2, seed=number)


def draw_folder(root: Path, draw: Callable, *, num_scans: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for name in ("glioma", "meningioma", "notumor", "pituitary"):
        (root / name).mkdir(parents=True)
        for number in range(num_scans):
            cv2.imwrite(str(root / name / f"{number}.png"), draw(name, generator))


def own_memory(pid: int) -> int:
    """Return a process's resident bytes that no other process shares: not the pages of Ray's object store."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, psutil.NoSuchProcess):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
