"""The coordinator's address as people write it: HOST:PORT, where HOST is a DNS name or an IP address."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from fl.errors import HospitalError

_DNS_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_DNS_LABEL}(\.{_DNS_LABEL})*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """host: DNS name or IP address without brackets. port: 1..65535."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str) -> Address:
    """Read HOST:PORT; an IPv6 address stands in brackets. Raises HospitalError for anything else."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535 and _is_host(host, bracketed)):
        raise HospitalError(
            f"address {text!r}: expected HOST:PORT as the hospitals will reach the coordinator, "
            "for example coordinator.example.org:9443, 192.0.2.7:9443 or [2001:db8::7]:9443"
        )
    return Address(host=host, port=int(port))


def _is_host(host: str, bracketed: bool) -> bool:
    try:
        return (ipaddress.ip_address(host).version == 6) == bracketed
    except ValueError:
        # four numbers that are no address would be taken for a name and be looked up in vain
        return not bracketed and bool(_DNS_NAME.fullmatch(host)) and not re.fullmatch(r"[\d.]+", host)
