"""Secure rounds over any grid: the four phases of `fl.privacy.secagg` as messages to sites.

The server keeps one ring vector and learns the sum. A site that does not answer a phase, or answers wrongly, is left
out and named; where too few are left, the round fails closed with SecureAggregationError and nothing was learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fl.errors import ProtocolError, SecureAggregationError
from fl.failpoint import failpoint
from fl.model.flat import FlatParameters
from fl.privacy.secagg.encoding import ArraySpec, SecureSum
from fl.privacy.secagg.messages import AdvertisedKeys, EncryptedShares, Masked, UnmaskShares
from fl.privacy.secagg.plan import SecAggPlan, SecureAggregationSettings
from fl.privacy.secagg.server import SecAggServer
from fl.runtime.messages import pack_tasks, unpack_array, unpack_summary
from fl.training.exchange import Assignment, LeftOut, RoundTask, SecureMean
from fl.training.local import TrainingSummary

STATISTICS = "query.statistics"
SECURE_KEYS = "query.secure_keys"
SECURE_SHARES = "query.secure_shares"
SECURE_TRAIN = "train.secure"
SECURE_STATISTICS = "query.secure_statistics"
SECURE_UNMASK = "query.secure_unmask"
SECURE_FORGET = "query.secure_forget"

SECURE, MESSAGE, PLAN, WEIGHTED = "secure", "message", "plan", "weighted"
UPDATE, SUMS, UNIT = "update", "sums", "unit"
VECTOR = "vector"

PHASE_TIMEOUT_SECONDS = 300.0
"""Of the phases without training: milliseconds of work, behind whatever else a site is doing."""

Ask = Callable[[Mapping[str, RecordDict], str, float], Iterator[tuple[str, RecordDict | LeftOut]]]
"""Sends each named site its content with a message type; yields answers, or why there is none, as they come."""


@dataclass(kw_only=True, slots=True)
class _Round:
    """One secure round while it runs."""

    server: SecAggServer
    ask: Ask
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def phase(
        self,
        message_type: str,
        contents: Mapping[str, RecordDict],
        take: Callable[[str, RecordDict], None],
        timeout_seconds: float = PHASE_TIMEOUT_SECONDS,
    ) -> None:
        """Ask the sites and take their answers; one that fails is noted and does not enter the next phase."""
        for site, answered in self.ask(contents, message_type, timeout_seconds):
            if isinstance(answered, LeftOut):
                self.left_out[site] = answered
                continue
            try:
                take(site, answered)
            except (SecureAggregationError, ProtocolError) as refused:
                self.left_out[site] = LeftOut(site=site, reason=f"update refused: {refused}")


def train_secure_round(
    ask: Ask,
    task: RoundTask,
    assignments: Sequence[Assignment],
    settings: SecureAggregationSettings,
    *,
    by_examples: bool,
    context: bytes,
    timeout_seconds: float,
) -> Iterator[SecureMean | LeftOut]:
    """Train the selected sites and yield the mean of their parameters, and why sites are not in it.

    by_examples: weigh by training examples, else uniformly. context: names the job and this start of it; it is bound
    into every key, so that a round that is begun again is another round to the sites.
    Raises SecureAggregationError where too few sites stay to the end.
    """
    most = max(assignment.site.num_examples for assignment in assignments) if by_examples else 1
    try:
        plan = settings.plan(
            round=task.round,
            sites=[assignment.site.name for assignment in assignments],
            arrays=[ArraySpec(name=UPDATE, length=len(task.parameters), clip=settings.clip)],
            context=context,
            max_weight=most,
        )
    except ValueError as error:
        raise SecureAggregationError("plan", f"{error}; set fl.secure_aggregation.ring_bits: 64") from error
    tasks = pack_tasks(task, [assignment.state_round for assignment in assignments])
    contents = {one.site.name: content for one, content in zip(assignments, tasks, strict=True)}
    summaries: dict[str, TrainingSummary] = {}

    def hear(site: str, content: RecordDict) -> None:
        summary = unpack_summary(content)
        if summary.num_examples < 1 or not math.isfinite(summary.mean_loss):
            raise ProtocolError(f"it says {summary.num_examples} examples and a loss of {summary.mean_loss}")
        summaries[site] = summary

    total, left_out = secure_sum(
        ask, plan, SECURE_TRAIN, contents, hear=hear, weighted=by_examples, timeout_seconds=timeout_seconds
    )
    yield from left_out
    yield SecureMean(
        parameters=_add(task.parameters, total.mean(UPDATE)),
        summaries={site: summaries[site] for site in total.sites},
        bytes_up=len(total.sites) * total.total.nbytes,
        num_clipped=total.clipped,
    )


def secure_sum(
    ask: Ask,
    plan: SecAggPlan,
    message_type: str,
    contents: Mapping[str, RecordDict],
    *,
    hear: Callable[[str, RecordDict], None],
    weighted: bool,
    timeout_seconds: float,
) -> tuple[SecureSum, list[LeftOut]]:
    """Run the protocol around one piece of work and return the sum, and which sites are not in it.

    message_type, contents: what the sites are asked to do and to mask. hear: called with what a site says in clear
    beside its masked vector. Raises SecureAggregationError where too few sites stay.
    """
    run = _Round(server=SecAggServer(plan), ask=ask)
    try:
        total = _run_phases(run, message_type, contents, hear=hear, weighted=weighted, timeout_seconds=timeout_seconds)
    except SecureAggregationError as error:
        reasons = "; ".join(f"{out.site}: {out.reason}" for out in run.left_out.values()) or "no site was left out"
        raise SecureAggregationError(
            error.phase, f"{error.reason} ({reasons}). Mend these sites, then continue with --resume", site=error.site
        ) from error
    return total, [left for site, left in run.left_out.items() if site not in total.sites]


def _run_phases(
    run: _Round,
    message_type: str,
    contents: Mapping[str, RecordDict],
    *,
    hear: Callable[[str, RecordDict], None],
    weighted: bool,
    timeout_seconds: float,
) -> SecureSum:
    plan = run.server.plan
    beginning = _content(plan.to_bytes(), name=PLAN)
    run.phase(
        SECURE_KEYS,
        dict.fromkeys(plan.sites, beginning),
        lambda site, content: run.server.add_keys(AdvertisedKeys.from_bytes(secure_bytes(content)).sent_by(site)),
    )
    keys = run.server.close_keys()
    run.phase(
        SECURE_SHARES,
        {site: _content(message.to_bytes()) for site, message in keys.items()},
        lambda site, content: run.server.add_shares(EncryptedShares.from_bytes(secure_bytes(content)).sent_by(site)),
    )

    def take_masked(site: str, content: RecordDict) -> None:
        hear(site, content)
        run.server.add_masked(
            Masked.from_bytes(secure_bytes(content), vector=unpack_array(content, VECTOR)).sent_by(site)
        )

    shares = run.server.close_shares()
    run.phase(
        message_type,
        {
            site: RecordDict({**contents[site], SECURE: _record(message.to_bytes(), weighted=weighted)})
            for site, message in shares.items()
        },
        take_masked,
        timeout_seconds,
    )
    survivors = run.server.close_masked()
    failpoint("secure.masked")
    run.phase(
        SECURE_UNMASK,
        dict.fromkeys(survivors.sites, _content(survivors.to_bytes())),
        lambda site, content: run.server.add_unmask(UnmaskShares.from_bytes(secure_bytes(content)).sent_by(site)),
    )
    failpoint("secure.unmasked")
    return run.server.result()


def _add(parameters: FlatParameters, mean: FlatParameters) -> FlatParameters:
    return np.add(parameters, mean, dtype=np.float32)


def _content(data: bytes, name: str = MESSAGE) -> RecordDict:
    return RecordDict({SECURE: ConfigRecord({name: data})})


def _record(data: bytes, *, weighted: bool) -> ConfigRecord:
    return ConfigRecord({MESSAGE: data, WEIGHTED: weighted})


def secure_bytes(content: RecordDict, name: str = MESSAGE) -> bytes:
    """Return a message of the secure round, or its plan, out of a Flower message. Raises ProtocolError."""
    data = content.config_records.get(SECURE, ConfigRecord()).get(name)
    if not isinstance(data, bytes):
        raise ProtocolError(f"a message of a secure round has no {name!r}")
    return data
