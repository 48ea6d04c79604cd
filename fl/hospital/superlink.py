"""A SuperLink in this process: TLS, registered sites only, one run whose server side is ours.

Flower's own application answers the sites, behind `Gate`. Its state is kept in memory: a job's memory is its
checkpoint, so a coordinator that begins anew has lost nothing, and its sites come back by themselves.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import ssl
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType

import uvicorn

from fl.errors import HospitalError
from fl.hospital.flower_names import (
    NOOP_ACCOUNT_NAME,
    NOOP_FEDERATION_ID,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    Fab,
    NodeStatus,
    SubStatus,
    TaskIdentity,
    TaskType,
    create_superlink,
)
from fl.hospital.folders import CoordinatorFolder
from fl.hospital.gate import Gate
from fl.hospital.link_grid import LinkGrid

START_TIMEOUT_SECONDS = 30.0
STOP_TIMEOUT_SECONDS = 3
_KEEP_ALIVE_SECONDS = 10.0

_LABEL = """[project]
name = "gliofed"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "gliofed"
[tool.flwr.app.components]
serverapp = "fl.hospital:none"
clientapp = "fl.hospital:none"
[tool.flwr.app.config]
"""


class SuperLink:
    """Listens for the sites while the context lasts; leaving it ends the run and closes the port.

    grid: sends messages to sites and collects their replies. log: file for what Flower has to say. run_config: what
    every site is told with each message. should_stop: asked while replies are waited for.
    """

    grid: LinkGrid

    def __init__(
        self,
        folder: CoordinatorFolder,
        *,
        log: Path,
        run_config: Mapping[str, str],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder = folder
        self._log = log
        self._app, self._state = create_superlink()
        self._sites = self._register(folder.public_keys)
        self._nodes_by_key = {key: self._sites[name] for name, key in folder.public_keys.items()}
        self._run_id, self._task_id = self._begin_run(run_config)
        self.grid = LinkGrid(self._state, self._run_id, should_stop=should_stop)
        self._closing = threading.Event()

    def __enter__(self) -> SuperLink:
        with ExitStack() as stack:
            listener = stack.enter_context(_bind(self._folder))
            stack.enter_context(_logging_to(self._log))
            stack.callback(self._stop)
            self._start(listener)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        # whoever leaves by an error is in a hurry: uploads under way are cut off
        self._server.force_exit = error is not None
        self._state.finish_task(self._task_id, SubStatus.COMPLETED if error is None else SubStatus.STOPPED, "")
        self._stack.close()

    @property
    def sites(self) -> Mapping[str, int]:
        """Every registered site and its node, in name order."""
        return self._sites

    def connected(self) -> dict[str, int]:
        """Return the sites that are connected now and their nodes, in name order."""
        online = {node.node_id for node in self._state.get_node_info(statuses=[NodeStatus.ONLINE])}
        return {name: node for name, node in self._sites.items() if node in online}

    def _start(self, listener: socket.socket) -> None:
        self._server = uvicorn.Server(self._http_config())
        self._threads = [
            threading.Thread(target=self._serve, args=(listener,), name="superlink", daemon=True),
            threading.Thread(target=self._keep_run_alive, name="superlink run", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._server.started:
            if not self._threads[0].is_alive() or time.monotonic() > deadline:
                raise HospitalError(f"the SuperLink did not start on {self._folder.listen}; see {self._log}")
            time.sleep(0.01)

    def _stop(self) -> None:
        self._closing.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_SECONDS + 2)

    def _http_config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            Gate(self._app, frozenset(self._folder.public_keys.values()), self._has_mail),
            ssl_certfile=self._folder.certificate_file,
            ssl_keyfile=self._folder.key_file,
            ws="none",
            proxy_headers=False,
            server_header=False,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=STOP_TIMEOUT_SECONDS,
        )
        config.load()
        assert config.ssl is not None, "the files are given"
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        return config

    def _register(self, public_keys: Mapping[str, bytes]) -> dict[str, int]:
        return {
            name: self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)
            for name, key in public_keys.items()
        }

    def _begin_run(self, run_config: Mapping[str, str]) -> tuple[int, int]:
        label = app_label(run_config)
        fab = Fab(hash_str=sha256(label).hexdigest(), content=label, verifications={})
        run_id = self._state.create_run(
            fab_id="gliofed/gliofed",
            fab_version="1.0.0",
            fab_hash=self._state.store_fab(fab),
            override_config={},
            federation_id=NOOP_FEDERATION_ID,
            federation_config=None,
            flwr_aid=NOOP_FLWR_AID,
            primary_task_type=TaskType.SERVER_APP,
        )
        (run,) = self._state.get_run_info(run_ids=[run_id])
        task_id = run.primary_task_id
        assert task_id is not None, "create_run makes the task"
        if self._state.claim_task(task_id) is None or not self._state.activate_task(task_id):
            raise HospitalError("the SuperLink did not begin the run; is flwr 1.41 installed?")
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, SUPERLINK_NODE_ID
        return run_id, task_id

    def _has_mail(self, key: bytes) -> bool:
        return self._closing.is_set() or self.grid.has_mail(self._nodes_by_key[key])

    def _serve(self, listener: socket.socket) -> None:
        asyncio.run(self._server.serve(sockets=[listener]))

    def _keep_run_alive(self) -> None:
        while not self._closing.wait(_KEEP_ALIVE_SECONDS):
            self._state.acknowledge_task_heartbeat(self._task_id)


def app_label(run_config: Mapping[str, str]) -> bytes:
    """Return an app bundle that holds no code: a SuperNode asks for one, a site runs its installed gliofed only."""
    text = _LABEL + "".join(f"{name} = {json.dumps(value)}\n" for name, value in run_config.items())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), text)
    return buffer.getvalue()


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Let Flower and its HTTP server write to a file and not to the screen, where the job's progress is."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("flwr", "uvicorn")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()


def _bind(folder: CoordinatorFolder) -> socket.socket:
    where = folder.listen
    listener = None
    try:
        kind, _, _, _, address = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(socket.SOMAXCONN)  # a port that another holds may be bound to, but not listened on
    except OSError as error:
        if listener is not None:
            listener.close()
        raise HospitalError(
            f"cannot listen on {where} ({error}); choose another address, or set `listen:` in "
            f"{folder.folder / 'coordinator.yaml'} to one of this machine's own"
        ) from error
    return listener
