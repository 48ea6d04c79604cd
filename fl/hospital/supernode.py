"""Flower's SuperNode as a child process: it holds the line to the coordinator, and this process does the work.

`flower-supernode --isolation process` connects, proves the site's key, sends heartbeats, reconnects, and offers what
it received on a port of this machine's loopback, where a secret that only these two processes know is asked for. It
never starts an app: the site's own, installed code takes the messages (`fl.hospital.site`).

Run as a module, this file is that child: the command `flower-supernode`, which ends when its parent is gone.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType

from fl.hospital import SWITCHES
from fl.hospital.folders import SiteFolder

STOP_TIMEOUT_SECONDS = 8.0
"""Flower forces its own exit after 5."""

_PARENT_VARIABLE = "GLIOFED_SUPERNODE_PARENT"
_PARENT_POLL_SECONDS = 0.5
_KEPT_LINES = 60
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CUT_OFF = "no connection to the coordinator"
_SAID = {
    "SuperNode ID:": "connected to the coordinator",
    "Connection attempt failed": _CUT_OFF,
    "Connection successful": "connected to the coordinator again",
}
"""What Flower writes, and what it means."""


class SuperNode:
    """The child process, from `__enter__` to `__exit__`.

    state: a folder of the site's own for the secret, the child's log and Flower's home. say: told in plain words how
    the connection fares.
    """

    def __init__(self, folder: SiteFolder, state: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._state = state
        self._say = say
        self._last = ""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.secret = secrets.token_bytes(32)
        self.port = _free_port()

    def __enter__(self) -> SuperNode:
        secret_file = self._state / "supernode.secret"
        secret_file.unlink(missing_ok=True)
        with os.fdopen(os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(self.secret)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fl.hospital.supernode", *self._options(secret_file)],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends the child in its time
        )
        self._reader = threading.Thread(target=self._read, name="supernode log", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        (self._state / "supernode.secret").unlink(missing_ok=True)

    @property
    def is_cut_off(self) -> bool:
        """Whether the child looks for the coordinator in vain, at intervals that grow to twenty seconds."""
        return self._last == _CUT_OFF

    @property
    def has_ended(self) -> bool:
        """Whether the child has ended by itself."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Return the end of what the child wrote."""
        return "\n".join(self._lines)

    def _options(self, secret_file: Path) -> list[str]:
        return [
            *("--superlink", str(self._folder.coordinator)),
            *("--root-certificates", str(self._folder.authority_file)),
            *("--auth-supernode-private-key", str(self._folder.key_file)),
            *("--isolation", "process", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--superexec-auth-secret-file", str(secret_file)),
        ]

    def _environment(self) -> dict[str, str]:
        own = {_PARENT_VARIABLE: str(os.getpid()), "FLWR_HOME": str(self._state / "flwr"), "PYTHONUNBUFFERED": "1"}
        loopback = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
        return {**os.environ, **SWITCHES, **own, "NO_PROXY": loopback, "no_proxy": loopback}

    def _read(self) -> None:
        assert self._process.stdout is not None, "it is a pipe"
        with (self._state / "supernode.log").open("w", encoding="utf-8") as log:
            for raw in self._process.stdout:
                line = _COLOUR.sub("", raw.decode(errors="replace")).rstrip()
                self._lines.append(line)
                print(line, file=log, flush=True)
                for said, meaning in _SAID.items():
                    if said in line and meaning != self._last:
                        self._last = meaning
                        self._say(meaning)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with_parent() -> None:
    """End in order when the parent is gone, so that the coordinator knows at once; then by force."""
    parent = int(os.environ[_PARENT_VARIABLE])
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT_SECONDS)
    os._exit(1)


def main() -> None:
    """Be `flower-supernode`; end the process when that returns, whatever threads of it are left."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    (command,) = entry_points(group="console_scripts", name="flower-supernode")
    code = 1
    try:
        command.load()()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
