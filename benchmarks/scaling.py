"""`weak_scaling`: rounds of real training with more workers and as much more work, for `run_program`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.job_inputs import federation_of
from benchmarks.our_rounds import marked_rounds, plainly
from fl.model.flat import gather
from fl.model.vgg import SplitVgg19
from fl.runtime.client import training_views
from fl.runtime.cluster import RaySettings, plan_workers, ray_cluster
from fl.runtime.federate import plan_preparation, prepare
from fl.runtime.pool import WorkerPool
from fl.training.trainer import load_model_state
from fl.types import Site
from service.spec import load_spec
from service.start import initial_model_state, trainer_setup


def training(job: str, num_workers: int, sites_per_worker: int, num_rounds: int, scratch: str) -> dict[str, Any]:
    """Train rounds over `sites_per_worker` sites a worker, one thread each; return what `Marks` says of them.

    job: job file, of which every site gets the scans of the first. Features are computed before the first round.
    """
    spec, settings = load_spec(Path(job)), RaySettings(workers=num_workers, threads=1)
    state = initial_model_state(spec)
    scans = federation_of(spec, Path(scratch)).sites[0].scans
    sites = [Site(name=f"site-{number:02d}", scans=scans) for number in range(num_workers * sites_per_worker)]
    setup = trainer_setup(spec, state, store_root=Path(scratch) / "store", num_threads=1)
    model = SplitVgg19(spec.model.network)
    load_model_state(model, state)
    with (
        ray_cluster(settings) as resources,
        WorkerPool(setup, plan_workers(settings, resources, len(sites))) as pool,
    ):
        for _ in prepare(pool, plan_preparation(sites, [], training_views(spec.fl.augment), plain=False)):
            pass
        _, marks = marked_rounds(pool, sites, gather(model.trained_parameters()), num_rounds, plainly)
    return {**marks.to_json(), "num_examples": len(sites) * len(scans)}
