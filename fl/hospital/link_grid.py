"""Flower's `Grid` over a SuperLink in this process: messages go straight into its state, replies come out of it.

Flower's own `HttpGrid` reaches the SuperLink through its Runtime API, another door that would have to be guarded and
another copy of every array. A broadcast is kept once however many sites it is for, since objects are stored under
their SHA-256.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fl.errors import Stopped
from fl.hospital.flower_names import (
    LinkState,
    NoObjectInStoreError,
    Run,
    get_all_nested_objects,
    get_object_tree,
    inflate_object_from_contents,
    iterate_object_tree,
    make_message,
    no_object_id_recompute,
    remove_content_from_message,
)
from fl.runtime.flower_internals import REPLY_UNAVAILABLE, SITE_UNAVAILABLE, set_message_id

POLL_SECONDS = 0.1
RETURN_SECONDS = 90.0
"""Longer than Flower takes a crashed node for connected, so that it has the time to begin anew."""


class LinkGrid(Grid):
    """Send messages to nodes of one run and collect their replies; for one caller at a time.

    A message that was given to a node which then began anew is given to it again: what a site does can be asked twice.
    A node that is cut off may come back within `RETURN_SECONDS`; only then is its answer an Error.
    should_stop: asked at every pull; True raises Stopped.
    """

    def __init__(self, state: LinkState, run_id: int, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        self._state = state
        self._run_id = run_id
        self._should_stop = should_stop
        self._sent: dict[str, Message] = {}
        self._refused: dict[str, Message] = {}
        self._arriving: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Take another run of the same SuperLink."""
        self._run_id = run.run_id

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        (run,) = self._state.get_run_info(run_ids=[self._run_id])
        return run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected now."""
        return self._state.get_nodes(self._run_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for their nodes and return their ids; one that cannot be queued gets an Error for a reply.

        All contents are in the store before the first node can see its message, so that none asks in vain and none
        takes away what another still needs.
        """
        stored: list[Message] = []
        with no_object_id_recompute():
            for message in messages:
                set_message_id(message, message.object_id)
                self._store_objects(message)
                stored.append(message)
        return [self._queue(message) for message in stored]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have come whole to the given messages; each is returned once. Raises Stopped."""
        if self._should_stop():
            raise Stopped("stopped by a signal; all that was finished is on disk, continue with --resume")
        wanted = set(message_ids)
        replies = [self._refused.pop(message_id) for message_id in sorted(wanted & self._refused.keys())]
        waiting = (wanted & self._sent.keys()) - self._arriving.keys()
        waiting -= self._repeat_lost(waiting)
        if waiting:
            for reply in self._state.get_message_res(message_ids=waiting, run_id=self._run_id):
                self._arriving[reply.metadata.reply_to_message_id] = reply
        for message_id in sorted(wanted & self._arriving.keys()):
            whole = self._whole(self._arriving[message_id])
            if whole is not None:
                self._forget(message_id, whole.metadata.message_id)
                replies.append(whole)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for all replies, at most `timeout` seconds; return those that came."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while True:
            come = self.pull_messages(waiting)
            replies += come
            waiting -= {reply.metadata.reply_to_message_id for reply in come}
            if not waiting or (deadline is not None and time.monotonic() > deadline):
                self.withdraw(waiting)
                return replies
            time.sleep(POLL_SECONDS)

    def has_mail(self, node_id: int) -> bool:
        """Return whether a message waits for the node to fetch it; may be asked from another thread."""
        sent = list(self._sent.values())
        return any(m.metadata.dst_node_id == node_id and m.metadata.delivered_at == "" for m in sent)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages that nobody waits for any more; a reply that still comes is refused by the SuperLink."""
        for message_id in list(message_ids):
            self._refused.pop(message_id, None)
            reply = self._arriving.get(message_id)
            self._forget(message_id, reply.metadata.message_id if reply is not None else "")

    def _store_objects(self, message: Message) -> None:
        store, objects = self._state.object_store, get_all_nested_objects(message)
        for object_id in store.preregister(self._run_id, get_object_tree(message)):
            store.put(object_id, objects[object_id].deflate())

    def _queue(self, message: Message) -> str:
        message_id: str = message.metadata.message_id
        if self._state.store_message_ins(remove_content_from_message(message)) is None:
            self._state.object_store.delete(message_id)
            self._refused[message_id] = Message(Error(SITE_UNAVAILABLE, "it is not connected"), reply_to=message)
        else:
            self._sent[message_id] = message
        return message_id

    def _repeat_lost(self, message_ids: Iterable[str]) -> set[str]:
        """Queue again what was delivered to a node that has since begun anew, and so has forgotten it.

        Return the messages whose node is cut off, but not for long yet.
        """
        sent = {message_id: self._sent[message_id] for message_id in message_ids}
        destinations = {message.metadata.dst_node_id for message in sent.values()}
        nodes = {node.node_id: node for node in self._state.get_node_info(node_ids=list(destinations))}
        for message in sent.values():
            # the link state marks delivery in these very metadata
            if "" < message.metadata.delivered_at < nodes[message.metadata.dst_node_id].last_activated_at:
                self._state.delete_messages(message_ins_ids={message.metadata.message_id})
                message.metadata.delivered_at = ""
                with no_object_id_recompute():
                    self._store_objects(message)
                self._queue(message)
        earliest = time.time() - RETURN_SECONDS
        away = {node_id for node_id, node in nodes.items() if earliest < node.online_until <= time.time()}
        return {message_id for message_id, message in sent.items() if message.metadata.dst_node_id in away}

    def _whole(self, reply: Message) -> Message | None:
        """Return the reply with its contents; None while objects are on their way, an Error where they broke off."""
        if reply.has_error():
            lost = reply.error.code == SITE_UNAVAILABLE
            return _error(reply, SITE_UNAVAILABLE, "its connection was lost") if lost else reply
        reply_id = reply.metadata.message_id
        try:
            tree = self._state.object_store.get_object_tree(reply_id)
            object_ids = [node.object_id for node in iterate_object_tree(tree)]
            contents = {object_id: self._state.get_object(self._run_id, object_id) for object_id in object_ids}
        except NoObjectInStoreError:
            contents = {reply_id: None}
        whole = {object_id: content for object_id, content in contents.items() if content}
        if len(whole) == len(contents):
            return _inflate(reply, whole)
        if any(content is None for content in contents.values()):
            return _error(reply, REPLY_UNAVAILABLE, "its upload broke off and was not taken up again in time")
        return None  # an empty one is on its way

    def _forget(self, message_id: str, reply_id: str) -> None:
        for kept in (self._sent, self._arriving):
            kept.pop(message_id, None)
        self._state.delete_messages(message_ins_ids={message_id})
        for object_id in (message_id, reply_id):
            self._state.object_store.delete(object_id)


def _inflate(reply: Message, contents: dict[str, bytes]) -> Message:
    reply_id = reply.metadata.message_id
    try:
        message = inflate_object_from_contents(reply_id, contents)
    except (ValueError, KeyError) as error:
        return _error(reply, REPLY_UNAVAILABLE, f"its reply cannot be read: {error}")
    if not isinstance(message, Message):
        return _error(reply, REPLY_UNAVAILABLE, "its reply is no message")
    set_message_id(message, reply_id)
    # who answered is what the SuperLink noted, not what the site wrote into its message
    return make_message(metadata=reply.metadata, content=message.content) if message.has_content() else message


def _error(reply: Message, code: int, reason: str) -> Message:
    return make_message(metadata=reply.metadata, error=Error(code, reason))
