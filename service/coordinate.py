"""The journey of one job across hospitals: sites → start → rounds → test → bundle → report.

It is that of `service.job` with hospitals in place of workers: what the coordinator knows of their data is class
counts, and what it sees of their work is parameters and counts. It has a test set of its own.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from fl.data.admission import admit
from fl.data.federation import Federation
from fl.data.layout import discover
from fl.durable import write_file
from fl.errors import DataError
from fl.evaluation.metrics import ClassificationMetrics, EvaluationReport, evaluate_paired
from fl.evaluation.personal import PersonalResult
from fl.hospital.crew import Crew
from fl.hospital.folders import CoordinatorFolder
from fl.hospital.setup import RUN_KEY, SETUP_KEY, SiteSetup, setup_digest
from fl.hospital.superlink import SuperLink
from fl.model.flat import FlatParameters
from fl.runtime.client import training_views
from fl.runtime.cluster import num_cores
from fl.server.rounds import RoundSettings
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask, SecureMean
from fl.training.personal import PersonalSettings
from fl.training.trainer import SiteTrainer
from fl.types import CLASSES, Scan, Site
from service.arms import ArmResult, arms_of
from service.caches import cache_folder
from service.job import Desk, job_digest, ship, store_folder, train_arm
from service.keys import signing_key
from service.machine import MemorySampler, PhaseClock
from service.outcome import Usage, write_result
from service.progress import Display
from service.reach import forget_secrets, this_start, train_masked
from service.release import require_targets
from service.report import write_report
from service.runs import Run
from service.spec import FederationSettings, JobSpec
from service.start import (
    Start,
    initial_model_state,
    make_start,
    preprocess_spec,
    read_start,
    trainer_setup,
    write_start,
)
from service.yaml_source import SpecError

HOSPITALS_FILE = "hospitals.json"
"""In a run's folder: the sites that it began with. Only runs across hospitals have it."""


class HospitalReach:
    """Hospitals over a SuperLink. trainer: the coordinator's own, for its test scans. context: digest of the job."""

    def __init__(
        self, crew: Crew, trainer: SiteTrainer, federation: Federation, settings: FederationSettings, *, context: str
    ) -> None:
        self._crew = crew
        self._trainer = trainer
        self._federation = federation
        self._settings = settings
        self._context = this_start(context)

    def train(
        self, task: RoundTask, assignments: Sequence[Assignment], settings: RoundSettings
    ) -> Iterator[Reply | LeftOut | SecureMean]:
        """Give the task to the selected sites; yield what comes of it, as it comes."""
        timeout = settings.site_timeout_seconds
        if settings.secure_aggregation is None:
            return self._crew.train(task, assignments, timeout_seconds=timeout)
        return train_masked(self._crew.ask, task, assignments, settings, context=self._context)

    def validate(self, parameters: FlatParameters) -> ClassificationMetrics:
        """Return how parameters [P] do on the sites' validation scans, summed from the sites' counts."""
        return self._crew.evaluate(parameters, timeout_seconds=self._settings.site_timeout_seconds)

    def test(self, parameters: FlatParameters) -> EvaluationReport:
        """Return how parameters [P] do on the coordinator's own test scans."""
        scans = self._federation.test_scans
        labels, logits_TK = [scan.label for scan in scans], self._trainer.evaluate(parameters, scans)
        return evaluate_paired(labels, logits_TK, self._federation.near_copies_T, CLASSES)

    def personalise(self, parameters: FlatParameters, settings: PersonalSettings) -> tuple[PersonalResult, ...]:
        """Return nothing: `require_hospital_job` refuses jobs that ask for it."""
        return ()

    def forget(self) -> None:
        """Let sites drop the secrets of their last secure round; one that does not answer keeps them in its file."""
        if self._settings.secure_aggregation is not None:
            forget_secrets(self._crew.ask, self._crew.sites)


def coordinate(
    run: Run, keys: CoordinatorFolder, display: Display, should_stop: Callable[[], bool], *, quorum: int | None
) -> tuple[ArmResult, ...]:
    """Train, test and export one job with the hospitals whose keys are given; resume what the run's folder holds.

    quorum: connected sites to begin with, None: all registered. Errors are those of `service.job.run_job`, and
    HospitalError where a site or the line to it is at fault.
    """
    require_hospital_job(run.spec)
    key = signing_key(run.spec.export, display.say)
    require_targets(run.spec.export.to)
    desk = Desk(run=run, display=display, clock=PhaseClock(), should_stop=should_stop, key=key)
    with MemorySampler() as memory:
        tests = gather_tests(desk)
        initial = initial_model_state(run.spec)
        start = make_start(run.spec, initial, initial, None)
        threads = run.spec.ray.threads or num_cores()
        trainer = SiteTrainer(trainer_setup(run.spec, start.state, store_root=store_folder(desk), num_threads=threads))
        trainer.prepare(tests, None)
        display.step(f"coordinator at {keys.address}, listening on {keys.listen}")
        setup = site_setup(run.spec)
        told = {SETUP_KEY: setup_digest(setup, start.state), RUN_KEY: run_token(run)}
        with SuperLink(keys, log=run.folder / "superlink.log", run_config=told, should_stop=should_stop) as link:
            crew = Crew(link, should_stop=should_stop, say=display.say)
            sites = crew.set_up(muster(desk, crew, quorum), setup, start.state)
            federation = federate(desk, sites, tests)
            start = keep_start(desk, start, federation)
            with desk.clock.phase("features"):
                display.step("the sites prepare their features")
                done = accumulate(crew.prepare(training_views(run.spec.fl.augment)))
                display.show(done, len(federation.sites), "sites")
            arms = []
            for arm in arms_of(run.spec, federation, start):
                digest = job_digest(run, federation, start, arm.name)
                reach = HospitalReach(crew, trainer, federation, run.spec.fl, context=digest)
                arms.append(train_arm(desk, reach, arm, job_digest=digest))
        shipped = ship(desk, federation, start, arms)
    usage = Usage(phases=desk.clock.seconds, peak_memory_bytes=memory.peak_bytes, workers=trainer.describe())
    write_result(run, federation, arms, start=start, shipped=shipped, usage=usage)
    write_report(run.folder)
    run.record("finished")
    return tuple(arms)


def run_token(run: Run) -> str:
    """Return what tells this run from all others, for ever: sites keep their memories under it."""
    path = run.folder / "token"
    if not path.exists():
        write_file(path, secrets.token_hex(16).encode())
    return path.read_text()


def require_hospital_job(spec: JobSpec) -> None:
    """Raise SpecError where the job needs what hospitals cannot give."""
    faults = []
    if spec.shared is not None:
        faults.append("shared: hospitals share no scans; set shared: null and fl.warmup: null, as in `noniid`")
    if spec.data.source != "folder":
        faults.append("data.source: set `folder`, and data.root to the coordinator's own test set")
    if spec.fl.analytic is not None:
        faults.append("fl.analytic: validation scans choose its ridge, and hospitals keep those; set fl.analytic: null")
    if "int8" in spec.export.to:
        faults.append("export.to: int8 is calibrated on scans, and hospitals keep theirs; leave it out")
    if spec.fl.personal is not None:
        faults.append("fl.personal: hospitals keep what a head of their own is worth to them; set fl.personal: null")
    if faults:
        raise SpecError(faults)


def gather_tests(desk: Desk) -> tuple[Scan, ...]:
    """Return the coordinator's own test scans. Raises DataError where it has none."""
    spec = desk.run.spec
    assert spec.data.root is not None, "the spec asks for it with source `folder`"
    layout = discover(spec.data.root)
    found = layout.testing or layout.plain
    with desk.clock.phase("data"):
        inventory = cache_folder(spec) / "inventory.jsonl"
        outcomes = list(desk.mind(admit(found.files if found else (), spec.data.admission, inventory)))
    tests = tuple(outcome for outcome in outcomes if isinstance(outcome, Scan))
    if not tests:
        raise DataError(
            f"{spec.data.root}: the coordinator needs a test set of its own, Testing/<class>/* or <class>/*; "
            "without one nobody would know how good the model is"
        )
    desk.display.say(f"   {len(tests)} scans for testing; copies of hospitals' scans among them are not looked for")
    return tests


def muster(desk: Desk, crew: Crew, quorum: int | None) -> tuple[str, ...]:
    """Wait for the sites that the run needs: those it began with, else the quorum; return their names."""
    listed = _hospitals_file(desk)
    needed = json.loads(listed.read_text()) if listed.exists() else None
    with desk.clock.phase("sites"):
        return crew.muster(needed, quorum)


def hospital_federation(sites: tuple[Site, ...], tests: tuple[Scan, ...]) -> Federation:
    """Return what a coordinator knows of hospitals' data, beside its own test scans; copies are not looked for."""
    nothing_T = np.zeros(len(tests), np.bool_)
    return Federation(
        data_kind="mri",
        sites=sites,
        shared_scans=(),
        validation_scans=(),
        test_scans=tests,
        near_copies_T=nothing_T,
        exact_copies_T=nothing_T,
        quarantined=(),
    )


def federate(desk: Desk, sites: tuple[Site, ...], tests: tuple[Scan, ...]) -> Federation:
    """Return the federation of these sites, which the run keeps to, and tell of them."""
    write_file(_hospitals_file(desk), json.dumps([site.name for site in sites]).encode())
    federation = hospital_federation(sites, tests)
    for site in sites:
        counts = ", ".join(f"{name} {sum(s.label == label for s in site.scans)}" for label, name in enumerate(CLASSES))
        desk.display.say(f"   {site.name}: {counts}; {len(site.validation_scans)} for validation")
        desk.run.record("site", site=site.name, examples=site.num_examples, validation=len(site.validation_scans))
    return federation


def _hospitals_file(desk: Desk) -> Path:
    return desk.run.folder / HOSPITALS_FILE


def site_setup(spec: JobSpec) -> SiteSetup:
    """Return what sites are told of a job."""
    return SiteSetup(
        network=spec.model.network,
        speed=spec.model.speed,
        preprocess=preprocess_spec(spec).to_json(),
        crop_backend=spec.preprocess.backend,
        augment=spec.fl.augment,
        local=spec.fl.local,
        admission=spec.data.admission,
        validation_fraction=spec.data.validation_fraction,
        seed=spec.seed,
    )


def keep_start(desk: Desk, start: Start, federation: Federation) -> Start:
    """Save the start with the digest of the sites' data. Raises CheckpointError where it was begun with other data."""
    folder, digest = desk.run.folder / "start", federation.digest()
    found = read_start(folder, desk.run.spec, data_digest=digest)
    if found is None:
        write_start(folder, start, data_digest=digest)
    return found or start
