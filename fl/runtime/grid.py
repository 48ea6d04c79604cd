"""Flower's Grid on the worker pool: any ServerApp or strategy runs on persistent Ray workers, arrays without a copy."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fl.runtime.flower_internals import (
    REPLY_UNAVAILABLE,
    SITE_RAISED,
    SITE_UNAVAILABLE,
    FlowerRun,
    create_run,
    ensure_identity,
    set_message_id,
)
from fl.runtime.messages import share_arrays
from fl.runtime.pool import POLL_SECONDS, Call, Done, Failed, Ticket, WorkerPool
from fl.types import Site

CODES = {"raised": SITE_RAISED, "late": REPLY_UNAVAILABLE, "died": SITE_UNAVAILABLE, "no worker": SITE_UNAVAILABLE}


class RayGrid(Grid):
    """Sites as Flower's nodes; whichever worker is free answers for a site (`fl.runtime.client.answer`).

    Every message is answered, if only by an Error. Its time to live is the limit of its work, counted from when a
    worker begins: it may wait for a worker as long as it must. Arrays go to shared memory once a push, however many
    messages share them, and those of replies are read-only there.
    """

    def __init__(self, pool: WorkerPool, sites: Sequence[Site]) -> None:
        ensure_identity()
        self._pool = pool
        self._sites = dict(enumerate(sites, start=1))
        self._run = create_run(run_id=1)
        self._numbers = count(1)
        self._in_flight: dict[str, tuple[Ticket | None, Message]] = {}

    @property
    def nodes(self) -> Mapping[str, int]:
        """The node of each site, by its name."""
        return {site.name: node_id for node_id, site in self._sites.items()}

    @property
    def run(self) -> FlowerRun:
        """Run information."""
        return self._run

    def set_run(self, run: FlowerRun) -> None:
        """Set the run that messages belong to."""
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return every site's node."""
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return an identifier for each."""
        messages = list(messages)
        put: dict[int, Any] = {}
        identifiers = []
        for message in messages:
            identifier = f"{message.metadata.run_id}-{next(self._numbers)}"
            set_message_id(message, identifier)
            site = self._sites.get(message.metadata.dst_node_id)
            ticket = None
            if site is not None:
                call = self._call(site, message, put)
                (ticket,) = self._pool.submit([call], timeout_seconds=message.metadata.ttl)
            self._in_flight[identifier] = (ticket, message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come, waiting a fraction of a second for a first one."""
        return self._pull(list(message_ids), wait_seconds=POLL_SECONDS)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies, all of them or those that came within `timeout` seconds."""
        give_up_at = None if timeout is None else time.monotonic() + timeout
        missing = set(self.push_messages(messages))
        replies: list[Message] = []
        try:
            while missing:
                left = POLL_SECONDS if give_up_at is None else min(POLL_SECONDS, give_up_at - time.monotonic())
                if left <= 0:
                    break
                came = self._pull(missing, wait_seconds=left)
                missing -= {reply.metadata.reply_to_message_id for reply in came}
                replies += came
        finally:
            self.withdraw(missing)
        return replies

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages: nobody will pull their replies. Workers that are at them are replaced."""
        taken = [self._in_flight.pop(identifier) for identifier in message_ids if identifier in self._in_flight]
        self._pool.withdraw({ticket for ticket, _ in taken if ticket is not None})

    def _call(self, site: Site, message: Message, put: dict[int, Any]) -> Call:
        records: list[Any] = []
        for record in message.content.values():
            if isinstance(record, ArrayRecord):
                if id(record) not in put:
                    shared = share_arrays(RecordDict({"": record}))[""]
                    put[id(record)] = self._pool.broadcast(shared)
                records.append(put[id(record)])
            else:
                records.append(record)
        message_type = message.metadata.message_type
        return Call(
            key=site.name,
            method="answer",
            arguments=(site, message_type, list(message.content), *records),
            node_resource=site.node_resource,
            title=message_type,
        )

    def _pull(self, message_ids: Collection[str], *, wait_seconds: float) -> list[Message]:
        asked = {identifier: self._in_flight[identifier] for identifier in message_ids if identifier in self._in_flight}
        unknown = [identifier for identifier, (ticket, _) in asked.items() if ticket is None]
        tickets = {ticket: identifier for identifier, (ticket, _) in asked.items() if ticket is not None}
        replies = [self._reply(identifier, None) for identifier in unknown]
        outcomes = self._pool.poll(tickets, wait_seconds=0.0 if replies else wait_seconds) if tickets else []
        return replies + [self._reply(tickets[ticket], outcome) for ticket, outcome in outcomes]

    def _reply(self, identifier: str, outcome: Done | Failed | None) -> Message:
        _, message = self._in_flight.pop(identifier)
        if outcome is None:
            error = Error(SITE_UNAVAILABLE, f"no site is node {message.metadata.dst_node_id}")
            reply = Message(error, reply_to=message)
        elif isinstance(outcome, Failed):
            reply = Message(Error(CODES[outcome.cause], outcome.reason), reply_to=message)
        else:
            reply = Message(outcome.value, reply_to=message)
        set_message_id(reply, f"{identifier}-reply")
        return reply
