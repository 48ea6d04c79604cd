"""The hospitals of one job as the coordinator's journey sees them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fl.errors import HospitalError, ProtocolError, Stopped
from fl.evaluation.metrics import ClassificationMetrics, metrics_from_confusion
from fl.hospital.desk import DATA_DIGEST, DATA_RECORD
from fl.hospital.link_grid import POLL_SECONDS, RETURN_SECONDS
from fl.hospital.setup import SiteSetup, pack_setup
from fl.hospital.superlink import SuperLink
from fl.model.flat import FlatParameters
from fl.runtime.flower_app import SETUP
from fl.runtime.messages import Counts, SiteDescription, unpack_description
from fl.runtime.sites import Limits, ask, ask_named, evaluate_sites, prepare_sites, train_sites
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask
from fl.training.trainer import ModelState
from fl.types import CLASSES, Scan, Site

SETUP_TIMEOUT_SECONDS = 3600.0
PREPARE_TIMEOUT_SECONDS = 24 * 3600.0
WAITING_INTERVAL_SECONDS = 60.0
_TTL_MARGIN_SECONDS = 60.0
_MOST_SCANS = 10**7


class Crew:
    """The sites of one job over a SuperLink.

    should_stop: asked several times a second while waiting; True raises Stopped. say: told who comes and goes.
    """

    def __init__(self, link: SuperLink, *, should_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._link = link
        self._should_stop = should_stop
        self._say = say
        self.sites: tuple[Site, ...] = ()

    def muster(self, needed: Sequence[str] | None, quorum: int | None) -> tuple[str, ...]:
        """Wait until enough sites are connected, and return those that are, in name order.

        needed: exactly these; None: `quorum` of the registered ones, None all.
        Raises HospitalError where so many, or one of these, are not registered.
        """
        registered = set(self._link.sites)
        unknown = sorted(set(needed or ()) - registered)
        if unknown:
            raise HospitalError(
                f"this run was begun with {', '.join(unknown)}, which have no key in the folder sites/ now; "
                "put the keys back, or begin a new run"
            )
        wanted = set(needed) if needed is not None else registered
        enough = len(wanted) if needed is not None else quorum or len(wanted)
        if enough > len(wanted):
            raise HospitalError(f"--quorum is {enough}, but {len(wanted)} sites are registered")
        return self._wait_for(wanted, enough, seconds=None)

    def set_up(self, names: Sequence[str], setup: SiteSetup, state: ModelState) -> tuple[Site, ...]:
        """Give every site the job's setup, and return the sites as the coordinator may know them.

        Their scans are stand-ins, a label each and the digest of the site's data. Raises HospitalError where one
        cannot take part.
        """
        nodes = {self._link.sites[name]: name for name in names}
        contents = dict.fromkeys(nodes, pack_setup(setup, state))
        sites: dict[str, Site] = {}
        for node, reply in ask(self._link.grid, SETUP, contents, _limits(SETUP_TIMEOUT_SECONDS)):
            name = nodes[node]
            if isinstance(reply, str):
                raise HospitalError(f"site {name!r} cannot take part: {reply}; mend it, go on with --resume")
            try:
                digest = str(reply.config_records[DATA_RECORD][DATA_DIGEST])
                sites[name] = _site_of(name, unpack_description(reply), digest)
            except (ProtocolError, KeyError) as error:
                raise HospitalError(f"site {name!r} described itself unreadably: {error}") from error
        self.sites = tuple(sites[name] for name in sorted(sites))
        return self.sites

    def prepare(self, views: Sequence[int]) -> Iterator[int]:
        """Let every site compute its features; yield 1 for each that is done. Raises HospitalError where one fails."""
        nodes = {site.name: self._link.sites[site.name] for site in self.sites}
        for name, fault in prepare_sites(self._link.grid, nodes, views, _limits(PREPARE_TIMEOUT_SECONDS)):
            if fault is not None:
                raise HospitalError(f"site {name!r} could not prepare: {fault.reason}; mend it, go on with --resume")
            yield 1

    def train(
        self, task: RoundTask, assignments: Sequence[Assignment], *, timeout_seconds: float
    ) -> Iterator[Reply | LeftOut]:
        """Give the task to the selected sites; yield each one's reply, or why there is none."""
        nodes = self._connected(assignment.site.name for assignment in assignments)
        yield from train_sites(self._link.grid, nodes, task, assignments, _limits(timeout_seconds))

    def ask(
        self, contents: Mapping[str, RecordDict], message_type: str, timeout_seconds: float
    ) -> Iterator[tuple[str, RecordDict | LeftOut]]:
        """Send each named site its content; yield (site, its answer or why there is none) as they come."""
        nodes = self._connected(iter(contents))
        yield from ask_named(self._link.grid, nodes, message_type, contents, _limits(timeout_seconds))

    def evaluate(self, parameters: FlatParameters, *, timeout_seconds: float) -> ClassificationMetrics:
        """Return the metrics over all sites' validation scans, summed from their counts.

        A site that does not answer in time is left out and named. Raises HospitalError where none answers.
        """
        nodes = self._connected(site.name for site in self.sites if site.validation_scans)
        described = {site.name: len(site.validation_scans) for site in self.sites}
        counted: dict[str, Counts] = {}
        faults: dict[str, str] = {}
        for name, counts in evaluate_sites(self._link.grid, nodes, parameters, _limits(timeout_seconds)):
            if isinstance(counts, LeftOut):
                faults[name] = counts.reason
                self._say(f"      not in this validation: {name}: {counts.reason}")
            elif counts.num_examples != described[name]:
                faults[name] = f"it counted {counts.num_examples} scans, and described itself with {described[name]}"
                self._say(f"      not in this validation: {name}: {faults[name]}")
            else:
                counted[name] = counts
        total = sum(counts.num_examples for counts in counted.values())
        if not total:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in faults.items()) or "none keeps scans for it"
            raise HospitalError(f"no site could validate the model ({reasons}); continue with --resume")
        confusion = sum(np.array(counts.confusion, np.int64) for counts in counted.values())
        # in name order: the sum must not depend on who answered first
        loss = sum(counted[name].loss_sum for name in sorted(counted)) / total
        return metrics_from_confusion(confusion, CLASSES, loss=loss)

    def _connected(self, names: Iterator[str]) -> Mapping[str, int]:
        """Return the nodes of these sites, having waited for those that may come back soon."""
        wanted = set(names)
        present = self._wait_for(wanted, len(wanted), seconds=RETURN_SECONDS)
        return {name: self._link.sites[name] for name in present}

    def _wait_for(self, wanted: set[str], enough: int, *, seconds: float | None) -> tuple[str, ...]:
        """Return the connected ones of the wanted sites, once there are enough or after so many seconds."""
        started = time.monotonic()
        said_at = started if seconds is not None else 0.0
        present: set[str] = set()
        while True:
            connected = [name for name in self._link.connected() if name in wanted]
            if seconds is None:
                for name in sorted(set(connected) - present):
                    self._say(f"   {name} is connected")
            present |= set(connected)
            now = time.monotonic()
            if len(connected) >= enough or (seconds is not None and now - started > seconds):
                return tuple(connected)
            if now - said_at >= WAITING_INTERVAL_SECONDS:
                said_at = now
                missing = ", ".join(sorted(wanted - set(connected)))
                self._say(f"   waiting for {enough - len(connected)} of {missing}")
            if self._should_stop():
                raise Stopped("stopped by a signal; all that was finished is on disk, continue with --resume")
            time.sleep(POLL_SECONDS)


def _limits(seconds: float) -> Limits:
    # a message lives longer than anybody waits for its reply, so that what is late is called late, not unknown
    return Limits(timeout_seconds=seconds + _TTL_MARGIN_SECONDS, give_up_seconds=seconds)


def _site_of(name: str, description: SiteDescription, digest: str) -> Site:
    """Return a site with a stand-in for each of its scans: the label, and the digest of all the site's data."""
    counts, num_validation = description.class_counts, description.num_validation
    if description.name != name:
        raise ProtocolError(f"it says that it is {description.name!r}")
    if len(counts) != len(CLASSES) or min(counts) < 0 or not 0 < sum(counts) < _MOST_SCANS:
        raise ProtocolError(f"it says that it has {counts} scans of the {len(CLASSES)} classes")
    if not 0 <= num_validation < _MOST_SCANS:
        raise ProtocolError(f"it says that it has {num_validation} scans for validation")
    if description.group not in ("all", *CLASSES):
        raise ProtocolError(f"it says that its group is {description.group!r}")

    def stand_in(label: int) -> Scan:
        return Scan(path=Path(f"at {name}"), label=label, pixels_sha256=digest, phash=0, height=0, width=0)

    labels = chain.from_iterable([label] * count for label, count in enumerate(counts))
    return Site(
        name=name,
        scans=tuple(stand_in(label) for label in labels),
        validation_scans=(stand_in(0),) * num_validation,
        group=description.group,
    )
