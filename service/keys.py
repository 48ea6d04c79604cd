"""Keys of this machine: with which it signs the bundles that it exports, and whose bundles it accepts.

$GLIOFED_KEYS, else ~/.config/gliofed/keys
  signing.pem   signs; made with the first export
  *.pub         bundles of these keys are accepted, signing.pub among them; add a partner's to accept theirs
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from export.errors import SigningKeyError
from export.signing import PRIVATE_KEY, SigningKey, Trust, new_key, write_public

KEYS_VARIABLE = "GLIOFED_KEYS"


Target = Literal["onnx", "int8", "tensorrt", "triton"]


class ExportSettings(BaseModel):
    """What becomes of the trained model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: tuple[Target, ...] = Field(
        ("onnx",),
        description="onnx, always; int8: a quantized twin, left out where it costs half a point of macro-F1; tensorrt: "
        "engines for this machine's GPU; triton: a model repository beside the bundle.",
    )
    model_version: str = Field(
        "1.0.0",
        pattern=r"^[0-9A-Za-z][0-9A-Za-z.-]{0,31}$",
        description="Version of the bundle; an endpoint serves several side by side and prefers the newest.",
    )
    signing_key: Path | None = Field(
        None, description="Private key that signs the bundle; null: this machine's, made where there is none."
    )


def keys_folder() -> Path:
    """Return the folder of this machine's keys, which need not exist."""
    if named := os.environ.get(KEYS_VARIABLE):
        return Path(named)
    try:
        return Path("~/.config/gliofed/keys").expanduser()
    except RuntimeError as error:
        raise SigningKeyError(f"no home folder to keep keys in ({error}); name a folder in ${KEYS_VARIABLE}") from error


def signing_key(settings: ExportSettings, say: Callable[[str], object]) -> SigningKey:
    """Return the key that signs exports: the one of the settings, else this machine's, made and told of if need be.

    Raises SigningKeyError where the settings name no usable key: ask at the start of a job, not at its end.
    """
    if settings.signing_key is not None:
        return SigningKey.read(settings.signing_key)
    folder = keys_folder()
    if not (folder / PRIVATE_KEY).exists():
        key = new_key(folder)
        say(f"made a key to sign bundles with: {key.path} (fingerprint {key.public.fingerprint[:16]}; keep it private)")
        return key
    key = SigningKey.read(folder / PRIVATE_KEY)
    write_public(key)
    return key


def trusted_keys(given: Sequence[Path]) -> Trust:
    """Return trust in the given key files and folders, else in this machine's *.pub.

    Raises SigningKeyError for what is no key. May be empty: then nothing is accepted.
    """
    if given:
        return Trust.read(given)
    folder = keys_folder()
    return Trust.read([folder] if folder.is_dir() else [])
