"""Our side of the cases without training, as a program for `benchmarks.family.run_program`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.our_rounds import SEED, marked_rounds, plainly, securely
from fl.model.speed import SpeedSettings
from fl.model.vgg import NetworkSettings, SplitVgg19
from fl.runtime.cluster import RaySettings, plan_workers, ray_cluster
from fl.runtime.pool import WorkerPool
from fl.training.augment import AugmentSettings
from fl.training.exchange import Reply, RoundTask
from fl.training.local import LocalSettings, TrainingSummary
from fl.training.trainer import SiteTrainer, TrainerSetup, model_state
from fl.types import Scan, Site
from kernels.spec import PreprocessSpec

NUM_EXAMPLES = 100
"""That every site says it has; so all weights are equal."""


class CopyTrainer(SiteTrainer):
    """The product's trainer, but that it trains nothing: it returns a copy of what it was sent."""

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        """Return the task's parameters in memory of the reply's own."""
        summary = TrainingSummary(num_examples=site.num_examples, num_steps=0, mean_loss=0.0, seconds=0.0)
        return Reply(site=site.name, round=task.round, update=task.parameters.copy(), summary=summary)


def overhead(
    parameters: str, num_sites: int, num_rounds: int, *, result: str, scratch: str, secure: bool = False
) -> dict[str, Any]:
    """Run rounds in which nothing is trained; return what `Marks` says of them.

    parameters: .npy file, float32 [P]. num_rounds: that count. result: .npy file to write. scratch: folder for
    what sites keep. secure: under secure aggregation.
    """
    settings = RaySettings(threads=1)
    sites = [_site(number) for number in range(num_sites)]
    with ray_cluster(settings) as resources:
        plan = plan_workers(settings, resources, num_sites)
        with WorkerPool(_small_setup(Path(scratch)), plan, make_trainer=CopyTrainer) as pool:
            way = securely if secure else plainly
            final, marks = marked_rounds(pool, sites, np.load(parameters), num_rounds, way)
    np.save(result, final)
    return marks.to_json()


def _site(number: int) -> Site:
    # of a job's usual size on the way to its worker, although nothing of it is read
    scans = tuple(
        Scan(path=Path(f"{index}.jpg"), label=0, pixels_sha256=f"{index:064x}", phash=index, height=512, width=512)
        for index in range(NUM_EXAMPLES)
    )
    return Site(name=f"site-{number:02d}", scans=scans)


def _small_setup(folder: Path) -> TrainerSetup:
    network = NetworkSettings(width=0.01)  # nothing goes through it
    return TrainerSetup(
        network=network,
        speed=SpeedSettings(),
        preprocess=PreprocessSpec(),
        augment=AugmentSettings(),
        local=LocalSettings(),
        store_root=folder / "store",
        crop_backend="auto",
        seed=SEED,
        num_threads=1,
        state=model_state(SplitVgg19(network)),
        state_root=folder / "sites",
    )
