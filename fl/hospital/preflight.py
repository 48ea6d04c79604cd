"""A look at the coordinator before a SuperNode is started: is it there, and is it the one whose CA this site trusts?

Flower retries or gives up with a message for developers; here each fault has a sentence for the hospital.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from fl.errors import HospitalError
from fl.hospital.address import Address

CONNECT_TIMEOUT_SECONDS = 10.0

_EXPIRED, _NOT_YET_VALID, _OTHER_NAME = 10, 9, (62, 64)
"""OpenSSL's X509_V_ERR_* numbers."""


def coordinator_answers(address: Address, authority_file: Path) -> bool:
    """Return whether the coordinator accepts a TLS connection now; False where nothing answers (yet).

    Raises HospitalError where what answers is not the coordinator that this site's CA vouches for.
    """
    try:
        context = ssl.create_default_context(cafile=authority_file)
    except (ssl.SSLError, OSError) as error:
        raise HospitalError(f"{authority_file}: is no CA certificate ({error}); restore it from your folder") from error
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=address.host),
        ):
            return True
    except ssl.SSLCertVerificationError as error:
        raise HospitalError(f"{address}: {_meaning(error)}") from error
    except ssl.SSLError as error:
        raise HospitalError(
            f"{address}: answers, but not as a gliofed coordinator does ({error.reason}); check site.yaml"
        ) from error
    except OSError:
        return False


def _meaning(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "the coordinator's certificate has expired; ask the coordinator to renew it, this site needs nothing"
    if error.verify_code == _NOT_YET_VALID:
        return "the coordinator's certificate is not valid yet; check this machine's date and time"
    if error.verify_code in _OTHER_NAME:
        return "the certificate shown there is for another address; check `coordinator:` in site.yaml"
    return (
        "the certificate shown there was not made by this federation's CA: somebody else answers at this address, or "
        "this folder is of another federation. Nothing was sent. Ask the coordinator before you try again"
    )
