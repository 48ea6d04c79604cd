"""What a site does when it is asked: the one function that a Ray worker and a hospital's ClientApp both run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl.errors import GliofedError, ProtocolError
from fl.evaluation.metrics import evaluate
from fl.model.flat import FlatParameters
from fl.runtime.flower_internals import CLIPPING_NORM, clip
from fl.runtime.messages import (
    ARRAYS,
    CLIPPING,
    CONFIG,
    DESCRIBE,
    EVALUATE,
    METRICS,
    PREPARE,
    TRAIN,
    Counts,
    arrays_record,
    error_reply,
    pack_counts,
    pack_description,
    pack_reply,
    unpack_parameters,
    unpack_task,
)
from fl.runtime.secure import (
    SECURE_FORGET,
    SECURE_KEYS,
    SECURE_SHARES,
    SECURE_STATISTICS,
    SECURE_TRAIN,
    SECURE_UNMASK,
    STATISTICS,
    SUMS,
    UNIT,
)
from fl.runtime.secure_site import (
    SecureTrainer,
    answer_forget,
    answer_keys,
    answer_shares,
    answer_statistics,
    answer_train,
    answer_unmask,
)
from fl.training.augment import AugmentSettings
from fl.types import CLASSES, Scan, Site

_CLIPPING_KEYS = (CLIPPING, CLIPPING_NORM)

VIEWS = "views"
"""Of a preparation's config: which views of each training scan, a list."""


class Trainer(SecureTrainer, Protocol):
    """What answering needs of a `fl.training.trainer.SiteTrainer`."""

    def describe(self) -> dict[str, str]:
        """Return how it computes."""

    def prepare(self, scans: Sequence[Scan], views: Sequence[int] | None) -> int:
        """Compute what training (views) or evaluation (None) will read; return how much was computed."""

    def evaluate(self, parameters: FlatParameters, scans: Sequence[Scan]) -> NDArray[np.float32]:
        """Return logits_NK."""


def answer(trainer: Trainer, site: Site, message_type: str, content: RecordDict) -> RecordDict:
    """Return the content of the site's answer to a message's content; the records of both: `fl.runtime.messages`.

    message_type: Flower's, `train`, `evaluate` or `query.ACTION`; `ANSWERS` lists them. Asking again gives the same.
    Raises ProtocolError where the message is not understood, and whatever the work itself raises.
    """
    if message_type not in ANSWERS:
        raise ProtocolError(f"a site cannot answer {message_type!r}; it knows {', '.join(ANSWERS)}")
    return ANSWERS[message_type](trainer, site, content)


def answer_message(trainer: Trainer, site: Site, message: Message) -> Message:
    """Return the site's reply to a message, an Error where the work failed on purpose; other exceptions pass."""
    try:
        content = answer(trainer, site, message.metadata.message_type, message.content)
    except GliofedError as error:
        return error_reply(message, error)
    return Message(content, reply_to=message)


def training_views(augment: AugmentSettings) -> tuple[int, ...]:
    """Return the views that training reads from the store; with fresh views only the crops are worth preparing."""
    return (0,) if augment.is_identity or not augment.views else tuple(range(augment.views))


def _train(trainer: Trainer, site: Site, content: RecordDict) -> RecordDict:
    asked, state_round = unpack_task(content)
    task = replace(asked, config={name: value for name, value in asked.config.items() if name not in _CLIPPING_KEYS})
    if CLIPPING in asked.config:
        records = RecordDict({ARRAYS: content[ARRAYS], CONFIG: content[CONFIG]})  # all that the mods allow
        return clip(str(asked.config[CLIPPING]), records, lambda: pack_reply(trainer.train(task, site, state_round)))
    if CLIPPING_NORM in asked.config:
        raise ProtocolError(f"the task counts on clipping by the site, but its config has no {CLIPPING!r}")
    return pack_reply(trainer.train(task, site, state_round))


def _evaluate(trainer: Trainer, site: Site, content: RecordDict) -> RecordDict:
    scans = site.validation_scans
    if not scans:
        raise ProtocolError(f"site {site.name!r} has no validation scans of its own")
    labels_N = np.array([scan.label for scan in scans], np.int64)
    metrics = evaluate(labels_N, trainer.evaluate(unpack_parameters(content), scans), CLASSES)
    assert metrics.loss is not None, "it is None where there are no logits, and these have some"
    return pack_counts(Counts(confusion=metrics.confusion, loss_sum=metrics.loss * len(scans)))


def _describe(trainer: Trainer, site: Site, content: RecordDict) -> RecordDict:
    return pack_description(site, trainer.describe())


def _prepare(trainer: Trainer, site: Site, content: RecordDict) -> RecordDict:
    config = content.config_records.get(CONFIG, ConfigRecord())
    views = config.get(VIEWS)
    if not isinstance(views, list) or not all(isinstance(view, int) for view in views):
        raise ProtocolError(f"a preparation's config has no list of {VIEWS!r}")
    computed = trainer.prepare([*site.scans, *site.shared_scans], [int(view) for view in views])
    computed += trainer.prepare(site.validation_scans, None)
    return RecordDict({METRICS: MetricRecord({"num-examples": site.num_examples, "computed": computed})})


def _statistics(trainer: Trainer, site: Site, content: RecordDict) -> RecordDict:
    statistics = trainer.statistics(unpack_parameters(content), site)
    return RecordDict(
        {ARRAYS: arrays_record({SUMS: statistics.as_vector()}), CONFIG: ConfigRecord({UNIT: statistics.unit})}
    )


Answer = Callable[[Trainer, Site, RecordDict], RecordDict]

ANSWERS: Mapping[str, Answer] = {
    TRAIN: _train,
    EVALUATE: _evaluate,
    DESCRIBE: _describe,
    PREPARE: _prepare,
    SECURE_KEYS: answer_keys,
    SECURE_SHARES: answer_shares,
    SECURE_TRAIN: answer_train,
    SECURE_UNMASK: answer_unmask,
    SECURE_FORGET: answer_forget,
    STATISTICS: _statistics,
    SECURE_STATISTICS: answer_statistics,
}
"""What a site can be asked, by message type."""
