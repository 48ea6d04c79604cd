"""A hospital's side: keep the line to the coordinator, take its messages, answer them, and write down both."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
from flwr.app import Context, Message

from fl.errors import HospitalError
from fl.hospital.audit import AuditLog
from fl.hospital.folders import SiteFolder
from fl.hospital.gate import UNKNOWN_KEY
from fl.hospital.preflight import coordinator_answers
from fl.hospital.supernode import SuperNode
from fl.hospital.tasks import Answer, TaskDesk

TASK_POLL_SECONDS = 0.2
RETRY_SECONDS = 2.0
WAITING_INTERVAL_SECONDS = 60.0
_NOT_ACTIVATED = "Failed to activate SuperNode"


def serve_site(folder: SiteFolder, state: Path, answer: Answer, say: Callable[[str], None]) -> None:
    """Serve the coordinator until this is interrupted; come back after every lost connection.

    state: folder for the audit log and Flower's files. answer: the site's ClientApp. say: told what goes on.
    Raises HospitalError where the coordinator cannot be trusted or does not know this site, and where the audit log
    is broken or held by another process.
    """
    with AuditLog(state / "audit.jsonl") as audit:
        audit.note("started", site=folder.settings.name, coordinator=str(folder.coordinator))
        say(f"site {folder.settings.name}: audit log {state / 'audit.jsonl'}, last line {audit.head[:16]}")
        try:
            while True:
                _wait_for_coordinator(folder, say)
                _serve_connection(folder, state, _audited(answer, audit, say), audit, say)
                time.sleep(RETRY_SECONDS)
        finally:
            audit.note("stopped")
            say(f"site {folder.settings.name}: stopped; last line of the audit log {audit.head}")


def _wait_for_coordinator(folder: SiteFolder, say: Callable[[str], None]) -> None:
    said_at = -WAITING_INTERVAL_SECONDS
    while not coordinator_answers(folder.coordinator, folder.authority_file):
        if time.monotonic() - said_at >= WAITING_INTERVAL_SECONDS:
            said_at = time.monotonic()
            say(f"waiting for the coordinator at {folder.coordinator}")
        time.sleep(RETRY_SECONDS)


def _serve_connection(
    folder: SiteFolder, state: Path, answer: Answer, audit: AuditLog, say: Callable[[str], None]
) -> None:
    """Serve until the SuperNode ends, for example because the coordinator began anew, or is cut off and idle."""
    with SuperNode(folder, state, say) as supernode:
        desk = TaskDesk(supernode.port, supernode.secret)
        try:
            while not supernode.has_ended:
                token = desk.take()
                if token is None and supernode.is_cut_off:
                    return
                if token is None:
                    time.sleep(TASK_POLL_SECONDS)
                    continue
                try:
                    desk.serve(token, answer, sending=audit.sending)
                except (httpx.HTTPError, RuntimeError) as error:
                    say(f"the connection was lost in the middle of a task ({type(error).__name__}); it will come again")
        finally:
            desk.close()
    words = supernode.last_words()
    if UNKNOWN_KEY in words:
        raise HospitalError(
            f"{folder.coordinator}: the coordinator does not know the key of site {folder.settings.name!r}; ask the "
            f"coordinator to put this site's public key into its folder sites/, or use the folder that was made for you"
        )
    if _NOT_ACTIVATED in words:
        say("the coordinator believes that this site is connected already, as for a minute after a crash; trying again")
    else:
        say("the connection ended; trying again")


def _audited(answer: Answer, audit: AuditLog, say: Callable[[str], None]) -> Answer:
    def audited(message: Message, context: Context) -> Message:
        audit.received(message)
        say(_tell(message))
        started = time.monotonic()
        reply = answer(message, context)
        say(f"   done in {time.monotonic() - started:.1f} s")
        return reply

    return audited


def _tell(message: Message) -> str:
    what = message.metadata.message_type.removeprefix("query.").replace("_", " ")
    where = f", round {message.metadata.group_id}" if message.metadata.group_id else ""
    return f"the coordinator asks: {what}{where}"
