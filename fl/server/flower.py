"""Flower's own strategies, unmodified, as strategies of our rounds: by name, with their options, state and all.

A round makes a fresh object of Flower's class, gives it what it remembered, and calls `configure_train` and
`aggregate_train` as Flower's own loop does. Which sites take part, the time limits, the quorum and the checkpoint are
ours. Strategies that begin by averaging get our exact streaming mean as one reply, so that memory is flat and the
order of replies is of no effect; the others need each reply, and get them in the order of the sites' names.

Strategies that compare replies by distance are given differences to the global parameters, and zero in their place:
distances are the same, but Flower computes them as |x|^2 + |y|^2 - 2xy in float32, where those between sites drown
in the length of the parameters themselves.

The parameters are handed over in pieces of `PIECE` values, so that strategies that work on one array of all replies
after the other need little memory beside the replies.

Noise of the differential-privacy wrappers is drawn by the job's seed and the round (a resumed run must draw it again):
whoever knows the seed can subtract it, so the seed of such a job is to be kept as secret as the updates themselves.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerClass

from fl.errors import GliofedError, QuorumLost, UpdateRefused
from fl.model.flat import FlatParameters
from fl.random import derive_seed
from fl.runtime.flower_internals import NORM_BIT, STRATEGY_FAULTS, ensure_identity, flower_logs, global_generators, view
from fl.runtime.messages import ARRAYS, CLIPPING, METRICS, arrays_record
from fl.server.flower_options import FlowerSettings, make_flower
from fl.server.flower_state import capture, is_same, owner, restore
from fl.server.means import Aggregation, RoundMean
from fl.server.strategy import Learned, StrategyState
from fl.training.encoding import Encoding
from fl.training.exchange import Reply, RoundTask, Scalar
from fl.types import Site

PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowerStrategy:
    """A strategy of Flower's. seed: of the job, for what it draws."""

    settings: FlowerSettings
    aggregation: Aggregation
    encoding: Encoding
    seed: int

    def initial(self, parameters: FlatParameters) -> StrategyState:
        """Return no state: a fresh object is what Flower begins with."""
        return {}

    def begin(
        self, round: int, selected: Sequence[Site], parameters: FlatParameters, state: StrategyState
    ) -> _FlowerAggregate:
        """Begin a round whose task carries what the strategy tells sites. Raises GliofedError where it cannot."""
        with self._session(round):
            strategy = self.make(len(selected), state)
            config = _config_of(self._instructions(strategy, round, parameters, len(selected)))
        if self.settings.clipping is not None:
            config[CLIPPING] = self.settings.clipping
        task = RoundTask(round=round, parameters=parameters, config=config, encoding=self.encoding)
        replies: _Replies
        if self.settings.needs_each_reply:
            replies = _EachReply(self.settings, self.aggregation, task)
        else:
            replies = _MeanOfReplies(self.settings, RoundMean(selected, self.aggregation, len(parameters)))
        return _FlowerAggregate(self, task, state, replies)

    def make(self, num_replies: int, state: StrategyState) -> FlowerClass:
        """Return an object of Flower's class for so many replies, which remembers `state`."""
        strategy = make_flower(self.settings, num_replies)
        restore(strategy, state)
        return strategy

    def learn(
        self, round: int, parameters: FlatParameters, state: StrategyState, replies: _Replies
    ) -> tuple[FlatParameters, StrategyState]:
        """Let Flower aggregate; return the next parameters [P] and what it remembers."""
        contents = replies.contents()
        with self._session(round) as warnings:
            strategy = self.make(replies.num_replies, state)
            instructions = self._instructions(strategy, round, parameters, len(contents))
            messages = [
                Message(content, reply_to=message) for content, message in zip(contents, instructions, strict=True)
            ]
            learned, _ = strategy.aggregate_train(round, messages)
            if learned is None:
                raise QuorumLost(
                    f"round {round}: Flower's {self.settings.name} learnt nothing of {replies.num_replies} replies "
                    f"({'; '.join(warnings) or 'it does not say why'}); raise fl.participation, or change "
                    "fl.strategy in a new run"
                )
            joined = _join(learned, parameters, self.settings.name)
            if self.settings.by_distance:
                joined += parameters
            return joined, self._carried(strategy, round, joined, replies.num_replies)

    def _carried(
        self, strategy: FlowerClass, round: int, parameters: FlatParameters, num_replies: int
    ) -> StrategyState:
        """Return what the strategy remembers, without what its `configure_train` sets anew."""
        fresh = make_flower(self.settings, num_replies)

        def configured(state: StrategyState) -> StrategyState:
            next_one = self.make(num_replies, state)
            self._instructions(next_one, round + 1, parameters, 1)
            return capture(next_one, fresh)

        carried = capture(strategy, fresh)
        for name in sorted(set(map(owner, carried))):
            without = {part: array for part, array in carried.items() if owner(part) != name}
            if is_same(configured(without), configured(carried)):
                carried = without
        return carried

    def _instructions(
        self, strategy: FlowerClass, round: int, parameters: FlatParameters, num_nodes: int
    ) -> list[Message]:
        """Return the strategy's messages to nodes 1 to `num_nodes`, in that order."""
        frozen = np.zeros_like(parameters) if self.settings.by_distance else parameters.view()
        frozen.flags.writeable = False
        messages = list(
            strategy.configure_train(round, _split(frozen), ConfigRecord(), _Nodes(range(1, num_nodes + 1)))
        )
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        if [message.metadata.dst_node_id for message in messages] != list(range(1, num_nodes + 1)):
            raise GliofedError(f"Flower's {self.settings.name} did not ask each selected site once")
        return messages

    @contextmanager
    def _session(self, round: int) -> Iterator[list[str]]:
        ensure_identity()
        seed = derive_seed(self.seed, "flower", round)
        gc.freeze()  # some of Flower's code collects garbage at every reply: let it look at its own alone
        with flower_logs() as warnings, global_generators(seed):
            try:
                yield warnings
            except (*STRATEGY_FAULTS, ValueError, ZeroDivisionError) as error:
                raise GliofedError(f"round {round}: Flower's {self.settings.name} failed: {error}") from error
            finally:
                gc.unfreeze()


class _FlowerAggregate:
    def __init__(self, strategy: FlowerStrategy, task: RoundTask, state: StrategyState, replies: _Replies) -> None:
        self.task = task
        self._strategy = strategy
        self._state = state
        self._replies = replies

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        self._replies.add(site, parameters, reply)

    def add_mean(self, parameters: FlatParameters) -> None:
        self._replies.add_mean(parameters)

    def result(self) -> Learned:
        task = self.task
        parameters, state = self._strategy.learn(task.round, task.parameters, self._state, self._replies)
        return Learned(parameters=parameters, state=state)


class _MeanOfReplies:
    """Replies of which the strategy needs the mean alone, which it gets as one reply."""

    def __init__(self, settings: FlowerSettings, mean: RoundMean) -> None:
        self._settings = settings
        self._mean = mean
        self._secure: FlatParameters | None = None
        self.num_replies = 0

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        self._mean.add(site, parameters)
        self.num_replies += 1

    def add_mean(self, parameters: FlatParameters) -> None:
        if self._settings.dp is not None:
            raise ValueError(f"{self._settings.dp.name} adds noise by the number of replies, which a mean does not say")
        self._secure, self.num_replies = parameters, 1

    def contents(self) -> list[RecordDict]:
        mean = self._secure if self._secure is not None else self._mean.result()
        return [RecordDict({ARRAYS: _split(mean), METRICS: MetricRecord({"num-examples": 1})})]


class _EachReply:
    """Replies of which the strategy needs each one; all are kept until the round's end."""

    def __init__(self, settings: FlowerSettings, aggregation: Aggregation, task: RoundTask) -> None:
        self._settings = settings
        self._aggregation = aggregation
        self._task = task
        self._replies: list[tuple[Site, FlatParameters, dict[str, int | float]]] = []

    @property
    def num_replies(self) -> int:
        return len(self._replies)

    def add(self, site: Site, parameters: FlatParameters, reply: Reply) -> None:
        metrics: dict[str, int | float] = {"loss": reply.summary.mean_loss}
        if not (np.isfinite(reply.summary.mean_loss) and reply.summary.mean_loss >= 0):
            raise UpdateRefused(site.name, f"it reports a loss of {reply.summary.mean_loss}")
        if self._settings.clips_on_server and np.array_equal(parameters, self._task.parameters):
            raise UpdateRefused(site.name, "its update is zero, which Flower's clipping cannot scale")
        if self._settings.clipping == "adaptive":
            if reply.metrics.get(NORM_BIT) not in (0, 1):
                raise UpdateRefused(site.name, f"it does not say whether it clipped ({NORM_BIT} is 0 or 1)")
            metrics[NORM_BIT] = reply.metrics[NORM_BIT]
        kept = parameters - self._task.parameters if self._settings.by_distance else parameters.copy()
        self._replies.append((site, kept, metrics))

    def add_mean(self, parameters: FlatParameters) -> None:
        name = self._settings.dp.name if self._settings.dp is not None else self._settings.name
        raise ValueError(f"Flower's {name} needs each site's reply by itself; turn secure aggregation off")

    def contents(self) -> list[RecordDict]:
        if not self._replies:
            raise ValueError("nothing was added; add at least one reply")
        self._replies.sort(key=lambda item: item[0].name)
        weights = _weights([site for site, _, _ in self._replies], self._aggregation)
        return [
            RecordDict({ARRAYS: _split(parameters), METRICS: MetricRecord({**metrics, "num-examples": weight})})
            for (_, parameters, metrics), weight in zip(self._replies, weights, strict=True)
        ]


_Replies = _MeanOfReplies | _EachReply


class _Nodes(Grid):
    """All that `configure_train` may ask of a Grid: which nodes there are."""

    def __init__(self, node_ids: Iterable[int]) -> None:
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> list[int]:
        return list(self._node_ids)

    @property
    def run(self) -> Any:
        self._refuse()

    def set_run(self, run: Any) -> None:
        self._refuse()

    def create_message(self, *_: Any, **__: Any) -> Message:
        self._refuse()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self._refuse()

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self._refuse()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise GliofedError("this strategy sends messages while it configures a round; gliofed's rounds send them")


def _config_of(messages: Sequence[Message]) -> dict[str, Scalar]:
    """Return what a strategy tells every site beside the parameters."""
    first, *others = [message.content for message in messages]
    if any(content is not first and content != first for content in others):
        raise GliofedError("this strategy tells sites different things in one round, which a broadcast cannot")
    config: dict[str, Scalar] = {}
    for name, value in next(iter(first.config_records.values())).items():
        if not isinstance(value, bool | int | float | str):
            raise GliofedError(f"this strategy tells sites {name!r}, a {type(value).__name__}: no number and no text")
        config[name] = value
    del config["server-round"]  # the task itself says it
    return config


def _weights(sites: Sequence[Site], aggregation: Aggregation) -> Sequence[int | float]:
    """Return each site's weight in a mean, in Flower's spelling: its number of examples, or what stands for it."""
    if aggregation == "uniform":
        return [1] * len(sites)
    if aggregation == "by_examples":
        return [site.num_examples for site in sites]
    examples: dict[str, int] = {}
    for site in sites:
        examples[site.group] = examples.get(site.group, 0) + site.num_examples
    return [site.num_examples / examples[site.group] for site in sites]


def _split(parameters: FlatParameters) -> ArrayRecord:
    return arrays_record({f"{start}": parameters[start : start + PIECE] for start in range(0, len(parameters), PIECE)})


def _join(arrays: Mapping[str, Any], parameters: FlatParameters, name: str) -> FlatParameters:
    """Return a strategy's arrays as parameters [P] in float32, whatever it computed in."""
    pieces = [view(array) for array in arrays.values()]
    if [int(start) for start in arrays] != list(range(0, len(parameters), PIECE)):
        raise GliofedError(f"Flower's {name} returned other arrays than it was given")
    joined = np.concatenate(pieces).astype(np.float32, copy=False)
    if joined.shape != parameters.shape or not all(np.isfinite(piece).all() for piece in pieces):
        raise GliofedError(
            f"Flower's {name} returned {joined.dtype}{list(joined.shape)} with NaN or infinity, or of another shape; "
            "lower its learning rate, or fl.local.learning_rate"
        )
    return joined
