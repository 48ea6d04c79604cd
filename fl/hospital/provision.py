"""Make a federation's keys: a CA, the coordinator's certificate, and one folder per hospital to hand over.

<out>/
  ca/            the CA's certificate and key; kept apart and offline, needed to renew the certificate alone
  coordinator/   what `gliofed coordinator --keys` reads
  <site>/        what one hospital gets, and `gliofed site --keys` reads there

A folder appears whole or not at all, and one that is there is never written over. A site that is added later gets the
same CA, so nothing changes for the others.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template

import yaml

from fl.data.layout import SITE_NAME
from fl.errors import HospitalError
from fl.hospital.address import Address, read_address
from fl.hospital.certificates import Authority, issue_server_certificate, new_authority, new_key_pair
from fl.types import CLASSES

DEFAULT_DAYS = 365
_RESERVED = ("ca", "coordinator")
_SECRET = re.compile(r"\.key$")

Files = Mapping[str, bytes]


def provision(
    out: Path, sites: Sequence[str], address: str | None, *, days: int = DEFAULT_DAYS, now: datetime | None = None
) -> tuple[Path, ...]:
    """Make the folders of a new federation, or add sites to the one in `out`; return the folders that were made.

    sites: names as in a data folder's sites/<name>/. address: HOST:PORT of the coordinator; None takes the existing
    federation's. days: life of the coordinator's certificate, 1..825.
    Raises HospitalError for a name that cannot be used or is taken, and for another address than the existing one.
    """
    _check_names(out, sites)
    now = now or datetime.now(UTC)
    made: list[Path] = []
    coordinator = out / "coordinator"
    if coordinator.exists():
        where = _existing_address(coordinator, address)
    elif address is None:
        raise HospitalError("--address: a new federation needs it, HOST:PORT as the hospitals reach the coordinator")
    else:
        where = read_address(address)
        begun = (out / "ca").exists()  # by a call that was cut off
        authority = _read_authority(out) if begun else new_authority(now=now)
        files = _coordinator_files(authority, where, days, now)
        if not begun:
            made.append(_write_folder(out / "ca", _authority_files(authority)))
        made.append(_write_folder(coordinator, files))
    authority_certificate = (coordinator / "ca.pem").read_bytes()
    for site in sites:
        keys = new_key_pair()
        made.append(_write_folder(out / site, _site_files(site, where, authority_certificate, keys.private)))
        _write_file(coordinator / "sites" / f"{site}.pub", keys.public)
    return tuple(made)


def renew_certificate(out: Path, *, days: int = DEFAULT_DAYS, now: datetime | None = None) -> Address:
    """Give the coordinator a new certificate and key from the federation's CA; return the address it is for.

    The sites notice nothing. Raises HospitalError where the CA's folder is not there.
    """
    coordinator = out / "coordinator"
    authority = _read_authority(out)
    address = _written_address(coordinator)
    certificate, key = issue_server_certificate(authority, address.host, days=days, now=now or datetime.now(UTC))
    _write_file(coordinator / "certificate.key", key)
    _write_file(coordinator / "certificate.pem", certificate)
    return address


def _read_authority(out: Path) -> Authority:
    try:
        return Authority(certificate=(out / "ca" / "ca.pem").read_bytes(), key=(out / "ca" / "ca.key").read_bytes())
    except OSError as error:
        raise HospitalError(
            f"{error.filename}: cannot be read ({error.strerror}); bring back the folder ca/ that provision made"
        ) from error


def _check_names(out: Path, sites: Sequence[str]) -> None:
    if not sites:
        raise HospitalError("--sites: names no site; expected for example --sites north,south,east")
    for site in sites:
        if not SITE_NAME.fullmatch(site) or site.lower() in _RESERVED:
            raise HospitalError(
                f"--sites: {site!r} cannot name a site; expected letters, digits, '.', '_' or '-', at most 64, the "
                f"first a letter or digit, and none of {', '.join(_RESERVED)}"
            )
    folded = [site.lower() for site in sites]
    taken = {path.name.lower() for path in out.iterdir()} if out.is_dir() else set()
    # two names that differ by case alone would be one folder on many a shared disk
    twice = sorted({site for site in sites if folded.count(site.lower()) > 1 or site.lower() in taken})
    if twice:
        raise HospitalError(
            f"{out}: {', '.join(twice)} is there already or named twice; nothing was changed. "
            "Give new names; a site that lost its key gets a new name, or its old folder and .pub are removed first"
        )


def _existing_address(coordinator: Path, given: str | None) -> Address:
    existing = _written_address(coordinator)
    if given is not None and read_address(given) != existing:
        raise HospitalError(
            f"--address: this federation's coordinator is {existing}, not {given}; leave it out to add sites, or "
            "provision a new federation in another folder"
        )
    return existing


def _written_address(coordinator: Path) -> Address:
    try:
        return read_address(yaml.safe_load((coordinator / "coordinator.yaml").read_bytes())["address"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise HospitalError(f"{coordinator}: has no usable coordinator.yaml ({error}); restore it") from error


def _authority_files(authority: Authority) -> Files:
    return {"ca.pem": authority.certificate, "ca.key": authority.key, "README.md": _readme("ca")}


def _coordinator_files(authority: Authority, address: Address, days: int, now: datetime) -> Files:
    certificate, key = issue_server_certificate(authority, address.host, days=days, now=now)
    return {
        "coordinator.yaml": _yaml({"address": str(address)}),
        "ca.pem": authority.certificate,
        "certificate.pem": certificate,
        "certificate.key": key,
        "sites/README.md": _readme("keys"),
        "README.md": _readme("coordinator", address=str(address)),
    }


def _site_files(site: str, address: Address, authority_certificate: bytes, private_key: bytes) -> Files:
    return {
        "site.yaml": _yaml(
            {"name": site, "coordinator": str(address), "data": None, "threads": 1, "masked_only": False}
        ),
        "ca.pem": authority_certificate,
        "site.key": private_key,
        "README.md": _readme("site", site=site, address=str(address), classes=", ".join(CLASSES)),
    }


def _readme(name: str, **values: str) -> bytes:
    text = files("fl.hospital").joinpath("templates", f"{name}.md").read_text(encoding="utf-8")
    return Template(text).substitute(values).encode()


def _yaml(values: Mapping[str, object]) -> bytes:
    return yaml.safe_dump(dict(values), sort_keys=False).encode()


def _write_folder(folder: Path, contents: Files) -> Path:
    """Write a new folder, readable by its owner alone, that appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, content in contents.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            _write_file(temporary / name, content)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _write_file(path: Path, content: bytes) -> None:
    """Replace a file whole; a private key is never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.new")
    mode = 0o600 if _SECRET.search(path.name) else 0o644
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
