"""A hospital's side of the command line: be a site, and look at its audit log."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType

from flwr.app import Context, Message

from fl.audit_chain import verify
from fl.data.layout import plain_files
from fl.hospital.folders import SiteFolder
from fl.hospital.site import serve_site
from fl.hospital.tasks import Answer
from service.progress import Display
from service.yaml_source import SpecError


def serve(folder: SiteFolder, data: Path | None, display: Display) -> None:
    """Be a site until a signal ends it. Errors: HospitalError, DataError where its scans cannot be read."""
    scans = data or folder.settings.data
    if scans is None:
        raise SpecError([f"--data: where are this site's scans? Give it, or `data:` in {folder.folder / 'site.yaml'}"])
    plain_files(scans)  # a wrong folder is told now, not when the coordinator first asks

    state = folder.folder / "state"

    @lru_cache(maxsize=1)
    def app() -> Answer:
        # torch takes seconds to import, and a site that is refused never needs it
        from fl.hospital.desk import SiteDesk
        from fl.runtime.flower_app import answering

        return answering(SiteDesk(folder.settings, scans, state, display.say), display.say)

    def answer(message: Message, context: Context) -> Message:
        return app()(message, context)

    with interrupted_by_signals():
        serve_site(folder, state, answer, display.say)


def verify_log(keys: Path, display: Display) -> bool:
    """Say what a look at a site's audit log found; return whether it is whole."""
    path = keys / "state" / "audit.jsonl"
    found = verify(path)
    display.say(f"{path}: {found}")
    return found.fault is None


class SiteInterrupted(BaseException):
    """A signal asked the site to end; everything that it must keep is on the disk at any time."""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an orderly end, even in the middle of a training."""
    ending = False

    def end(_: int, __: FrameType | None) -> None:
        nonlocal ending
        if not ending:
            ending = True
            raise SiteInterrupted

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SiteInterrupted:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
