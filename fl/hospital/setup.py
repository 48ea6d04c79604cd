"""What a coordinator tells every site once a job: the settings that decide the training, and the model it starts from.

The site keeps it on its disk under its digest, so that it can be started again in the middle of a job; the run's
config, which comes with every message, names the digest.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fl.data.admission import AdmissionSettings
from fl.data.crops import CropBackendSetting
from fl.errors import HospitalError, ProtocolError
from fl.model.speed import SpeedSettings
from fl.model.vgg import NetworkSettings
from fl.runtime.flower_internals import view
from fl.runtime.messages import arrays_record
from fl.server.checkpoint import write_folder
from fl.training.augment import AugmentSettings
from fl.training.local import LocalSettings
from fl.training.trainer import ModelState, TrainerSetup
from kernels.spec import PreprocessSpec, SpecError

SETUP_KEY = "setup"
"""Of the run's config: the digest of the setup."""

RUN_KEY = "run"
"""Of the run's config: 32 hexadecimal digits that tell this run from all others, and stay when it is resumed."""

_SETTINGS, _STATE = "settings", "state"
KEPT = 3
"""Setups, and runs' memories, that a site keeps: the newest ones."""


class SiteSetup(BaseModel):
    """Settings of a job that a site needs; validated there, so that nothing but numbers and choices gets in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: NetworkSettings = Field(description="Shape of the VGG19.")
    speed: SpeedSettings = Field(description="Speed only.")
    preprocess: dict[str, Any] = Field(description="Scan to network input, as PreprocessSpec writes it.")
    crop_backend: CropBackendSetting = Field(description="Speed only.")
    augment: AugmentSettings = Field(description="Random views of training images.")
    local: LocalSettings = Field(description="A site's work in a round.")
    admission: AdmissionSettings = Field(description="What counts as an image.")
    validation_fraction: float = Field(gt=0, le=0.5, description="Of the site's scans, kept for its validation.")
    seed: int = Field(ge=0, lt=2**62, description="Seed of every draw.")

    def trainer(self, state: ModelState, *, store_root: Path, state_root: Path, num_threads: int) -> TrainerSetup:
        """Return what the site's trainer is made of. Raises ProtocolError."""
        try:
            preprocess = PreprocessSpec.from_json(self.preprocess)
        except (SpecError, KeyError, TypeError) as error:
            raise ProtocolError(f"the setup's preprocess cannot be used: {error}") from error
        return TrainerSetup(
            network=self.network,
            speed=self.speed,
            preprocess=preprocess,
            augment=self.augment,
            local=self.local,
            store_root=store_root,
            crop_backend=self.crop_backend,
            seed=self.seed,
            num_threads=num_threads,
            state=state,
            state_root=state_root,
        )


def setup_digest(setup: SiteSetup, state: ModelState) -> str:
    """Return the SHA-256 of the settings and of every weight."""
    digest = hashlib.sha256(setup.model_dump_json().encode())
    for name in sorted(state):
        digest.update(f"\n{name} {state[name].dtype}{state[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(state[name]).data)
    return digest.hexdigest()


def pack_setup(setup: SiteSetup, state: ModelState) -> RecordDict:
    """Return the message's content."""
    return RecordDict({_SETTINGS: ConfigRecord({"json": setup.model_dump_json()}), _STATE: arrays_record(state)})


def unpack_setup(content: RecordDict, digest: str) -> tuple[SiteSetup, ModelState]:
    """Read the message's content. Raises ProtocolError where it cannot be read or is not the one of this digest."""
    try:
        setup = SiteSetup.model_validate_json(str(content.config_records[_SETTINGS]["json"]))
        state: ModelState = {name: view(array) for name, array in content.array_records[_STATE].items()}
    except (KeyError, ValidationError, ValueError) as error:
        raise ProtocolError(f"a setup cannot be read: {error}") from error
    if setup_digest(setup, state) != digest:
        raise ProtocolError("the job's setup does not match its digest; both sides must run the same gliofed")
    return setup, state


def save_setup(root: Path, setup: SiteSetup, state: ModelState) -> None:
    """Keep a setup on the disk under its digest, and the newest `KEPT` of all."""
    files = {"setup.json": setup.model_dump_json().encode(), "model.safetensors": save_tensors(state)}
    root.mkdir(parents=True, exist_ok=True)
    write_folder(root / setup_digest(setup, state), files)
    keep_newest(root)


def keep_newest(root: Path) -> None:
    """Remove all but the newest `KEPT` folders in this one."""
    for old in sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load_setup(root: Path, digest: str) -> tuple[SiteSetup, ModelState]:
    """Return a setup that was kept. Raises HospitalError where it is not there, or damaged."""
    try:
        setup = SiteSetup.model_validate_json((root / digest / "setup.json").read_bytes())
        state: ModelState = load_tensors((root / digest / "model.safetensors").read_bytes())
    except (OSError, ValueError) as error:
        raise HospitalError(f"this site has no setup {digest[:16]} (any more); go on with --resume") from error
    if setup_digest(setup, state) != digest:
        raise HospitalError(f"this site's setup {digest[:16]} is damaged; go on with --resume")
    return setup, state
