"""The folders that `provision` hands out, as the coordinator and each site read them again.

coordinator/   coordinator.yaml  ca.pem  certificate.pem  certificate.key  sites/<name>.pub
<site>/        site.yaml  ca.pem  site.key
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl.errors import HospitalError
from fl.hospital.address import Address, read_address
from fl.hospital.certificates import as_pem, public_key_of, server_certificate_fault


class SiteSettings(BaseModel):
    """A hospital's own settings, site.yaml; only it and the coordinator's address leave its hands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The site's name in the federation; it belongs to the key and is not to be changed.")
    coordinator: str = Field(description="HOST:PORT of the coordinator.")
    data: Path | None = Field(None, description="Folder <class>/* of this site's scans; or give --data.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads to train with.")
    masked_only: bool = Field(
        False, description="Refuse jobs without secure aggregation: parameters and sums leave masked, or not at all."
    )


class CoordinatorSettings(BaseModel):
    """The coordinator's own settings, coordinator.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str = Field(description="HOST:PORT as the hospitals reach it; the certificate is for this host.")
    listen: str | None = Field(
        None,
        description="HOST:PORT to listen on where it differs, for example behind a firewall that forwards a port; "
        "null: the address.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteFolder:
    """One hospital's folder, read and checked. public_key: PEM, as the coordinator registers it."""

    folder: Path
    settings: SiteSettings
    coordinator: Address
    public_key: bytes

    @property
    def authority_file(self) -> Path:
        """The federation's CA certificate."""
        return self.folder / "ca.pem"

    @property
    def key_file(self) -> Path:
        """The site's private key."""
        return self.folder / "site.key"


@dataclass(frozen=True, kw_only=True, slots=True)
class CoordinatorFolder:
    """The coordinator's folder, read and checked. public_keys: site name to PEM, in name order."""

    folder: Path
    address: Address
    listen: Address
    public_keys: Mapping[str, bytes]

    @property
    def certificate_file(self) -> Path:
        """The TLS certificate."""
        return self.folder / "certificate.pem"

    @property
    def key_file(self) -> Path:
        """The TLS certificate's private key."""
        return self.folder / "certificate.key"

    @property
    def authority_file(self) -> Path:
        """The federation's CA certificate."""
        return self.folder / "ca.pem"


def read_site_folder(folder: Path) -> SiteFolder:
    """Read a hospital's folder. Raises HospitalError where it is incomplete, damaged, or its key readable by others."""
    settings = _read_settings(folder / "site.yaml", SiteSettings)
    try:
        public_key = public_key_of(_read_secret(folder / "site.key"))
    except ValueError as error:
        raise HospitalError(
            f"{folder / 'site.key'}: is no site key ({error}); ask the coordinator for a new folder"
        ) from error
    _read(folder / "ca.pem")
    return SiteFolder(
        folder=folder, settings=settings, coordinator=read_address(settings.coordinator), public_key=public_key
    )


def read_coordinator_folder(folder: Path, *, now: datetime | None = None) -> CoordinatorFolder:
    """Read the coordinator's folder.

    Raises HospitalError where it is incomplete or damaged, its certificate has expired or does not belong to its key
    and CA, two sites have the same key, or its private key is readable by others.
    """
    settings = _read_settings(folder / "coordinator.yaml", CoordinatorSettings)
    fault = server_certificate_fault(
        _read(folder / "certificate.pem"),
        _read_secret(folder / "certificate.key"),
        _read(folder / "ca.pem"),
        now=now or datetime.now(UTC),
    )
    if fault is not None:
        raise HospitalError(f"{folder}: {fault}; renew it with `gliofed provision --renew --out {folder.parent}`")
    address = read_address(settings.address)
    return CoordinatorFolder(
        folder=folder,
        address=address,
        listen=read_address(settings.listen) if settings.listen else address,
        public_keys=_read_public_keys(folder / "sites"),
    )


Settings = TypeVar("Settings", bound=BaseModel)


def _read_settings(path: Path, model: type[Settings]) -> Settings:
    try:
        return model.model_validate(yaml.safe_load(_read(path)))
    except yaml.YAMLError as error:
        raise HospitalError(f"{path}: is no YAML ({error}); mend it or restore it from the folder you got") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors())
        raise HospitalError(f"{path}: {faults}") from error


def _read_public_keys(folder: Path) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            keys[path.stem] = as_pem(_read(path))
        except ValueError as error:
            raise HospitalError(f"{path}: is no site's public key ({error}); restore or remove it") from error
    if not keys:
        raise HospitalError(f"{folder}: has no public key of any site; add sites with `gliofed provision --sites`")
    owner: dict[bytes, str] = {}
    for name, key in keys.items():
        if (other := owner.setdefault(key, name)) != name:
            raise HospitalError(f"{folder}: sites {other} and {name} have the same key; provision one of them anew")
    return keys


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HospitalError(
            f"{path}: cannot be read ({error.strerror}); --keys names the folder that `gliofed provision` made"
        ) from error


def _read_secret(path: Path) -> bytes:
    content = _read(path)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise HospitalError(f"{path}: is a private key that others may read; run `chmod 600 {path}`")
    return content
