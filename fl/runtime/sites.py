"""The federation's work as messages over any Flower Grid, be its nodes Ray workers or hospitals: train, evaluate, ask.

Nothing that a site sends, or fails to send, raises here; it is left out, and the reason said.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from flwr.app import ConfigRecord, Error, RecordDict
from flwr.serverapp import Grid

from fl.errors import ProtocolError
from fl.model.flat import FlatParameters
from fl.runtime.client import VIEWS
from fl.runtime.flower_internals import REPLY_UNAVAILABLE
from fl.runtime.messages import (
    CONFIG,
    DESCRIBE,
    EVALUATE,
    PREPARE,
    TRAIN,
    Counts,
    SiteDescription,
    pack_parameters,
    pack_tasks,
    unpack_counts,
    unpack_description,
    unpack_reply,
)
from fl.training.exchange import Assignment, LeftOut, Reply, RoundTask

POLL_SECONDS = 0.2

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long is waited for sites.

    timeout_seconds: a message's time to live. give_up_seconds: after this long all that is missing is left out, for
    Grids that may never answer; None where each message gets at least an Error.
    """

    timeout_seconds: float
    give_up_seconds: float | None = None


@runtime_checkable
class Withdraws(Protocol):
    """A Grid that can be told that replies are no longer waited for."""

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages."""


def ask(
    grid: Grid, message_type: str, contents: Mapping[int, RecordDict], limits: Limits, *, group: str = ""
) -> Iterator[tuple[int, RecordDict | str]]:
    """Send each node its content; yield (node, its reply's content, or why it is left out) as replies come.

    group: the round, where there is one. A node may be yielded again, with the reason why a further reply of it was
    not taken.
    """
    timeout, give_up_at = limits.timeout_seconds, math.inf
    messages = [grid.create_message(content, message_type, node, group, timeout) for node, content in contents.items()]
    if limits.give_up_seconds is not None:
        give_up_at = time.monotonic() + limits.give_up_seconds
    missing = dict(zip(grid.push_messages(messages), contents, strict=True))
    try:
        while missing:
            asked_at = time.monotonic()
            replies = list(grid.pull_messages(list(missing)))
            for reply in replies:
                node = missing.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    yield reply.metadata.src_node_id, "duplicate: its first reply to this message was taken"
                else:
                    yield node, _reason(reply.error, timeout) if reply.has_error() else reply.content
            if time.monotonic() > give_up_at:
                yield from [(node, f"late: no reply within {limits.give_up_seconds:g} s") for node in missing.values()]
                return
            if not replies:
                time.sleep(max(0.0, asked_at + POLL_SECONDS - time.monotonic()))
    finally:
        if missing and isinstance(grid, Withdraws):
            grid.withdraw(list(missing))


def ask_named(
    grid: Grid,
    nodes: Mapping[str, int],
    message_type: str,
    contents: Mapping[str, RecordDict],
    limits: Limits,
    *,
    group: str = "",
) -> Iterator[tuple[str, RecordDict | LeftOut]]:
    """Send each named site its content; yield (site, its reply's content, or why there is none), as `ask` does.

    nodes: each connected site's node.
    """
    for site in contents:
        if site not in nodes:
            yield site, LeftOut(site=site, reason="its node is not connected")
    names = {nodes[site]: site for site in contents if site in nodes}
    sent = {node: contents[site] for node, site in names.items()}
    for node, content in ask(grid, message_type, sent, limits, group=group):
        site = names.get(node, f"node {node}")
        yield site, LeftOut(site=site, reason=content) if isinstance(content, str) else content


def train_sites(
    grid: Grid, nodes: Mapping[str, int], task: RoundTask, assignments: Sequence[Assignment], limits: Limits
) -> Iterator[Reply | LeftOut]:
    """Give the task to the selected sites; yield each one's reply, or why there is none, as they come."""
    tasks = pack_tasks(task, [assignment.state_round for assignment in assignments])
    contents = {assignment.site.name: content for assignment, content in zip(assignments, tasks, strict=True)}
    for site, content in ask_named(grid, nodes, TRAIN, contents, limits, group=str(task.round)):
        yield _read(site, content, partial(unpack_reply, site=site))


def evaluate_sites(
    grid: Grid, nodes: Mapping[str, int], parameters: FlatParameters, limits: Limits
) -> Iterator[tuple[str, Counts | LeftOut]]:
    """Let sites evaluate parameters [P] on their own validation scans; yield (site, counts or why there are none)."""
    contents = dict.fromkeys(nodes, pack_parameters(parameters))
    for site, content in ask_named(grid, nodes, EVALUATE, contents, limits):
        yield site, _read(site, content, unpack_counts)


def prepare_sites(
    grid: Grid, nodes: Mapping[str, int], views: Sequence[int], limits: Limits
) -> Iterator[tuple[str, LeftOut | None]]:
    """Let sites compute the features that training and evaluation will read; yield (site, why it did not, or None)."""
    content = RecordDict({CONFIG: ConfigRecord({VIEWS: list(views)})})
    for site, answer in ask_named(grid, nodes, PREPARE, dict.fromkeys(nodes, content), limits):
        yield site, answer if isinstance(answer, LeftOut) else None


def describe_sites(
    grid: Grid, node_ids: Collection[int], limits: Limits
) -> Iterator[tuple[int, SiteDescription | LeftOut]]:
    """Ask nodes which sites they are; yield (node, description or why there is none)."""
    nodes = {f"node {node}": node for node in node_ids}
    for name, content in ask_named(grid, nodes, DESCRIBE, dict.fromkeys(nodes, RecordDict()), limits):
        yield nodes[name], _read(name, content, unpack_description)


def _read(site: str, content: RecordDict | LeftOut, unpack: Callable[[RecordDict], T]) -> T | LeftOut:
    if isinstance(content, LeftOut):
        return content
    try:
        return unpack(content)
    except ProtocolError as error:
        return LeftOut(site=site, reason=f"reply refused: {error}")


def _reason(error: Error, timeout_seconds: float) -> str:
    reason = error.reason or f"error {error.code}"
    if error.code == REPLY_UNAVAILABLE and not reason.startswith("late"):
        return f"late: no reply within {timeout_seconds:g} s ({reason})"
    return reason
