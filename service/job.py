"""The journey of one job: data → start → rounds → test → bundle → report.

The only place that knows the order. Each step takes what the one before returned and returns a new frozen value; the
steps themselves live in the rooms that they are about.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from export.bundle import load_bundle
from export.predictor import Predictor
from export.signing import SigningKey, Trust
from fl.data.federation import Federation, build_federation
from fl.data.intake import admit_sets, list_sets, sort_outcomes
from fl.data.phantoms.folder import phantom_folder, write_phantom_folder
from fl.errors import QuorumLost, Stopped
from fl.evaluation.personal import PersonalResult
from fl.failpoint import failpoint
from fl.model.flat import FlatParameters
from fl.runtime.admission import admit_at_nodes
from fl.runtime.client import training_views
from fl.runtime.cluster import WorkerPlan, num_cores, plan_alone, plan_workers, ray_cluster
from fl.runtime.federate import num_scans, plan_preparation, prepare, warm_up
from fl.runtime.pool import WorkerPool
from fl.server.checkpoint import load_checkpoint, save_checkpoint
from fl.server.rounds import FederationState, Score, initial_state, run_rounds
from fl.server.selection import select_sites
from fl.training.exchange import JOB, Assignment, LeftOut, Reply, RoundTask, SecureMean
from fl.types import Site
from service.arms import Arm, ArmResult, arms_of
from service.caches import cache_folder
from service.keys import signing_key
from service.machine import MemorySampler, PhaseClock
from service.outcome import Shipped, Usage, write_result
from service.progress import Display
from service.reach import ClusterReach, Reach, validation_of
from service.release import Order, release, require_targets
from service.report import write_report
from service.runs import Run
from service.ship import export_graph, measured, write_samples
from service.start import (
    Start,
    initial_model_state,
    make_start,
    read_closed_form,
    read_start,
    trainer_setup,
    write_closed_form,
    write_start,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Desk:
    """What every step may use: the run's folder, the screen, the clock, whether a signal asked to stop, and the key
    that signs the bundle.
    """

    run: Run
    display: Display
    clock: PhaseClock
    should_stop: Callable[[], bool]
    key: SigningKey

    def mind(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, raising Stopped as soon as a signal asked for it."""
        for item in items:
            if self.should_stop():
                raise Stopped("stopped by a signal before the first round; continue with --resume")
            yield item


def run_job(run: Run, display: Display, should_stop: Callable[[], bool]) -> tuple[ArmResult, ...]:
    """Train, test, export and report one job; resume whatever of it the run's folder already holds.

    should_stop: whether a signal asked to stop. Raises GliofedError where it cannot go on, Stopped where it was asked
    to stop; both leave the folder resumable.
    """
    spec, clock = run.spec, PhaseClock()
    key = signing_key(spec.export, display.say)
    require_targets(spec.export.to)
    with MemorySampler() as memory, ray_cluster(spec.ray) as resources:
        desk = Desk(run=run, display=display, clock=clock, should_stop=should_stop, key=key)
        federation = gather_data(desk)
        start = prepare_start(desk, federation)
        plan = plan_workers(spec.ray, resources, sites_a_round(run, federation))
        with open_pool(desk, start, plan, federation) as pool:
            workers = pool.describe()
            display.say(
                f"   {pool.num_workers} workers: {', '.join(f'{key} {value}' for key, value in workers.items())}"
            )
            prepare_features(desk, pool, federation)

            def reach_of(sites: Sequence[Site], digest: str) -> ClusterReach:
                return ClusterReach(pool, federation, sites, spec=spec, context=digest)

            begun = job_digest(run, federation, start, "analytic")
            start = solve_head(desk, reach_of(federation.sites, begun), start, job_digest=begun)
            arms = []
            for arm in arms_of(spec, federation, start):
                digest = job_digest(run, federation, start, arm.name)
                arms.append(train_arm(desk, reach_of(arm.sites, digest), arm, job_digest=digest))
        failpoint("job.trained")
        shipped = ship(desk, federation, start, arms)
    failpoint("job.exported")
    usage = Usage(phases=clock.seconds, peak_memory_bytes=memory.peak_bytes, workers=workers)
    write_result(run, federation, arms, start=start, shipped=shipped, usage=usage)
    write_report(run.folder)
    run.record("finished")
    return tuple(arms)


def gather_data(desk: Desk) -> Federation:
    """Return the federation's data, having generated it where it is phantoms, and admitted every file."""
    spec = desk.run.spec
    with desk.clock.phase("data"):
        root = phantom_root(desk) if spec.data.source == "phantom" else spec.data.root
        assert root is not None
        synthetic_folder = spec.shared.folder if spec.shared is not None else None
        sets = list_sets(root, synthetic_folder, elsewhere=tuple(spec.data.nodes))
        for remark in sets.remarks:
            desk.display.say(f"   note: {remark}")
        inventory = cache_folder(spec) / "inventory.jsonl"
        admitting = desk.mind(admit_sets(sets, spec.data.admission, inventory))
        outcomes = list(desk.display.track(admitting, sets.num_files, "admitting scans"))
        outcomes += admit_at_nodes(root, spec.data.nodes, spec.data.admission, should_stop=desk.should_stop)
        federation = build_federation(sort_outcomes(outcomes), spec.data, spec.shared, seed=spec.seed)
    desk.display.say(describe_data(federation))
    for refused in federation.quarantined:
        desk.run.record("quarantined", path=str(refused.path), reason=refused.reason)
    return federation


def phantom_root(desk: Desk) -> Path:
    """Return the folder of phantoms, made once for these settings and kept in the cache."""
    settings, cache = desk.run.spec.data.phantom, cache_folder(desk.run.spec) / "phantoms"
    total = settings.num_train + settings.num_test + settings.num_synthetic
    desk.display.step(f"{total} phantoms (made once, then kept in {cache})")
    writing = desk.mind(write_phantom_folder(settings, cache, num_processes=num_cores()))
    desk.display.show((progress.num_done for progress in writing), total, "making phantoms")
    return phantom_folder(settings, cache).images


def describe_data(federation: Federation) -> str:
    """Return one line on the data, phantoms named as such."""
    return (
        f"   {federation.data_kind} data: {len(federation.sites)} sites with {len(federation.training_scans)} scans, "
        f"{len(federation.shared_scans)} shared, {len(federation.all_validation_scans)} for validation, "
        f"{len(federation.test_scans)} for testing ({int(federation.near_copies_T.sum())} near-copies of training), "
        f"{len(federation.quarantined)} quarantined"
    )


def prepare_start(desk: Desk, federation: Federation) -> Start:
    """Return the model before round 1: read where this run has made it, else made, warmed up and saved."""
    spec, folder = desk.run.spec, desk.run.folder / "start"
    data_digest = federation.digest()
    found = read_start(folder, spec, data_digest=data_digest)
    if found is not None:
        return found
    with desk.clock.phase("start"):
        initial = initial_model_state(spec)
        warmed, facts = initial, None
        if spec.fl.warmup is not None:
            desk.display.step(
                f"warming up on {len(federation.shared_scans)} shared scans: {spec.fl.warmup.epochs} epochs, "
                f"layers: {spec.fl.warmup.layers}"
            )
            alone = plan_alone(spec.ray)
            setup = trainer_setup(spec, initial, store_root=store_folder(desk), num_threads=alone.num_threads)
            pool = WorkerPool(setup, alone, should_stop=desk.should_stop)
            with pool, desk.display.waiting("warming up"):
                warmed, summary = warm_up(pool, federation.shared_scans, spec.fl.warmup)
            facts = {"epochs": spec.fl.warmup.epochs, "seconds": summary.seconds, "loss": summary.mean_loss}
            desk.display.say(f"   warm-up: loss {summary.mean_loss:.4f} in {summary.seconds:.0f} s")
        start = make_start(spec, initial, warmed, facts)
        write_start(folder, start, data_digest=data_digest)
    return start


def open_pool(desk: Desk, start: Start, plan: WorkerPlan, federation: Federation) -> WorkerPool:
    """Start the workers: `plan.num_workers` anywhere, and one a pinned site on its node, as many there at most."""
    setup = trainer_setup(
        desk.run.spec,
        start.state,
        store_root=store_folder(desk),
        num_threads=plan.num_threads,
        state_root=desk.run.folder.resolve() / "sites",
    )
    pinned = Counter(site.node_resource for site in federation.sites if site.node_resource)
    places = [place for place, sites in sorted(pinned.items()) for _ in range(min(sites, plan.num_workers))]
    return WorkerPool(setup, plan, places=places, should_stop=desk.should_stop)


def prepare_features(desk: Desk, pool: WorkerPool, federation: Federation) -> None:
    """Let the workers compute all features that the rounds will read; what the store has already is free."""
    evaluated = [*validation_of(federation), (None, federation.test_scans)]
    with desk.clock.phase("features"):
        desk.display.step("preparing features: the frozen layers run once an image and view")
        rounds = desk.run.spec.fl
        views = training_views(rounds.augment) if rounds.rounds else ()
        calls = plan_preparation(federation.sites, evaluated, views, plain=rounds.analytic is not None)
        done = accumulate(prepare(pool, calls))
        desk.display.show(done, num_scans(calls), "features")


def train_arm(desk: Desk, reach: Reach, arm: Arm, *, job_digest: str) -> ArmResult:
    """Run an arm's rounds from its newest checkpoint, a checkpoint and a line a round; then test the best round.

    job_digest: of all that the arm's weights depend on; a checkpoint of another is not gone on from.
    """
    spec, checkpoints = desk.run.spec, desk.run.checkpoints(arm.name)
    desk.display.step(f"{arm.role} `{arm.name}`: {len(arm.sites)} sites, at most {arm.settings.rounds} rounds")

    def score(parameters: FlatParameters) -> Score:
        metrics = reach.validate(parameters)
        assert metrics.loss is not None, "it is None where there are no logits, and these have some"
        return Score(accuracy=metrics.accuracy, loss=metrics.loss)

    def train(task: RoundTask, assignments: Sequence[Assignment]) -> Iterator[Reply | LeftOut | SecureMean]:
        named = replace(task, config={**task.config, JOB: arm.name})
        return reach.train(named, assignments, arm.settings)

    with desk.clock.phase(f"rounds of {arm.name}"):
        state = load_checkpoint(checkpoints, job_digest=job_digest)
        if state is None:
            state = initial_state(arm.parameters, arm.strategy, score)
            save_checkpoint(checkpoints, state, job_digest=job_digest)
        desk.display.say(f"   round {state.round:3d}: validation accuracy {last_accuracy(state):.4f}")
        for finished in run_rounds(
            state,
            sites=arm.sites,
            settings=arm.settings,
            strategy=arm.strategy,
            seed=spec.seed,
            train=train,
            evaluate=score,
        ):
            state = finished
            save_checkpoint(checkpoints, state, job_digest=job_digest)
            tell_round(desk, arm, state)
        reach.forget()
    with desk.clock.phase("test"):
        validation, test = reach.validate(state.best_parameters), reach.test(state.best_parameters)
        personal: tuple[PersonalResult, ...] = ()
        if spec.fl.personal is not None and arm.role == "scenario":
            desk.display.step("tuning a head on each site, to see what it would gain")
            personal = reach.personalise(state.best_parameters, spec.fl.personal)
    seconds = sum(record.seconds for record in state.history)
    return ArmResult(arm=arm, state=state, validation=validation, test=test, seconds=seconds, personal=personal)


def solve_head(desk: Desk, reach: ClusterReach, start: Start, *, job_digest: str) -> Start:
    """Return the start with its head in closed form: read where this run has made it, else made and saved."""
    settings = desk.run.spec.fl.analytic
    if settings is None:
        return start
    folder = desk.run.folder / "analytic"
    found = read_closed_form(folder, start, job_digest=job_digest)
    if found is not None:
        return found
    with desk.clock.phase("closed form"):
        desk.display.step("a head in closed form: each site sends its sums once")
        began = time.perf_counter()
        sums = reach.sums(start.scenario_parameters)
        for out in sums.left_out:
            desk.display.say(f"      left out {out.site}: {out.reason}")
            desk.run.record("left_out", arm="analytic", round=0, site=out.site, reason=out.reason)
        failpoint("analytic.sums")
        if sums.num_sites < (needed := desk.run.spec.fl.min_clients):
            raise QuorumLost(
                f"closed form: {sums.num_sites} sites sent their sums, fl.min_clients is {needed}; "
                "mend the others or lower fl.min_clients, then continue with --resume"
            )
        parameters, head = reach.solve(sums, start.scenario_parameters, settings)
        facts = {
            "num_sites": sums.num_sites,
            "num_examples": sums.statistics.num_examples,
            "bytes_up_per_site": sums.bytes_up_per_site,
            "ridge": head.ridge,
            "seconds": time.perf_counter() - began,
        }
        solved = replace(start, scenario_parameters=parameters, analytic=facts)
        write_closed_form(folder, solved, job_digest=job_digest)
    desk.display.say(
        f"   {sums.num_sites} sites, {sums.statistics.num_examples} examples, "
        f"{sums.bytes_up_per_site / 1e6:.1f} MB a site, ridge {head.ridge:g}"
    )
    return solved


def tell_round(desk: Desk, arm: Arm, state: FederationState) -> None:
    """Write one finished round to the screen and to the run's events, every left-out site by name."""
    record = state.history[-1]
    best = "  best" if state.best_round == record.round else ""
    desk.display.say(
        f"   round {record.round:3d}: validation accuracy {record.validation_accuracy:.4f}, loss "
        f"{record.validation_loss:.4f}; {len(record.sites)} sites in {record.seconds:.1f} s{best}"
    )
    if record.num_clipped:
        desk.display.say(f"      {record.num_clipped} values of updates were clipped; raise fl.secure_aggregation.clip")
        desk.run.record("clipped_warning", arm=arm.name, round=record.round, values=record.num_clipped)
    for out in record.left_out:
        desk.display.say(f"      left out {out.site}: {out.reason}")
        desk.run.record("left_out", arm=arm.name, round=record.round, site=out.site, reason=out.reason)
    desk.run.record(
        "round", arm=arm.name, round=record.round, accuracy=record.validation_accuracy, seconds=record.seconds
    )


def ship(desk: Desk, federation: Federation, start: Start, arms: Sequence[ArmResult]) -> Shipped:
    """Export the scenario's best model as a bundle, and let it answer some test images."""
    with desk.clock.phase("export"):
        desk.display.step("exporting the bundle")
        best = arms[0]
        figures = {"validation": best.validation.to_json(), "test": best.test.to_json()}
        graph = export_graph(desk.run, federation, start, best.state.best_parameters)
        order = Order(
            targets=frozenset(desk.run.spec.export.to),
            model_version=desk.run.spec.export.model_version,
            folder=desk.run.folder / "bundle",
            triton=desk.run.folder / "triton",
            key=desk.key,
            insists=False,
            say=desk.display.say,
        )
        bundle = release(desk.run, federation, graph, figures, order)
        predictor = Predictor(load_bundle(bundle, Trust.of(desk.key)))
        samples = write_samples(desk.run, predictor, federation)
        return Shipped(samples=samples, measured=measured(predictor))


def job_digest(run: Run, federation: Federation, start: Start, name: str) -> str:
    """Return a digest of all that the weights of an arm, or of the closed form, depend on."""
    return digest_of(run.spec.learning_digest(), federation.digest(), start.digest(), name)


def sites_a_round(run: Run, federation: Federation) -> int:
    """Return how many sites every round asks."""
    rounds, seed = run.spec.fl, run.spec.seed
    chosen = select_sites(
        federation.sites, sampling=rounds.sampling, participation=rounds.participation, seed=seed, round=1
    )
    return len(chosen)


def store_folder(desk: Desk) -> Path:
    """Return the folder of the feature store."""
    return cache_folder(desk.run.spec) / "store"


def last_accuracy(state: FederationState) -> float:
    """Return the validation accuracy of the newest parameters."""
    return state.history[-1].validation_accuracy if state.history else state.start_score.accuracy


def digest_of(*parts: str) -> str:
    """Return one digest of several."""
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
