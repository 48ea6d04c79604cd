"""The messages that a SuperNode holds for this process, one at a time: take, answer, hand back.

This is what Flower's `flwr-clientapp` does once per message in a process of its own. Here one process takes them all,
so that the model stays in memory and torch is imported once; and it answers with installed code only: the app bundle
that a SuperLink sends along is not unpacked, let alone run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from flwr.app import Context, Message

from fl.hospital.flower_names import (
    AcquireTaskRequest,
    ProtobufClientInterceptor,
    RuntimeHttpClient,
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SendTaskHeartbeatRequest,
    SubStatus,
    SuperExecAuthHttpInterceptor,
    TaskType,
    pull_task_input,
    push_message,
    push_task_output,
)

Answer = Callable[[Message, Context], Message]
"""A site's app: a reply to every message, an Error where there is no other."""

HEARTBEAT_SECONDS = 10.0
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


class TaskDesk:
    """The SuperNode's tasks at a port of loopback. Close it when done."""

    def __init__(self, port: int, secret: bytes) -> None:
        self._address = f"127.0.0.1:{port}"
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={_ACQUIRE})
        self._client = self._connect(signed)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def take(self) -> str | None:
        """Return the token of the next task, None where there is none or the SuperNode does not answer (yet)."""
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.HTTPError:
            return None
        return answer.token if answer.HasField("task") and answer.token else None

    def serve(self, token: str, answer: Answer, *, sending: Callable[[Message], None]) -> None:
        """Answer one task's message.

        answer: must not raise. sending: called with what is about to leave. Raises httpx.HTTPError where the SuperNode
        is gone.
        """
        client = self._connect(RuntimeTokenHttpInterceptor(token))
        try:
            with _heartbeat(client):
                message, context, _, _ = pull_task_input(client)
                reply = answer(message, context)
                sending(reply)
                push_message(client, reply, context)
            push_task_output(client=client, context=context, sub_status=SubStatus.COMPLETED, details="")
        finally:
            client.close()

    def _connect(self, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,  # this machine's loopback
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), interceptor],
        )


@contextmanager
def _heartbeat(client: RuntimeHttpClient) -> Iterator[None]:
    """Tell the SuperNode that the task is alive: it gives a silent one up after a minute."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError:
                continue  # a SuperNode that is gone is noticed where the reply is handed over

    thread = threading.Thread(target=beat, name="task heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
