"""One hospital's scans and model, and what a coordinator may ask of them.

First a job's setup, which is answered with a description of the site; then what `fl.runtime.client.ANSWERS` lists,
answered by the same code as on a Ray worker. Nothing else is understood, and no answer holds a pixel, a feature of one
scan, a file's name or a logit.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from fl.data.admission import admit
from fl.data.layout import plain_files
from fl.data.sites import hospital_sites
from fl.errors import DataError, ProtocolError
from fl.hospital.folders import SiteSettings
from fl.hospital.setup import SiteSetup, keep_newest, load_setup, save_setup, unpack_setup
from fl.runtime.client import answer
from fl.runtime.messages import TRAIN, pack_description
from fl.runtime.secure import STATISTICS
from fl.training.trainer import ModelState, SiteTrainer
from fl.types import Quarantined, Scan, Site

DATA_RECORD, DATA_DIGEST = "data", "digest"
"""Record of a description beside the usual ones: the digest of the site's scans, for a run that is resumed."""

_UNMASKED = (TRAIN, STATISTICS)
_SETUP, _RUN = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """Which job a message is of, as the run's config says it. setup: digest of its setup. run: of 32 hex digits.

    Raises ProtocolError for anything else: both name folders of the site.
    """

    setup: str
    run: str

    def __post_init__(self) -> None:
        if not _SETUP.fullmatch(self.setup) or not _RUN.fullmatch(self.run):
            raise ProtocolError(f"setup {self.setup[:70]!r} and run {self.run[:40]!r} were named, expected hex digits")


class SiteDesk:
    """A site that answers.

    data: folder <class>/*. state: folder of the site's own for setups, features and what it remembers of rounds. say:
    told what was found.
    """

    def __init__(self, settings: SiteSettings, data: Path, state: Path, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._data = data
        self._state = state
        self._say = say
        self._open_run: RunIdentity | None = None

    def set_up(self, content: RecordDict, run: RunIdentity) -> RecordDict:
        """Take the setup of a run; answer with what the site says of itself."""
        setup, state = unpack_setup(content, run.setup)
        save_setup(self._state / "setups", setup, state)
        self._open(run, setup, state)
        description = pack_description(self._site, self._trainer.describe())
        description[DATA_RECORD] = ConfigRecord({DATA_DIGEST: data_digest(self._site)})
        return description

    def answer(self, message_type: str, content: RecordDict, run: RunIdentity) -> RecordDict:
        """Answer a message of a run; errors as `fl.runtime.client.answer`, which is not asked for what is refused."""
        if self._settings.masked_only and message_type in _UNMASKED:
            raise ProtocolError("this site sends masked sums only; the job must set fl.secure_aggregation")
        if run != self._open_run:
            self._open(run, *load_setup(self._state / "setups", run.setup))
        return answer(self._trainer, self._site, message_type, content)

    def without_folders(self, text: str) -> str:
        """Return a text for the coordinator's eyes, which this hospital's folders are not."""
        for folder in (self._data, self._state):
            for name in (str(folder.resolve()), str(folder)):
                text = text.replace(name, "…")
        return text

    def _open(self, run: RunIdentity, setup: SiteSetup, state: ModelState) -> None:
        """Make this run's trainer and site the ones in use."""
        self._open_run = None  # until both are there
        self._site = self._admit(setup)
        memories, threads = self._state / "runs" / run.run, self._settings.threads
        memories.mkdir(parents=True, exist_ok=True)
        os.utime(memories)  # this run is the newest, however long ago it was begun
        keep_newest(memories.parent)
        self._trainer = SiteTrainer(
            setup.trainer(state, store_root=self._state / "store", state_root=memories, num_threads=threads)
        )
        self._open_run = run

    def _admit(self, setup: SiteSetup) -> Site:
        try:
            files = plain_files(self._data)
            outcomes = list(admit(files, setup.admission, self._state / "inventory.jsonl"))
            scans = [outcome for outcome in outcomes if isinstance(outcome, Scan)]
            (site,) = hospital_sites({self._settings.name: scans}, setup.validation_fraction, setup.seed)
        except DataError as error:
            self._say(f"   {error}")
            # its words name this hospital's folders, which are nobody's business
            raise ProtocolError("its scans cannot be used; the site's own screen says why") from error
        refused = [outcome for outcome in outcomes if isinstance(outcome, Quarantined)]
        for outcome in refused:
            self._say(f"   not used: {outcome.detail}")
        self._say(
            f"   {len(site.scans)} scans to train on, {len(site.validation_scans)} for validation, "
            f"{len(refused)} not used"
        )
        return site


def data_digest(site: Site) -> str:
    """Return a digest of which pixels and labels the site trains and validates on."""
    digest = hashlib.sha256()
    for scans in (site.scans, site.validation_scans):
        digest.update(b"\n" + "".join(f"{scan.pixels_sha256}{scan.label}" for scan in scans).encode())
    return digest.hexdigest()
