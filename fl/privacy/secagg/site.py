"""A site's part of one secure round: four steps, each a message in and a message out.

A step may be repeated with the same input and then sends the same bytes, for instance after a crash. Once a vector
has been masked, other input is refused: a server could have two vectors under one mask, or both secrets of one peer.
So the state must be stored before the message is sent: `to_bytes` after every step, into a file that only the site
can read, and deleted when the round is over. Python cannot wipe memory; secrets stay there until it is used again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.poly1305 import Poly1305
from numpy.typing import NDArray

from fl.errors import SecureAggregationError
from fl.privacy.secagg.encoding import Quantiser, RingVector
from fl.privacy.secagg.keys import ShareKeys, SiteKeys
from fl.privacy.secagg.masks import MaskStream
from fl.privacy.secagg.messages import (
    AdvertisedKeys,
    EncryptedShares,
    Masked,
    PeerKeys,
    PeerShares,
    Survivors,
    UnmaskShares,
)
from fl.privacy.secagg.plan import SecAggPlan
from fl.privacy.secagg.shamir import SHARE_BYTES
from fl.privacy.secagg.wire import Reader, Writer

_MAGIC = b"GSS1"


class SiteSession:
    """One site in one round. Start with `begin`; go on in another process with `from_bytes`."""

    def __init__(self, plan: SecAggPlan, site: str, master: bytes) -> None:
        if site not in plan.sites:
            raise SecureAggregationError("advertise keys", "the site does not take part in this round", site=site)
        self.plan = plan
        self.site = site
        self._master = master
        self._secrets = SiteKeys(plan, site, master)
        self._keys: dict[str, AdvertisedKeys] = {}  # of the neighbours; empty before `share`
        self._held: dict[str, ShareKeys] = {}  # of those that shared; empty before `mask`
        self._tag = b""  # of what was masked
        self._survivors: tuple[str, ...] = ()

    @classmethod
    def begin(cls, plan: SecAggPlan, site: str) -> tuple[SiteSession, AdvertisedKeys]:
        """Draw the site's secrets for this round from the operating system, and advertise their public halves."""
        session = cls(plan, site, secrets.token_bytes(32))
        return session, session.advertised()

    def advertised(self) -> AdvertisedKeys:
        """Return the site's advertisement, always the same."""
        return self._secrets.advertised()

    def share(self, message: PeerKeys) -> EncryptedShares:
        """Share this site's secrets among the neighbours that advertised.

        Until the site has masked, others may have advertised when it is asked again, by a server that starts anew.
        """
        message.check(self.plan, site=self.site)
        keys = self._checked_keys(message)
        if self._tag and self._keys != keys:
            raise message.refused(
                "the neighbours' keys are not those that the site has masked with in this round before"
            )
        self._enough(message, len(keys))
        sealed = {}
        for peer, shares in self._secrets.shares(keys).items():
            try:
                sealed[peer] = self._secrets.seal(keys[peer], shares)
            except ValueError as error:
                raise keys[peer].refused(f"its channel key cannot be used: {error}") from error
        self._keys = keys
        return EncryptedShares(plan=self.plan.digest, site=self.site, sealed=sealed)

    def mask(
        self,
        values: Mapping[str, NDArray[Any]],
        weight: float,
        message: PeerShares,
        *,
        out: RingVector | None = None,
    ) -> tuple[Masked, dict[str, int]]:
        """Quantise, weight and mask the values; return the message and how many values of each array were clipped.

        values, weight: see `Quantiser`; neither is changed or kept. out: where the masked vector is to be written, for
        instance memory that is sent from; a new array without it. What stands in it after an error must not be sent.
        """
        message.check(self.plan, site=self.site)
        if not self._keys:
            raise message.refused("the site has not shared its keys in this round; begin the round again")
        self._enough(message, len(message.sealed))
        held = {peer: self._opened(peer, sealed, message) for peer, sealed in sorted(message.sealed.items())}
        try:
            quantiser = Quantiser(self.plan.encoding, values, weight)
            vector, tag = self._masked(quantiser, tuple(held), out)
        except ValueError as error:
            raise message.refused(str(error)) from error
        if self._tag and self._tag != tag:
            vector.fill(0)  # with what was sent before it would tell the difference of the values
            raise message.refused("the site has masked other values, or for other neighbours, in this round before")
        self._held, self._tag = held, tag
        return Masked(plan=self.plan.digest, site=self.site, peers=tuple(held), vector=vector), quantiser.clipped

    def unmask(self, message: Survivors) -> UnmaskShares:
        """Return shares of the self masks of survivors and of the mask keys of drop-outs; never both of one peer."""
        message.check(self.plan, site="")
        self._check_survivors(message)
        survivors = tuple(sorted(message.sites))
        if self._survivors and self._survivors != survivors:
            raise self._refused("unmask", "it has answered another list of survivors in this round before")
        self._survivors = survivors
        alive = set(survivors)
        own = self._secrets.shares([self.site])[self.site]
        return UnmaskShares(
            plan=self.plan.digest,
            site=self.site,
            seed_shares={peer: held.seed_share for peer, held in self._held.items() if peer in alive}
            | {self.site: own.seed_share},
            key_shares={peer: held.key_share for peer, held in self._held.items() if peer not in alive},
        )

    def to_bytes(self) -> bytes:
        """Return the state, secrets included, with a SHA-256 of it at its end."""
        writer = Writer()
        writer.raw(_MAGIC)
        writer.blob(self.plan.to_bytes())
        writer.text(self.site)
        writer.raw(self._master)
        writer.count(len(self._keys))
        for key in self._keys.values():
            writer.blob(key.to_bytes())
        writer.count(len(self._held))
        for peer, held in self._held.items():
            writer.text(peer)
            writer.raw(held.seed_share.to_bytes(SHARE_BYTES, "big") + held.key_share.to_bytes(SHARE_BYTES, "big"))
        writer.blob(self._tag)
        writer.names(self._survivors)
        data = writer.done()
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> SiteSession:
        """Go on from a stored state. Raises SecureAggregationError where it is damaged."""
        reader = Reader(data[:-32])
        if hashlib.sha256(data[:-32]).digest() != data[-32:] or reader.raw(len(_MAGIC)) != _MAGIC:
            raise SecureAggregationError("plan", "the site's stored state is damaged; the site is out of this round")
        session = cls(SecAggPlan.from_bytes(reader.blob()), reader.text(), reader.raw(32))
        keys = [AdvertisedKeys.from_bytes(reader.blob()) for _ in range(reader.count())]
        session._keys = {key.site: key for key in keys}

        def share() -> int:
            return int.from_bytes(reader.raw(SHARE_BYTES), "big")

        session._held = reader.mapping(lambda: ShareKeys(share(), share()))
        session._tag = reader.blob()
        session._survivors = reader.names()
        return session

    def _checked_keys(self, message: PeerKeys) -> dict[str, AdvertisedKeys]:
        neighbours = self.plan.neighbours_of(self.site)
        own = self.advertised()
        seen = {own.channel_key, own.mask_key}
        for key in message.keys:
            key.check(self.plan)
            if key.site not in neighbours:
                raise key.refused(f"it is no neighbour of {self.site!r}")
            if key.channel_key in seen or key.mask_key in seen or key.channel_key == key.mask_key:
                raise key.refused("one of its keys was advertised before, or the site is listed twice")
            seen |= {key.channel_key, key.mask_key}
        return {key.site: key for key in sorted(message.keys, key=lambda key: key.site)}

    def _enough(self, message: PeerKeys | PeerShares, peers: int) -> None:
        if peers + 1 < self.plan.threshold:
            raise message.refused(
                f"{peers + 1} holders of its secrets are left; expected {self.plan.threshold} or more"
            )

    def _opened(self, peer: str, sealed: bytes, message: PeerShares) -> ShareKeys:
        if peer not in self._keys:
            raise message.refused(f"shares of {peer!r}, whose keys the site was not given")
        try:
            return self._secrets.open(self._keys[peer], sealed)
        except ValueError as error:
            raise SecureAggregationError(message.PHASE, f"at {self.site!r}: {error}", site=peer) from error

    def _masked(self, quantiser: Quantiser, peers: tuple[str, ...], out: RingVector | None) -> tuple[RingVector, bytes]:
        pairs = [self._secrets.pair_mask(self._keys[peer]) for peer in peers]
        masks = MaskStream(self.plan.encoding, [(self._secrets.self_mask(), True), *pairs])
        tag = Poly1305(self._secrets.tag_key())  # keyed and kept here: recognises, and tells nobody anything
        tag.update("\0".join(peers).encode())
        vector = self.plan.encoding.empty() if out is None else out
        self.plan.encoding.check(vector)
        for chunk in quantiser.fill(vector):
            tag.update(chunk.view(np.uint8).data)
            masks.apply(chunk)
        return vector, tag.finalize()

    def _check_survivors(self, message: Survivors) -> None:
        alive, known = set(message.sites), set(self.plan.sites)
        neighbours = set(self.plan.neighbours_of(self.site))
        faults = [
            (not self._tag, "it has masked nothing in this round"),
            (len(alive) < len(message.sites), "the list of survivors names a site twice"),
            (not alive <= known, f"{sorted(alive - known)} do not take part in this round"),
            (self.site not in alive, "it sent its vector and is listed as a drop-out"),
            (len(alive) < self.plan.min_survivors, f"{len(alive)} survivors, expected >= {self.plan.min_survivors}"),
            (not (alive & neighbours) <= set(self._held), "a neighbour that never shared its keys is a survivor"),
            (len(alive & neighbours) + 1 < self.plan.threshold, "too few of its neighbours survive"),
        ]  # fmt: skip
        for wrong, reason in faults:
            if wrong:
                raise self._refused(message.PHASE, reason)

    def _refused(self, phase: str, reason: str) -> SecureAggregationError:
        return SecureAggregationError(phase, reason, site=self.site)
