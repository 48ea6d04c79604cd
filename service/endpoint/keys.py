"""API keys: a file of names, roles and hashes, made by `gliofed api-keys`, read again whenever it changes.

A key is 256 random bits, so its SHA-256 is all that need be kept: what scrypt adds is for secrets that can be guessed,
and it would cost every request more than the model does. The file holds no secret, but decides who comes in: it must be
writable by its owner alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl.durable import write_secret
from fl.errors import HospitalError

Role = Literal["predict", "admin", "metrics"]

PREFIX = "gliofed_"
"""Of every key, so that one which was published by mistake is recognised as a secret."""

_LONGEST_SECRET = 128


class ApiKey(BaseModel):
    """One key: whose it is and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$", description="Whose key it is; the log names it.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal.")
    roles: tuple[Role, ...] = Field(min_length=1, description="What it may do.")
    created: datetime = Field(description="When it was made.")


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    keys: tuple[ApiKey, ...]


class KeyFile:
    """The keys of one file as it is at the moment. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises HospitalError where it is missing, damaged or writable by others."""
        self._path = path
        self._read: tuple[tuple[int, ...], tuple[ApiKey, ...]] = ((), read_keys(path))

    def find(self, secret: str) -> ApiKey | None:
        """Return the key that this is; None: nobody's.

        Takes the same time whichever key it is. Raises HospitalError where the file has become unusable: then nobody
        comes in, because a revoked key must not.
        """
        digest = hashlib.sha256(secret.encode()).hexdigest() if len(secret) <= _LONGEST_SECRET else ""
        found = None
        for key in self._keys():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _keys(self) -> tuple[ApiKey, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise HospitalError(f"{self._path}: cannot be read ({error.strerror})") from error
        version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
        known, keys = self._read
        if known != version:
            keys = read_keys(self._path)
            self._read = (version, keys)
        return keys


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a file, by name. Raises HospitalError where it is missing, damaged or writable by others."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text()
    except FileNotFoundError as error:
        raise HospitalError(f"{path}: there is no such file of API keys; make one with: {_how_to(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise HospitalError(f"{path}: cannot be read as a file of API keys ({error})") from error
    if mode & 0o022:
        raise HospitalError(f"{path}: others may write it (mode {mode:03o}); chmod 600 {path}")
    try:
        keys = _Keys.model_validate_json(text).keys
    except ValidationError as error:
        raise HospitalError(
            f"{path}: is no file of API keys ({_first_fault(error)}); make one: {_how_to(path)}"
        ) from error
    if len({key.name for key in keys}) != len(keys):
        raise HospitalError(f"{path}: has two keys of one name; remove one of them")
    return keys


def new_key(path: Path, name: str, roles: Sequence[str]) -> str:
    """Add a key to a file, which is made where it is missing; return the secret, which is kept nowhere.

    Raises HospitalError where the name is taken or no name, or no role is given.
    """
    keys = read_keys(path) if path.exists() else ()
    if name in {key.name for key in keys}:
        raise HospitalError(f"{path}: has a key {name!r} already; revoke it first, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    entry = {"name": name, "sha256": digest, "roles": [*dict.fromkeys(roles)], "created": datetime.now(UTC)}
    try:
        key = ApiKey.model_validate(entry)
    except ValidationError as error:
        raise HospitalError(f"{name!r} with roles {list(roles)}: {_first_fault(error)}") from error
    _write(path, (*keys, key))
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of a file; servers refuse it from then on. Raises HospitalError where there is none."""
    keys = read_keys(path)
    if name not in {key.name for key in keys}:
        raise HospitalError(f"{path}: has no key {name!r}; it has {', '.join(key.name for key in keys) or 'none'}")
    _write(path, tuple(key for key in keys if key.name != name))


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": 1, "keys": [key.model_dump(mode="json") for key in keys]}
    write_secret(path, json.dumps(content, indent=1).encode() + b"\n")


def _first_fault(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"


def _how_to(path: Path) -> str:
    return f"gliofed api-keys new NAME --file {path}"
