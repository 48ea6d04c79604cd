"""A site's answers in a secure round; its secrets lie in a file that only its own user can read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl.durable import write_secret
from fl.errors import ProtocolError, SecureAggregationError
from fl.model.flat import FlatParameters
from fl.privacy.secagg.messages import PeerKeys, PeerShares, Survivors
from fl.privacy.secagg.plan import SecAggPlan
from fl.privacy.secagg.site import SiteSession
from fl.runtime.messages import ARRAYS, CONFIG, METRICS, arrays_record, pack_summary, unpack_parameters, unpack_task
from fl.runtime.secure import MESSAGE, PLAN, SECURE, SUMS, UNIT, UPDATE, VECTOR, WEIGHTED, secure_bytes
from fl.training.encoding import EncodedDelta
from fl.training.exchange import Reply, RoundTask
from fl.training.statistics import SiteStatistics
from fl.types import Site


class SecureTrainer(Protocol):
    """What a secure round needs of a `fl.training.trainer.SiteTrainer`."""

    @property
    def state_root(self) -> Path:
        """Folder of what sites keep from call to call."""

    def statistics(self, parameters: FlatParameters, site: Site) -> SiteStatistics:
        """Return the sums over what the head reads of the site's own scans."""

    def train(self, task: RoundTask, site: Site, state_round: int) -> Reply:
        """Train one round."""


def answer_keys(trainer: SecureTrainer, site: Site, content: RecordDict) -> RecordDict:
    """Begin a secure round: draw secrets, advertise their public halves. Asked again, it advertises the same."""
    plan, path = SecAggPlan.from_bytes(secure_bytes(content, PLAN)), _session_file(trainer, site)
    try:
        session = _load(path, plan.digest)
    except SecureAggregationError:
        session = None  # damaged: nothing was masked under it in this round that another beginning could reveal
    if session is None:
        session, _ = SiteSession.begin(plan, site.name)
        _save(path, session)
    return _message(session.advertised().to_bytes())


def answer_shares(trainer: SecureTrainer, site: Site, content: RecordDict) -> RecordDict:
    """Share the secrets among the neighbours, each share for its holder's eyes only."""
    message = PeerKeys.from_bytes(secure_bytes(content))
    path, session = _open(trainer, site, message.plan)
    shares = session.share(message)
    _save(path, session)
    return _message(shares.to_bytes())


def answer_train(trainer: SecureTrainer, site: Site, content: RecordDict) -> RecordDict:
    """Train, and return the masked update beside what the site says of its training."""
    task, state_round = unpack_task(content)
    reply = trainer.train(task, site, state_round)
    if reply.extra or isinstance(reply.update, EncodedDelta):
        raise ProtocolError("a secure round sums plain updates; set fl.encoding: float32 and a strategy of means")
    masked = _mask(trainer, site, content, {UPDATE: reply.update - task.parameters}, site.num_examples)
    masked[METRICS] = MetricRecord(pack_summary(reply.summary, reply.round))
    return masked


def answer_statistics(trainer: SecureTrainer, site: Site, content: RecordDict) -> RecordDict:
    """Return the masked sums of the site's features, for a head in closed form."""
    statistics = trainer.statistics(unpack_parameters(content), site)
    masked = _mask(trainer, site, content, {SUMS: statistics.as_vector()}, 1.0)
    masked[CONFIG] = ConfigRecord({UNIT: statistics.unit})
    return masked


def answer_unmask(trainer: SecureTrainer, site: Site, content: RecordDict) -> RecordDict:
    """Give the shares that take the masks off the sum.

    The secrets stay until the next round begins or the job ends: a question whose answer was lost can be asked again.
    """
    message = Survivors.from_bytes(secure_bytes(content))
    path, session = _open(trainer, site, message.plan)
    shares = session.unmask(message)
    _save(path, session)
    return _message(shares.to_bytes())


def answer_forget(trainer: SecureTrainer, site: Site, content: RecordDict) -> RecordDict:
    """Drop the secrets of the last secure round: nobody will ask for them again."""
    _session_file(trainer, site).unlink(missing_ok=True)
    return RecordDict()


def _mask(
    trainer: SecureTrainer,
    site: Site,
    content: RecordDict,
    values: Mapping[str, NDArray[Any]],
    weight: float,
) -> RecordDict:
    message = PeerShares.from_bytes(secure_bytes(content))
    weighted = content.config_records[SECURE].get(WEIGHTED)
    path, session = _open(trainer, site, message.plan)
    masked, _ = session.mask(values, weight if weighted else 1.0, message)
    _save(path, session)  # before it is sent: another vector under these masks must never leave
    out = _message(masked.to_bytes())
    out[ARRAYS] = arrays_record({VECTOR: masked.vector})
    return out


def _message(data: bytes) -> RecordDict:
    return RecordDict({SECURE: ConfigRecord({MESSAGE: data})})


def _session_file(trainer: SecureTrainer, site: Site) -> Path:
    folder = trainer.state_root / hashlib.sha256(site.name.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "secure-round"


def _open(trainer: SecureTrainer, site: Site, digest: bytes) -> tuple[Path, SiteSession]:
    path = _session_file(trainer, site)
    session = _load(path, digest)
    if session is None:
        raise ProtocolError(f"site {site.name!r} has not begun this secure round; it is out of it")
    return path, session


def _load(path: Path, digest: bytes) -> SiteSession | None:
    if not path.exists():
        return None
    session = SiteSession.from_bytes(path.read_bytes())
    return session if session.plan.digest == digest else None


def _save(path: Path, session: SiteSession) -> None:
    write_secret(path, session.to_bytes())  # lost in a power cut, the site begins anew or is out: never a wrong sum
