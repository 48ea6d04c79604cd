"""Keys of a site for one round, and the keys that two sites agree on.

Everything of a site comes from one master secret that the operating system draws: both X25519 key pairs, the seed of
its own mask and both Shamir polynomials, by HKDF under labels of their own. So a step that is repeated after a crash
sends the same bytes, and the state to be kept is 32 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from fl.privacy.secagg.masks import SEED_BYTES
from fl.privacy.secagg.messages import AdvertisedKeys
from fl.privacy.secagg.plan import SecAggPlan
from fl.privacy.secagg.shamir import PRIME, SHARE_BYTES, split

_DOMAIN = b"gliofed secure aggregation, version 1"
_NONCE = bytes(12)  # a channel key encrypts one message, or the same one again


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """What one site holds of another's secrets: its share of the self-mask seed and of the mask key."""

    seed_share: int
    key_share: int


class SiteKeys:
    """The secrets of one site in one round. master: 32 bytes from the operating system."""

    def __init__(self, plan: SecAggPlan, site: str, master: bytes) -> None:
        self._plan = plan
        self._site = site
        self._master = master
        self._channel = X25519PrivateKey.from_private_bytes(self._derive(b"channel key"))
        self._mask = X25519PrivateKey.from_private_bytes(self._derive(b"mask key"))
        self._seed = self._derive(b"self mask")

    def advertised(self) -> AdvertisedKeys:
        """Return the public half."""
        return AdvertisedKeys(
            plan=self._plan.digest,
            site=self._site,
            channel_key=self._channel.public_key().public_bytes_raw(),
            mask_key=self._mask.public_key().public_bytes_raw(),
            seed_commitment=seed_commitment(self._plan, self._site, self._seed),
        )

    def self_mask(self) -> bytes:
        """Return the mask seed of the site's own mask."""
        return self_mask_seed(self._plan, self._site, self._seed)

    def tag_key(self) -> bytes:
        """Return the key of the tag by which a repeated input is recognised; it never leaves the site."""
        return self._derive(b"input tag")

    def pair_mask(self, peer: AdvertisedKeys) -> tuple[bytes, bool]:
        """Return the mask seed shared with a peer, and whether this site adds it. Raises ValueError for a bad key."""
        return pair_mask_seed(self._plan, self._mask, self._site, peer)

    def shares(self, holders: Iterable[str]) -> dict[str, ShareKeys]:
        """Return every holder's shares of the self-mask seed and of the mask key."""
        points = {holder: self._plan.point(holder) for holder in holders}
        seed = self._split(b"self mask polynomial", self._seed, points.values())
        key = self._split(b"mask key polynomial", self._mask.private_bytes_raw(), points.values())
        return {holder: ShareKeys(seed[point], key[point]) for holder, point in points.items()}

    def seal(self, peer: AdvertisedKeys, shares: ShareKeys) -> bytes:
        """Encrypt a peer's shares for it alone. Raises ValueError for a bad key."""
        plain = shares.seed_share.to_bytes(SHARE_BYTES, "big") + shares.key_share.to_bytes(SHARE_BYTES, "big")
        return self._aead(peer, self.advertised(), peer).encrypt(_NONCE, plain, None)

    def open(self, peer: AdvertisedKeys, sealed: bytes) -> ShareKeys:
        """Decrypt what a peer sealed for this site. Raises ValueError where it is not that, whole and in range."""
        try:
            plain = self._aead(peer, peer, self.advertised()).decrypt(_NONCE, sealed, None)
        except InvalidTag:
            raise ValueError("the encrypted shares were not sealed by it for this site and this round") from None
        if len(plain) != 2 * SHARE_BYTES:
            raise ValueError(f"the shares take {len(plain)} bytes, expected {2 * SHARE_BYTES}")
        shares = ShareKeys(int.from_bytes(plain[:SHARE_BYTES], "big"), int.from_bytes(plain[SHARE_BYTES:], "big"))
        if max(shares.seed_share, shares.key_share) >= PRIME:
            raise ValueError("a share lies outside the field")
        return shares

    def _aead(self, peer: AdvertisedKeys, sender: AdvertisedKeys, receiver: AdvertisedKeys) -> AESGCM:
        secret = self._channel.exchange(X25519PublicKey.from_public_bytes(peer.channel_key))
        # all that a message could be mistaken for: another round, direction, pair of sites or pair of keys
        return AESGCM(_agree(self._plan, b"channel", sender.to_bytes(), receiver.to_bytes(), secret=secret, length=32))

    def _split(self, label: bytes, secret: bytes, points: Iterable[int]) -> dict[int, int]:
        # 48 bytes modulo a 257-bit prime are uniform to 2^-127
        coefficients = [
            int.from_bytes(self._derive(b"%s %d" % (label, power), 48), "big") % PRIME
            for power in range(1, self._plan.threshold)
        ]
        return split(int.from_bytes(secret, "big"), coefficients, points)

    def _derive(self, label: bytes, length: int = 32) -> bytes:
        info = _packed(_DOMAIN, self._plan.digest, self._site.encode(), label)
        return HKDFExpand(algorithm=SHA256(), length=length, info=info).derive(self._master)


def pair_mask_seed(
    plan: SecAggPlan, private_key: X25519PrivateKey, site: str, peer: AdvertisedKeys
) -> tuple[bytes, bool]:
    """Return the mask seed of two sites from one's private and the other's public key, and whether the one adds it."""
    secret = private_key.exchange(X25519PublicKey.from_public_bytes(peer.mask_key))
    first, second = sorted([site, peer.site])
    seed = _agree(plan, b"pair mask", first.encode(), second.encode(), secret=secret, length=SEED_BYTES)
    return seed, site == first


def self_mask_seed(plan: SecAggPlan, site: str, seed: bytes) -> bytes:
    """Return the mask seed of a site's own mask from its self-mask seed."""
    return _agree(plan, b"self mask", site.encode(), secret=seed, length=SEED_BYTES)


def seed_commitment(plan: SecAggPlan, site: str, seed: bytes) -> bytes:
    """Return SHA-256 over a self-mask seed of 256 random bits: it binds, and tells nothing."""
    return hashlib.sha256(_packed(_DOMAIN, b"commitment", plan.digest, site.encode(), seed)).digest()


def _agree(plan: SecAggPlan, *purpose: bytes, secret: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=plan.digest, info=_packed(_DOMAIN, *purpose)).derive(secret)


def _packed(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
