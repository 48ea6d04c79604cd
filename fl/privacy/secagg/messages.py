"""The messages of a secure round and their bytes.

Every message: b"GSA1", one byte for its kind, 32 bytes of the plan's digest, the site that it is from (or, from the
server, for), then its fields. Names and byte strings have their length before them in 4 bytes; numbers are big-endian.
The masked vector travels beside its message as the array that it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from fl.errors import SecureAggregationError
from fl.privacy.secagg.encoding import RingVector
from fl.privacy.secagg.plan import SecAggPlan
from fl.privacy.secagg.shamir import PRIME, SHARE_BYTES
from fl.privacy.secagg.wire import Reader, Writer

_MAGIC = b"GSA1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """plan: digest of the plan. site: who sent it or, from the server, whom it is for; "" is everyone."""

    KIND: ClassVar[int]
    PHASE: ClassVar[str]

    plan: bytes
    site: str

    def to_bytes(self) -> bytes:
        """Return the message in its fixed format."""
        writer = Writer()
        writer.raw(_MAGIC + bytes([self.KIND]) + self.plan)
        writer.text(self.site)
        self._write(writer)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes, **beside: Any) -> Self:
        """Read a message of this kind; raises SecureAggregationError where it is damaged or of another kind.

        beside: the vector of a `Masked`.
        """
        reader = Reader(data)
        try:
            magic, kind = reader.raw(len(_MAGIC)), reader.raw(1)[0]
            if magic != _MAGIC or kind != cls.KIND:
                raise ValueError(f"it begins with {magic!r}, kind {kind}; expected {_MAGIC!r}, kind {cls.KIND}")
            plan, site = reader.raw(32), reader.text()
            fields = cls._read(reader)
            reader.end()
        except ValueError as error:
            raise SecureAggregationError(cls.PHASE, f"{cls.__name__} of {len(data)} bytes: {error}") from error
        return cls(plan=plan, site=site, **fields, **beside)

    def check(self, plan: SecAggPlan, *, site: str | None = None) -> None:
        """Raise SecureAggregationError unless it belongs to this plan and, where `site` is given, to that site."""
        if self.plan != plan.digest:
            raise self.refused(f"it belongs to another round, job or list of sites; this is round {plan.round}")
        if site is not None and self.site != site:
            raise self.refused(f"it is addressed to {self.site!r}, this is {site!r}")
        if site is None and self.site not in plan.sites:
            raise self.refused("the site does not take part in this round")

    def sent_by(self, site: str) -> Self:
        """Return the message where `site`, which the transport knows as its sender, is who it says it is from.

        Raises SecureAggregationError, naming the sender, where it speaks for another.
        """
        if self.site != site:
            raise SecureAggregationError(self.PHASE, f"it sent a message in the name of {self.site!r}", site=site)
        return self

    def refused(self, reason: str) -> SecureAggregationError:
        """Return the error that refuses this message."""
        return SecureAggregationError(self.PHASE, reason, site=self.site)

    def _write(self, writer: Writer) -> None:
        raise NotImplementedError

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvertisedKeys(Message):
    """Site to server: public X25519 keys (32 bytes each) and a commitment to the self-mask seed (32 bytes)."""

    KIND: ClassVar[int] = 0
    PHASE: ClassVar[str] = "advertise keys"

    channel_key: bytes
    mask_key: bytes
    seed_commitment: bytes

    def _write(self, writer: Writer) -> None:
        writer.raw(self.channel_key + self.mask_key + self.seed_commitment)

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {name: reader.raw(32) for name in ("channel_key", "mask_key", "seed_commitment")}


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerKeys(Message):
    """Server to site: the keys of those of its neighbours that advertised."""

    KIND: ClassVar[int] = 1
    PHASE: ClassVar[str] = "share keys"

    keys: tuple[AdvertisedKeys, ...]

    def _write(self, writer: Writer) -> None:
        writer.count(len(self.keys))
        for key in self.keys:
            writer.blob(key.to_bytes())

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {"keys": tuple(AdvertisedKeys.from_bytes(reader.blob()) for _ in range(reader.count()))}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sealed(Message):
    sealed: Mapping[str, bytes]

    def _write(self, writer: Writer) -> None:
        writer.count(len(self.sealed))
        for peer in sorted(self.sealed):
            writer.text(peer)
            writer.blob(self.sealed[peer])

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {"sealed": reader.mapping(reader.blob)}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncryptedShares(_Sealed):
    """Site to server: for each neighbour its shares, encrypted for it alone."""

    KIND: ClassVar[int] = 2
    PHASE: ClassVar[str] = "share keys"


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerShares(_Sealed):
    """Server to site: what its neighbours encrypted for it, by sender."""

    KIND: ClassVar[int] = 3
    PHASE: ClassVar[str] = "masked input"


@dataclass(frozen=True, kw_only=True, slots=True)
class Masked(Message):
    """Site to server: the masked vector, and the neighbours whose pairwise masks are in it."""

    KIND: ClassVar[int] = 4
    PHASE: ClassVar[str] = "masked input"

    peers: tuple[str, ...]
    vector: RingVector

    def _write(self, writer: Writer) -> None:
        writer.names(self.peers)

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {"peers": reader.names()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors(Message):
    """Server to every site (`site` is ""): whose masked vectors are in the sum."""

    KIND: ClassVar[int] = 5
    PHASE: ClassVar[str] = "unmask"

    sites: tuple[str, ...]

    def _write(self, writer: Writer) -> None:
        writer.names(self.sites)

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        return {"sites": reader.names()}


@dataclass(frozen=True, kw_only=True, slots=True)
class UnmaskShares(Message):
    """Site to server: its shares of the survivors' self-mask seeds and of the drop-outs' mask keys, by owner."""

    KIND: ClassVar[int] = 6
    PHASE: ClassVar[str] = "unmask"

    seed_shares: Mapping[str, int]
    key_shares: Mapping[str, int]

    def _write(self, writer: Writer) -> None:
        for shares in (self.seed_shares, self.key_shares):
            writer.count(len(shares))
            for owner in sorted(shares):
                writer.text(owner)
                writer.raw(shares[owner].to_bytes(SHARE_BYTES, "big"))

    @classmethod
    def _read(cls, reader: Reader) -> dict[str, Any]:
        def share() -> int:
            value = int.from_bytes(reader.raw(SHARE_BYTES), "big")
            if value >= PRIME:
                raise ValueError("a share lies outside the field")
            return value

        return {"seed_shares": reader.mapping(share), "key_shares": reader.mapping(share)}
