"""What a site remembers from round to round, on its own disk: one file for each site and round.

SCAFFOLD's control variate and what an encoding has left out so far are a site's alone and as large as the model. The
server says which of the site's rounds was counted last, and the site goes on from exactly that file: a reply that was
refused, late or repeated leaves no trace, and a server that resumes finds the sites where its checkpoint left them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fl.durable import write_file
from fl.errors import SiteStateError
from fl.model.flat import FlatParameters

_FACTS = "gliofed"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SiteMemory:
    """What a site remembers of one of its rounds: arrays [P] by name.

    round: the round that it was written in, 0 where there was none yet. previous: the round that it had gone on from.
    """

    round: int
    previous: int
    arrays: Mapping[str, FlatParameters]


class SiteStates:
    """The sites' memories under one folder.

    root: a folder that every worker which may serve a site sees; a cluster of several machines shares it, or pins
    each site to its machine. job: tells apart jobs, or arms of one, that share the folder.
    """

    def __init__(self, root: Path, *, job: str = "") -> None:
        self._root = root
        self._job = job

    def load(self, site: str, state_round: int, names: Sequence[str], num_parameters: int) -> SiteMemory:
        """Return the site's arrays of `state_round`; 0 is before its first round, and all are zero.

        Raises SiteStateError where the file is missing, damaged, another's, or holds other arrays than those named.
        """
        if state_round == 0:
            zeros = {name: np.zeros(num_parameters, np.float32) for name in names}
            return SiteMemory(round=0, previous=0, arrays=zeros)
        path = self.path(site, state_round)
        try:
            memory = self._read(path, site, state_round)
            for name in names:
                array = memory.arrays.get(name)
                if array is None or array.dtype != np.float32 or array.shape != (num_parameters,):
                    raise ValueError(f"it holds no `{name}` float32[{num_parameters}]")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            fault = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used: {error}"
            raise SiteStateError(
                f"site {site!r} goes on from its round {state_round}, but {path} {fault}; restore that file (a cluster "
                "of several machines needs it on a shared disk), or start the job again with a new --run-dir"
            ) from error
        return memory

    def save(self, site: str, round: int, arrays: Mapping[str, FlatParameters], *, after: SiteMemory) -> None:
        """Write what the site remembers of this round durably, and drop what no checkpoint leads back to.

        after: the memory that the round went on from. A server keeps the checkpoints of the last two rounds, so that
        its next task may go on from this round, from `after`, or, where that is the round just before, from the one
        before it; and from `after` however long ago it was, where the site took part in nothing since.
        """
        path = self.path(site, round)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {**self._facts(site, round), "previous": after.round, "sha256": _digest(arrays)}
        metadata = {_FACTS: json.dumps(facts, sort_keys=True)}  # one entry: safetensors writes several in any order
        write_file(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata))
        kept = {self.path(site, number) for number in _rounds_kept(round, after)}
        for other in path.parent.iterdir():
            if other not in kept:
                other.unlink(missing_ok=True)

    def path(self, site: str, round: int) -> Path:
        """Return the file of a site's round. Names may hold any character, so the folder has a digest of them."""
        readable = re.sub(r"[^A-Za-z0-9]+", "-", site)[:40]
        digest = hashlib.sha256(f"{self._job}\x1f{site}".encode()).hexdigest()[:16]
        return self._root / f"{readable}-{digest}" / f"round-{round:04d}.safetensors"

    def _facts(self, site: str, round: int) -> dict[str, Any]:
        return {"job": self._job, "site": site, "round": round}

    def _read(self, path: Path, site: str, round: int) -> SiteMemory:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})[_FACTS])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = {key: facts[key] for key in self._facts(site, round)}
        if found != self._facts(site, round):
            raise ValueError(f"it was written as {found}")
        if facts["sha256"] != _digest(arrays):
            raise ValueError("its contents do not match their SHA-256")
        return SiteMemory(round=round, previous=facts["previous"], arrays=arrays)


def _rounds_kept(round: int, after: SiteMemory) -> Iterator[int]:
    yield round
    yield after.round
    if after.round == round - 1:
        yield after.previous


def _digest(arrays: Mapping[str, FlatParameters]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
