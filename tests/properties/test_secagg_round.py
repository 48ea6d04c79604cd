"""Whole secure rounds: the exact sum whoever drops out up to the limit, none beyond it, and nothing to be seen before.

Every message and every site's state goes through its bytes between the steps.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.errors import SecureAggregationError
from fl.privacy.secagg.encoding import ArraySpec, RingEncoding, SecureSum
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
from fl.privacy.secagg.plan import SecAggPlan, SecureAggregationSettings
from fl.privacy.secagg.server import SecAggServer
from fl.privacy.secagg.site import SiteSession

PHASES = ("advertise keys", "share keys", "masked input", "unmask")
ARRAYS = (
    ArraySpec(name="update", length=13, clip=0.5),
    ArraySpec(name="class_sums", length=4, whole=True),
)
MAX_WEIGHT = 50

Values = dict[str, NDArray[Any]]
Inputs = dict[str, tuple[Values, int]]


def plan_of(num_sites: int, *, round: int = 1, **setting: Any) -> SecAggPlan:
    sites = [f"site-{number:03}" for number in range(num_sites)]
    return SecureAggregationSettings(**setting).plan(
        round=round, sites=sites, arrays=ARRAYS, context=b"job", max_weight=MAX_WEIGHT
    )


def inputs_of(plan: SecAggPlan, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    return {
        site: (
            {
                "update": rng.uniform(-0.6, 0.6, 13).astype(np.float32),
                "class_sums": rng.integers(0, 2**20, 4).astype(plan.encoding.dtype),
            },
            int(rng.integers(1, MAX_WEIGHT + 1)),
        )
        for site in plan.sites
    }


class Round:
    """Plays a round; `seen` is all that the server gets."""

    def __init__(self, plan: SecAggPlan, inputs: Inputs) -> None:
        self.plan = plan
        self.inputs = inputs
        self.server = SecAggServer(plan)
        self.states: dict[str, bytes] = {}
        self.seen: list[bytes] = []
        self.masked: dict[str, Masked] = {}

    def run(self, dropping: Mapping[str, Sequence[str]] | None = None, order: Sequence[str] | None = None) -> SecureSum:
        """Play all phases; the named sites are silent from that phase on."""
        left = list(order or self.plan.sites)
        for phase, step in zip(PHASES, (self.advertise, self.share, self.mask, self.unmask), strict=True):
            left = [site for site in left if site not in (dropping or {}).get(phase, ())]
            step(left)
        return self.server.result()

    def advertise(self, sites: Iterable[str]) -> None:
        for site in sites:
            session, message = SiteSession.begin(self.plan, site)
            self.states[site] = session.to_bytes()
            self.server.add_keys(AdvertisedKeys.from_bytes(self._sent(message)))
        self.peer_keys = self.server.close_keys()

    def share(self, sites: Iterable[str]) -> None:
        for site in sites:
            session = SiteSession.from_bytes(self.states[site])
            message = session.share(PeerKeys.from_bytes(self.peer_keys[site].to_bytes()))
            self.states[site] = session.to_bytes()
            self.server.add_shares(EncryptedShares.from_bytes(self._sent(message)))
        self.peer_shares = self.server.close_shares()

    def mask(self, sites: Iterable[str]) -> None:
        for site in sites:
            session = SiteSession.from_bytes(self.states[site])
            values, weight = self.inputs[site]
            message, _ = session.mask(values, weight, PeerShares.from_bytes(self.peer_shares[site].to_bytes()))
            self.states[site] = session.to_bytes()
            self.masked[site] = Masked.from_bytes(self._sent(message), vector=message.vector.copy())
            self.seen.append(message.vector.tobytes())
            self.server.add_masked(self.masked[site])
        self.survivors = Survivors.from_bytes(self.server.close_masked().to_bytes())

    def unmask(self, sites: Iterable[str]) -> None:
        for site in sites:
            session = SiteSession.from_bytes(self.states[site])
            message = session.unmask(self.survivors)
            self.states[site] = session.to_bytes()
            assert not set(message.seed_shares) & set(message.key_shares)
            self.server.add_unmask(UnmaskShares.from_bytes(self._sent(message)))

    def _sent(self, message: Message) -> bytes:
        self.seen.append(message.to_bytes())
        return self.seen[-1]


def quantised(encoding: RingEncoding, values: Values, weight: int) -> list[int]:
    """The plain ring vector as Python integers, from the definition."""
    quanta = weight * encoding.weight_quanta
    numbers, clipped = [], 0
    for array in encoding.arrays:
        if array.whole:
            numbers += values[array.name].tolist()
            continue
        for value in values[array.name].astype(float):
            clipped += int(abs(value) > array.clip)
            inside = max(-array.clip, min(array.clip, value))
            numbers.append(round(inside * (quanta / array.clip)))
    return [*numbers, quanta, clipped, 1]


def plain_sum(plan: SecAggPlan, inputs: Inputs, sites: Iterable[str]) -> list[int]:
    rows = [quantised(plan.encoding, *inputs[site]) for site in sites]
    return [sum(column) % 2**plan.encoding.bits for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("num_sites", [2, 3, 8, 16])
def test_sum_is_the_exact_sum_of_the_quantised_values(num_sites: int, bits: int) -> None:
    plan = plan_of(num_sites, ring_bits=bits)
    inputs = inputs_of(plan)
    total = Round(plan, inputs).run()

    assert total.sites == plan.sites
    assert total.total.tolist() == plain_sum(plan, inputs, plan.sites)
    clipped = [np.clip(values["update"], -0.5, 0.5) for values, _ in inputs.values()]
    weights = [weight for _, weight in inputs.values()]
    np.testing.assert_allclose(total.mean("update"), np.average(clipped, axis=0, weights=weights), atol=1e-6)
    assert (total.whole("class_sums") == sum(values["class_sums"] for values, _ in inputs.values())).all()
    assert total.weight == sum(weights)
    assert total.clipped == sum((np.abs(values["update"]) > 0.5).sum() for values, _ in inputs.values())


def test_result_is_the_same_bytes_in_every_run_and_order() -> None:
    plan = plan_of(16)
    inputs = inputs_of(plan)
    first, second = (Round(plan, inputs).run(order=order) for order in (plan.sites, plan.sites[::-1]))

    assert first.total.tobytes() == second.total.tobytes()
    assert first.mean("update").tobytes() == second.mean("update").tobytes()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("num_sites", [3, 8, 16])
def test_drop_outs_up_to_the_limit_are_survived_in_every_phase(num_sites: int, phase: str) -> None:
    plan = plan_of(num_sites)
    inputs = inputs_of(plan)
    gone = plan.sites[: num_sites - plan.min_survivors]
    total = Round(plan, inputs).run({phase: gone})

    assert gone
    staying = plan.sites if phase == "unmask" else plan.sites[len(gone) :]  # what was masked and sent counts
    assert total.sites == staying
    assert total.total.tolist() == plain_sum(plan, inputs, staying)


@pytest.mark.parametrize("phase", PHASES[:3])
@pytest.mark.parametrize("num_sites", [3, 8, 16])
def test_one_drop_out_more_fails_in_its_phase(num_sites: int, phase: str) -> None:
    plan = plan_of(num_sites)
    gone = plan.sites[: num_sites - plan.min_survivors + 1]
    with pytest.raises(SecureAggregationError, match=f"sites are left.*{gone[0]}") as caught:
        Round(plan, inputs_of(plan)).run({phase: gone})

    assert caught.value.phase == phase


@pytest.mark.parametrize("num_sites", [3, 8])
def test_one_answer_fewer_than_the_threshold_gives_no_sum(num_sites: int) -> None:
    plan = plan_of(num_sites)
    inputs = inputs_of(plan)
    enough = plan.sites[plan.threshold :]

    assert Round(plan, inputs).run({"unmask": enough}).total.tolist() == plain_sum(plan, inputs, plan.sites)
    with pytest.raises(SecureAggregationError, match=f"{plan.threshold - 1} shares of its secret came back") as caught:
        Round(plan, inputs).run({"unmask": plan.sites[plan.threshold - 1 :]})
    assert caught.value.phase == "unmask" and caught.value.site in plan.sites


@settings(max_examples=30, deadline=None)
@given(data=st.data(), num_sites=st.integers(2, 18))
def test_whoever_drops_out_wherever_the_sum_is_that_of_the_rest(data: st.DataObject, num_sites: int) -> None:
    plan = plan_of(num_sites, colluding=0.1, dropping=0.25)
    gone = data.draw(st.lists(st.sampled_from(plan.sites), unique=True, max_size=num_sites - plan.min_survivors))
    phases = [data.draw(st.sampled_from(PHASES)) for _ in gone]
    dropping = {phase: [site for site, at in zip(gone, phases, strict=True) if at == phase] for phase in PHASES}
    inputs = inputs_of(plan, seed=num_sites)
    total = Round(plan, inputs).run(dropping)

    staying = [site for site in plan.sites if site not in gone or site in dropping["unmask"]]
    assert total.sites == tuple(staying)
    assert total.total.tolist() == plain_sum(plan, inputs, staying)


def test_masked_vectors_are_uniform_whatever_the_data() -> None:
    """2^17 masked bytes of equal data: no value of a byte is more frequent than chance allows."""
    array = ArraySpec(name="update", length=4093, clip=1.0)
    plan = SecureAggregationSettings().plan(
        round=1, sites=[f"site-{number}" for number in range(8)], arrays=[array], context=b"job"
    )
    equal = {site: ({"update": np.full(4093, 0.25, np.float32)}, 1) for site in plan.sites}
    played = Round(plan, equal)
    played.run()
    vectors = np.stack([message.vector for message in played.masked.values()])
    counts = np.bincount(vectors.view(np.uint8).ravel(), minlength=256)
    expected = counts.sum() / 256

    assert ((counts - expected) ** 2 / expected).sum() < 400  # chi-square, 255 degrees of freedom: P < 1e-8
    bits = np.unpackbits(vectors.view(np.uint8).reshape(8, -1), axis=1).astype(np.int8) * 2 - 1
    agreement = np.abs(np.corrcoef(bits) - np.eye(8)).max()
    assert agreement < 6 / np.sqrt(bits.shape[1])  # no two sites' vectors are alike in more bits than chance allows
    assert len({row.tobytes() for row in vectors}) == 8


def test_same_values_are_masked_otherwise_in_every_round_and_in_every_run() -> None:
    plan = plan_of(3)
    vectors = []
    for each in (plan, plan, plan_of(3, round=2)):
        played = Round(each, inputs_of(plan))
        played.run()
        vectors += [message.vector[:8].tobytes() for message in played.masked.values()]

    assert len(set(vectors)) == 9


def test_no_message_holds_anything_of_the_values() -> None:
    plan = plan_of(8)
    inputs = inputs_of(plan)
    played = Round(plan, inputs)
    played.run({"masked input": plan.sites[:1]})
    everything = b"\0".join(played.seen)

    for values, weight in inputs.values():
        ring = np.array(quantised(plan.encoding, values, weight)[:-3]).astype(plan.encoding.dtype)
        for one in [*values["update"], *values["class_sums"], *ring]:
            assert one.tobytes() not in everything or one == 0


def test_late_vector_of_a_drop_out_keeps_its_self_mask() -> None:
    """Why a site masks twice (Bonawitz et al. 2017): when it comes late, its pairwise masks are already known."""
    plan = plan_of(5)
    late, *others = plan.sites
    played = Round(plan, inputs_of(plan))
    played.run({"masked input": [late]})
    session = SiteSession.from_bytes(played.states[late])
    message, _ = session.mask(*played.inputs[late], played.peer_shares[late])

    with pytest.raises(SecureAggregationError, match="it came in the phase 'unmask'"):
        played.server.add_masked(message)
    everyone = Survivors(plan=plan.digest, site="", sites=plan.sites)
    for site in others:
        with pytest.raises(SecureAggregationError, match="another list of survivors"):
            SiteSession.from_bytes(played.states[site]).unmask(everyone)
    with pytest.raises(SecureAggregationError, match="listed as a drop-out"):
        session.unmask(played.survivors)


def test_masked_vectors_are_not_kept() -> None:
    plan = plan_of(3)
    played = Round(plan, inputs_of(plan))
    played.advertise(plan.sites)
    played.share(plan.sites)
    session = SiteSession.from_bytes(played.states[plan.sites[0]])
    message, _ = session.mask(*played.inputs[plan.sites[0]], played.peer_shares[plan.sites[0]])
    played.server.add_masked(message)
    kept = weakref.ref(message.vector)
    del message

    assert kept() is None


def test_result_may_be_asked_for_twice() -> None:
    plan = plan_of(3)
    played = Round(plan, inputs_of(plan))

    assert played.run() is played.server.result()


@given(cut=st.floats(0, 1, exclude_max=True), extra=st.binary(min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_cut_or_prolonged_messages_and_states_are_refused(cut: float, extra: bytes) -> None:
    plan = plan_of(3)
    played = Round(plan, inputs_of(plan))
    played.run()
    site = plan.sites[0]
    kinds: list[tuple[Any, bytes]] = [
        (PeerKeys, played.peer_keys[site].to_bytes()),
        (PeerShares, played.peer_shares[site].to_bytes()),
        (Survivors, played.survivors.to_bytes()),
        (SiteSession, played.states[site]),
    ]
    sent = (AdvertisedKeys, EncryptedShares, UnmaskShares)
    kinds += [(kind, data) for kind in sent for data in played.seen if data[4:5] == bytes([kind.KIND])]

    for kind, data in kinds:
        for damaged in (data[: int(cut * len(data))], data + extra):
            with pytest.raises(SecureAggregationError):
                kind.from_bytes(damaged)


@given(flip=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_state_with_a_changed_bit_is_refused(flip: int, bit: int) -> None:
    session, _ = SiteSession.begin(plan_of(2), "site-000")
    data = bytearray(session.to_bytes())
    data[flip % len(data)] ^= 1 << bit

    with pytest.raises(SecureAggregationError, match="stored state is damaged"):
        SiteSession.from_bytes(bytes(data))


def test_all_of_a_sites_secrets_follow_from_what_the_operating_system_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([bytes([number]) * 32 for number in range(9)])
    monkeypatch.setattr(secrets, "token_bytes", lambda count: next(drawn))
    plan = plan_of(3)
    first = [SiteSession.begin(plan, site)[1] for site in plan.sites]

    assert len({key for message in first for key in (message.channel_key, message.mask_key)}) == 6
    again = SiteSession(plan, plan.sites[0], bytes(32))
    assert again.advertised() == first[0]
