"""The server's part of one secure round: four phases, each closed before the next begins.

A message that is refused leaves no trace: the caller may go on without that site, as with one that did not answer.
Masked vectors are added as they come; memory is one vector, whatever the number of sites.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fl.errors import SecureAggregationError
from fl.privacy.secagg.encoding import SecureSum
from fl.privacy.secagg.keys import pair_mask_seed, seed_commitment, self_mask_seed
from fl.privacy.secagg.masks import MaskStream
from fl.privacy.secagg.messages import (
    AdvertisedKeys,
    EncryptedShares,
    Masked,
    Message,
    PeerKeys,
    PeerShares,
    Survivors,
    UnmaskShares,
)
from fl.privacy.secagg.plan import SecAggPlan
from fl.privacy.secagg.shamir import combine

_ORDER: tuple[type[Message], ...] = (AdvertisedKeys, EncryptedShares, Masked, UnmaskShares)


class SecAggServer:
    """One secure round: add_keys, close_keys, add_shares, close_shares, add_masked, close_masked, add_unmask, result.

    Every method raises SecureAggregationError: `add_*` for a message out of place, naming the site; `close_*` and
    `result` where too few sites are left.
    """

    def __init__(self, plan: SecAggPlan) -> None:
        self.plan = plan
        self._collects: type[Message] = AdvertisedKeys
        self._keys: dict[str, AdvertisedKeys] = {}
        self._sealed: dict[str, Mapping[str, bytes]] = {}
        self._alive: set[str] = set()
        self._answers: dict[str, UnmaskShares] = {}
        self._total = np.zeros(plan.encoding.length, plan.encoding.dtype)
        self._sum: SecureSum | None = None

    def add_keys(self, message: AdvertisedKeys) -> None:
        """Phase 0: take a site's public keys."""
        self._admit(message, self._keys)
        known = {key for other in self._keys.values() for key in (other.channel_key, other.mask_key)}
        if len(known | {message.channel_key, message.mask_key}) < len(known) + 2:
            raise message.refused("one of its keys was advertised before")
        self._keys[message.site] = message

    def close_keys(self) -> dict[str, PeerKeys]:
        """Return for every site that advertised the keys of its neighbours."""
        self._close(AdvertisedKeys, self._keys)
        return {
            site: PeerKeys(
                plan=self.plan.digest,
                site=site,
                keys=tuple(self._keys[peer] for peer in self._peers(site, self._keys)),
            )
            for site in self._keys
        }

    def add_shares(self, message: EncryptedShares) -> None:
        """Phase 1: take a site's encrypted shares."""
        self._admit(message, self._sealed, self._keys)
        self._match(message, "shares", message.sealed, self._peers(message.site, self._keys))
        self._sealed[message.site] = message.sealed

    def close_shares(self) -> dict[str, PeerShares]:
        """Return for every site that shared what its neighbours encrypted for it."""
        self._close(EncryptedShares, self._sealed)
        return {
            site: PeerShares(
                plan=self.plan.digest,
                site=site,
                sealed={peer: self._sealed[peer][site] for peer in self._peers(site, self._sealed)},
            )
            for site in self._sealed
        }

    def add_masked(self, message: Masked) -> None:
        """Phase 2: add a site's masked vector to the sum; the vector is not kept."""
        self._admit(message, self._alive, self._sealed)
        self._match(message, "masks", message.peers, self._peers(message.site, self._sealed))
        try:
            self.plan.encoding.check(message.vector)
        except ValueError as error:
            raise message.refused(str(error)) from error
        np.add(self._total, message.vector, out=self._total)
        self._alive.add(message.site)

    def close_masked(self) -> Survivors:
        """Return the list of survivors, for all of them."""
        self._close(Masked, self._alive)
        return Survivors(plan=self.plan.digest, site="", sites=tuple(sorted(self._alive)))

    def add_unmask(self, message: UnmaskShares) -> None:
        """Phase 3: take a survivor's shares."""
        self._admit(message, self._answers, self._alive)
        peers = self._peers(message.site, self._sealed)
        survivors = {peer for peer in peers if peer in self._alive}
        self._match(message, "shares of self masks", message.seed_shares, survivors | {message.site})
        self._match(message, "shares of mask keys", message.key_shares, set(peers) - survivors)
        self._answers[message.site] = message

    def result(self) -> SecureSum:
        """Rebuild the survivors' self masks and the drop-outs' pairwise masks, take them off and return the sum."""
        if self._sum is None:
            if self._collects is not UnmaskShares:
                raise SecureAggregationError("unmask", "the phase of masked inputs is not closed")
            self._sum = self._unmasked()
        return self._sum

    def _unmasked(self) -> SecureSum:
        terms = [(self._self_mask(site), False) for site in sorted(self._alive)]
        for site in sorted(set(self._sealed) - self._alive):
            terms += self._pair_masks(site)
        masks = MaskStream(self.plan.encoding, terms)
        for chunk in self.plan.encoding.chunks(self._total):
            masks.apply(chunk)
        total = SecureSum(encoding=self.plan.encoding, total=self._total, sites=tuple(sorted(self._alive)))
        if total.ones != len(self._alive):
            self._fail("the masks do not cancel: a site masked with other keys or neighbours than it said")
        return total

    def _self_mask(self, site: str) -> bytes:
        secret = self._rebuilt(
            site, {holder: a.seed_shares[site] for holder, a in self._answers.items() if site in a.seed_shares}
        )
        if seed_commitment(self.plan, site, secret) != self._keys[site].seed_commitment:
            self._fail("a share of its self mask is false: the seed is not the one that it committed itself to", site)
        return self_mask_seed(self.plan, site, secret)

    def _pair_masks(self, site: str) -> list[tuple[bytes, bool]]:
        """Of a drop-out: what it would have added, and so made its survivors' masks cancel."""
        survivors = self._peers(site, self._alive)
        if not survivors:
            return []
        secret = self._rebuilt(
            site, {holder: a.key_shares[site] for holder, a in self._answers.items() if site in a.key_shares}
        )
        private_key = X25519PrivateKey.from_private_bytes(secret)
        if private_key.public_key().public_bytes_raw() != self._keys[site].mask_key:
            self._fail("a share of its mask key is false: the key is not the one that it advertised", site)
        return [pair_mask_seed(self.plan, private_key, site, self._keys[peer]) for peer in survivors]

    def _rebuilt(self, owner: str, shares: Mapping[str, int]) -> bytes:
        if len(shares) < self.plan.threshold:
            self._fail(f"{len(shares)} shares of its secret came back, expected {self.plan.threshold} or more", owner)
        holders = sorted(shares)[: self.plan.threshold]
        try:
            return combine({self.plan.point(holder): shares[holder] for holder in holders}).to_bytes(32, "big")
        except (ValueError, OverflowError) as error:
            self._fail(f"a share of its secret is false: {error}", owner)

    def _admit(self, message: Message, have: Collection[str], before: Collection[str] | None = None) -> None:
        message.check(self.plan)
        if type(message) is not self._collects:
            raise message.refused(f"it came in the phase {self._collects.PHASE!r}")
        if message.site in have:
            raise message.refused("it has sent this message before")
        if before is not None and message.site not in before:
            raise message.refused("it took no part in the phase before")

    def _close(self, phase: type[Message], have: Collection[str]) -> None:
        if self._collects is not phase:
            raise SecureAggregationError(phase.PHASE, f"it was closed; the phase is {self._collects.PHASE!r}")
        if len(have) < self.plan.min_survivors:
            missing = sorted(set(self.plan.sites) - set(have))
            raise SecureAggregationError(
                phase.PHASE,
                f"{len(have)} sites are left, the plan asks for {self.plan.min_survivors}; missing: {missing}",
            )
        self._collects = _ORDER[_ORDER.index(phase) + 1]

    def _match(self, message: Message, what: str, given: Collection[str], expected: Collection[str]) -> None:
        if len(given) != len(expected) or set(given) != set(expected):
            raise message.refused(f"it sent {what} for {sorted(given)}, expected {sorted(expected)}")

    def _peers(self, site: str, among: Collection[str]) -> list[str]:
        return [peer for peer in self.plan.neighbours_of(site) if peer in among]

    def _fail(self, reason: str, site: str | None = None) -> NoReturn:
        raise SecureAggregationError("unmask", reason, site=site)
