"""What a secure round refuses: every message that is out of place, changed, repeated or lent, by site and phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fl.errors import GliofedError, SecureAggregationError
from fl.privacy.secagg.encoding import ArraySpec, RingEncoding
from fl.privacy.secagg.masks import MaskStream
from fl.privacy.secagg.messages import AdvertisedKeys, Masked, PeerKeys, PeerShares, Survivors, UnmaskShares
from fl.privacy.secagg.plan import SecAggPlan, SecureAggregationSettings
from fl.privacy.secagg.server import SecAggServer
from fl.privacy.secagg.site import SiteSession

A, B, C, D, E = (f"site-{letter}" for letter in "abcde")
ARRAYS = (ArraySpec(name="update", length=5, clip=1.0),)
VALUES = {"update": np.linspace(-0.5, 0.5, 5, dtype=np.float32)}

Changed = Callable[[Any], Any]


def plan_of(round: int = 1, context: bytes = b"job") -> SecAggPlan:
    return SecureAggregationSettings().plan(round=round, sites=[A, B, C, D, E], arrays=ARRAYS, context=context)


class Played:
    """A round of five sites that stops before `until`; E drops out before it masks."""

    def __init__(self, until: str, plan: SecAggPlan | None = None) -> None:
        self.plan = plan or plan_of()
        self.server = SecAggServer(self.plan)
        begun = {site: SiteSession.begin(self.plan, site) for site in self.plan.sites}
        self.sites = {site: session for site, (session, _) in begun.items()}
        self.keys = {site: keys for site, (_, keys) in begun.items()}
        for name in ("keys", "shares", "masked", "unmask"):
            if name == until:
                return
            getattr(self, f"_{name}")()

    def _keys(self) -> None:
        for keys in self.keys.values():
            self.server.add_keys(keys)
        self.peer_keys = self.server.close_keys()

    def _shares(self) -> None:
        self.shares = {site: session.share(self.peer_keys[site]) for site, session in self.sites.items()}
        for shares in self.shares.values():
            self.server.add_shares(shares)
        self.peer_shares = self.server.close_shares()

    def _masked(self) -> None:
        self.masked = {site: self.sites[site].mask(VALUES, 1, self.peer_shares[site])[0] for site in (A, B, C, D)}
        for masked in self.masked.values():
            self.server.add_masked(masked)
        self.survivors = self.server.close_masked()

    def _unmask(self) -> None:
        self.answers = {site: self.sites[site].unmask(self.survivors) for site in self.survivors.sites}
        for answer in self.answers.values():
            self.server.add_unmask(answer)


def refused(call: Callable[[], object], reason: str, *, phase: str, site: str | None) -> None:
    with pytest.raises(SecureAggregationError, match=reason) as caught:
        call()
    assert (caught.value.phase, caught.value.site) == (phase, site)
    assert isinstance(caught.value, GliofedError) and phase in str(caught.value)
    assert site is None or repr(site) in str(caught.value)


# ---- the server


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda keys: replace(keys, plan=plan_of(2).digest), "another round, job or list of sites; this is round 1"),
        (lambda keys: replace(keys, plan=plan_of(context=b"other job").digest), "another round, job or list of sites"),
        (lambda keys: replace(keys, site="stranger"), "does not take part"),
        (lambda keys: replace(keys, mask_key=keys.channel_key), "was advertised before"),
    ],
)
def test_server_refuses_keys_of_another_round_or_site(change: Changed, reason: str) -> None:
    played = Played("keys")
    bad = change(played.keys[A])
    refused(lambda: played.server.add_keys(bad), reason, phase="advertise keys", site=bad.site)
    played._keys()  # and has kept nothing of it


def test_server_refuses_a_key_that_another_site_advertised() -> None:
    played = Played("keys")
    played.server.add_keys(played.keys[A])
    for name in ("channel_key", "mask_key"):
        replayed = replace(played.keys[B], channel_key=getattr(played.keys[A], name))
        refused(
            lambda bad=replayed: played.server.add_keys(bad), "was advertised before", phase="advertise keys", site=B
        )


def test_server_refuses_every_message_a_second_time_and_out_of_its_phase() -> None:
    done = Played("end")
    fresh = Played("keys")
    for message, add in (
        (done.keys[A], "add_keys"),
        (done.shares[A], "add_shares"),
        (done.masked[A], "add_masked"),
        (done.answers[A], "add_unmask"),
    ):
        late, early = (partial(getattr(server, add), message) for server in (done.server, fresh.server))
        reason = "it has sent this message before" if add == "add_unmask" else "it came in the phase 'unmask'"
        refused(late, reason, phase=message.PHASE, site=A)
        if add != "add_keys":
            refused(early, "in the phase 'advertise", phase=message.PHASE, site=A)


def test_site_that_speaks_for_another_is_named_itself() -> None:
    keys = Played("keys").keys[A]
    assert keys.sent_by(A) is keys
    refused(lambda: keys.sent_by(B), "in the name of 'site-a'", phase="advertise keys", site=B)


@pytest.mark.parametrize("until", ["shares", "masked"])
def test_server_refuses_a_duplicate_while_the_phase_is_open(until: str) -> None:
    played = Played(until)
    if until == "shares":
        message, add = played.sites[A].share(played.peer_keys[A]), played.server.add_shares
    else:
        message, add = played.sites[A].mask(VALUES, 1, played.peer_shares[A])[0], played.server.add_masked
    add(message)
    refused(lambda: add(message), "sent this message before", phase=message.PHASE, site=A)


def test_server_refuses_shares_for_other_sites_than_the_neighbours() -> None:
    played = Played("shares")
    shares = played.sites[A].share(played.peer_keys[A])
    for sealed in ({B: b""}, {**shares.sealed, "stranger": b""}):
        bad = replace(shares, sealed=sealed)
        refused(lambda bad=bad: played.server.add_shares(bad), "it sent shares for", phase="share keys", site=A)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda masked: replace(masked, vector=masked.vector[1:]), r"uint32\[7\], expected uint32\[8\]"),
        (lambda masked: replace(masked, vector=masked.vector.astype(np.uint64)), "uint64"),
        (lambda masked: replace(masked, vector=masked.vector.view(np.int32)), "int32"),
        (lambda masked: replace(masked, peers=masked.peers[1:]), "it sent masks for"),
        (lambda masked: replace(masked, peers=(*masked.peers, masked.peers[0])), "it sent masks for"),
    ],
)
def test_server_refuses_vectors_that_do_not_fit(change: Changed, reason: str) -> None:
    played = Played("masked")
    good = played.sites[A].mask(VALUES, 1, played.peer_shares[A])[0]
    refused(lambda: played.server.add_masked(change(good)), reason, phase="masked input", site=A)
    played._masked()
    played._unmask()
    assert played.server.result().sites == (A, B, C, D)


def test_server_refuses_a_vector_of_a_site_that_shared_nothing() -> None:
    played = Played("shares")
    for site in (A, B, C, D):
        played.server.add_shares(played.sites[site].share(played.peer_keys[site]))
    played.server.close_shares()
    empty = Masked(plan=played.plan.digest, site=E, peers=(), vector=played.plan.encoding.empty())
    refused(lambda: played.server.add_masked(empty), "no part in the phase before", phase="masked input", site=E)


@pytest.mark.parametrize(
    "change",
    [
        lambda shares: replace(shares, seed_shares={A: shares.seed_shares[A]}),
        lambda shares: replace(shares, key_shares={}),
        lambda shares: replace(shares, key_shares={**shares.key_shares, B: 1}),  # both of one peer
    ],
)
def test_server_refuses_too_few_shares_and_too_many(change: Changed) -> None:
    played = Played("unmask")
    bad = change(played.sites[A].unmask(played.survivors))
    refused(lambda: played.server.add_unmask(bad), "it sent shares of", phase="unmask", site=A)


@pytest.mark.parametrize(
    ("kind", "owner", "reason"),
    [
        ("seed_shares", B, "a share of its self mask is false|a share of its secret is false"),
        ("key_shares", E, "a share of its mask key is false|a share of its secret is false"),
    ],
)
def test_a_false_share_gives_no_sum(kind: str, owner: str, reason: str) -> None:
    played = Played("unmask")
    for site in (A, B, C, D):
        answer = played.sites[site].unmask(played.survivors)
        if site == A:
            false = {**getattr(answer, kind), owner: getattr(answer, kind)[owner] + 1}
            answer = replace(answer, **{kind: false})
        played.server.add_unmask(answer)
    refused(played.server.result, reason, phase="unmask", site=owner)


def test_a_vector_masked_with_other_keys_gives_no_sum() -> None:
    played = Played("masked")
    other = Played("masked", played.plan)  # same plan, other keys: a vector of a run that was broken off
    stale = other.sites[A].mask(VALUES, 1, other.peer_shares[A])[0]
    played.server.add_masked(stale)
    for site in (B, C, D):
        played.server.add_masked(played.sites[site].mask(VALUES, 1, played.peer_shares[site])[0])
    played.sites[A].mask(VALUES, 1, played.peer_shares[A])
    played.survivors = played.server.close_masked()
    played._unmask()

    refused(played.server.result, "the masks do not cancel", phase="unmask", site=None)


def test_phases_close_once_and_in_order() -> None:
    played = Played("shares")
    refused(played.server.close_keys, "it was closed", phase="advertise keys", site=None)
    refused(played.server.close_masked, "the phase is 'share keys'", phase="masked input", site=None)
    refused(played.server.result, "not closed", phase="unmask", site=None)


# ---- the sites


def test_site_refuses_messages_for_another_site_or_round() -> None:
    played, other = Played("masked"), Played("masked", plan_of(2))
    site = played.sites[A]
    refused(lambda: site.share(played.peer_keys[B]), "addressed to 'site-b'", phase="share keys", site=B)
    refused(lambda: site.share(other.peer_keys[A]), "another round", phase="share keys", site=A)
    refused(lambda: site.mask(VALUES, 1, played.peer_shares[B]), "addressed to", phase="masked input", site=B)
    refused(lambda: site.mask(VALUES, 1, other.peer_shares[A]), "another round", phase="masked input", site=A)
    addressed = Survivors(plan=played.plan.digest, site=B, sites=(A, B, C, D))
    refused(lambda: site.unmask(addressed), "addressed to", phase="unmask", site=B)


def _with(keys: PeerKeys, **change: Any) -> PeerKeys:
    return replace(keys, keys=(replace(keys.keys[0], **change), *keys.keys[1:]))


@pytest.mark.parametrize(
    ("change", "reason", "site"),
    [
        (lambda keys, own: replace(keys, keys=(*keys.keys, keys.keys[0])), "advertised before, or .* twice", B),
        (lambda keys, own: _with(keys, mask_key=own.mask_key), "was advertised before", B),
        (lambda keys, own: _with(keys, channel_key=keys.keys[1].mask_key), "was advertised before", C),
        (lambda keys, own: _with(keys, channel_key=bytes(32)), "its channel key cannot be used", B),
        (lambda keys, own: _with(keys, channel_key=b"short"), "its channel key cannot be used", B),
        (lambda keys, own: _with(keys, plan=bytes(32)), "another round", B),
        (lambda keys, own: replace(keys, keys=(*keys.keys, own)), "is no neighbour of 'site-a'", A),
        (lambda keys, own: replace(keys, keys=keys.keys[:1]), "2 holders of its secrets are left", A),
    ],
)
def test_site_shares_with_nobody_where_a_key_is_wrong(change: Changed, reason: str, site: str) -> None:
    played = Played("shares")
    bad = change(played.peer_keys[A], played.keys[A])  # type: ignore[call-arg]
    refused(lambda: played.sites[A].share(bad), reason, phase=_phase_of(reason), site=site)
    assert played.sites[A].share(played.peer_keys[A]).sealed.keys() == {B, C, D, E}


def _phase_of(reason: str) -> str:
    return "share keys" if "holders" in reason else "advertise keys"  # a bad key is a fault of its advertisement


def test_site_refuses_shares_that_were_changed_swapped_or_replayed() -> None:
    played, earlier = Played("masked"), Played("masked", plan_of(2))
    good = played.peer_shares[A]
    flipped = bytes([good.sealed[B][0] ^ 1]) + good.sealed[B][1:]
    for sealed, culprit in (
        ({**good.sealed, B: flipped}, B),
        ({**good.sealed, B: good.sealed[B][:-1]}, B),
        ({**good.sealed, B: good.sealed[C], C: good.sealed[B]}, B),
        ({**good.sealed, C: played.shares[A].sealed[C]}, C),  # its own, sent back
        ({**good.sealed, C: played.shares[C].sealed[B]}, C),  # meant for another
        ({**good.sealed, D: earlier.peer_shares[A].sealed[D]}, D),
    ):
        bad = replace(good, sealed=sealed)
        refused(lambda bad=bad: played.sites[A].mask(VALUES, 1, bad), "not sealed", phase="masked input", site=culprit)
    few = replace(good, sealed={B: good.sealed[B]})
    refused(lambda: played.sites[A].mask(VALUES, 1, few), "2 holders", phase="masked input", site=A)
    stranger = replace(good, sealed={**good.sealed, "stranger": b""})
    refused(lambda: played.sites[A].mask(VALUES, 1, stranger), "was not given", phase="masked input", site=A)


def test_site_masks_only_what_can_be_quantised() -> None:
    played = Played("masked")
    nan = {"update": np.full(5, np.nan, np.float32)}
    for values, weight, reason in ((nan, 1, "NaN"), ({}, 1, "payload"), (VALUES, 2, "weight is 2")):
        refused(
            lambda values=values, weight=weight: played.sites[A].mask(values, weight, played.peer_shares[A]),
            reason,
            phase="masked input",
            site=A,
        )


def test_site_reports_what_it_clipped() -> None:
    played = Played("masked")
    _, clipped = played.sites[A].mask({"update": np.array([2, -3, 1, 0, 0.5])}, 1, played.peer_shares[A])
    assert clipped == {"update": 2}


def test_site_keeps_to_the_order_of_the_steps() -> None:
    played = Played("end")
    fresh, _ = SiteSession.begin(played.plan, A)
    refused(lambda: fresh.mask(VALUES, 1, played.peer_shares[A]), "not shared its keys", phase="masked input", site=A)
    refused(lambda: fresh.unmask(played.survivors), "has masked nothing", phase="unmask", site=A)
    refused(
        lambda: SiteSession.begin(played.plan, "stranger"),
        "does not take part",
        phase="advertise keys",
        site="stranger",
    )


def test_steps_may_be_repeated_to_the_byte_but_not_with_other_input() -> None:
    played = Played("end")
    site = SiteSession.from_bytes(played.sites[A].to_bytes())
    assert site.to_bytes() == played.sites[A].to_bytes()
    assert site.advertised() == played.keys[A]
    assert site.share(played.peer_keys[A]) == played.shares[A]
    out = played.plan.encoding.empty()
    again, _ = site.mask(VALUES, 1, played.peer_shares[A], out=out)
    assert again.vector is out and again.vector.tobytes() == played.masked[A].vector.tobytes()
    assert site.unmask(played.survivors) == played.answers[A]

    other_keys = replace(played.peer_keys[A], keys=played.peer_keys[A].keys[:3])
    refused(lambda: site.share(other_keys), "masked with in this round before", phase="share keys", site=A)
    other = {"update": VALUES["update"] + np.float32(0.25)}
    few = replace(played.peer_shares[A], sealed={peer: played.peer_shares[A].sealed[peer] for peer in (B, C, D)})
    for values, weight, shares in (
        (other, 1, played.peer_shares[A]),
        (VALUES, 0.5, played.peer_shares[A]),
        (VALUES, 1, few),
    ):
        refused(
            lambda values=values, weight=weight, shares=shares: site.mask(values, weight, shares, out=out),
            "masked other values",
            phase="masked input",
            site=A,
        )
        assert not out.any()  # nothing that could be sent by mistake
    changed = replace(played.survivors, sites=(A, B, C, D, E))
    refused(lambda: site.unmask(changed), "another list of survivors", phase="unmask", site=A)


def test_server_that_starts_anew_before_anything_was_masked_may_find_other_sites() -> None:
    played = Played("masked")
    again = SecAggServer(played.plan)
    for site in (A, B, C, D):
        again.add_keys(SiteSession.from_bytes(played.sites[site].to_bytes()).advertised())
    played.server, played.peer_keys = again, again.close_keys()
    for site, keys in played.peer_keys.items():
        again.add_shares(played.sites[site].share(keys))
    played.peer_shares = again.close_shares()
    played._masked()
    played._unmask()

    assert again.result().sites == (A, B, C, D)


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        ((B, C, D, E), "listed as a drop-out"),
        ((A, B, C), "3 survivors, expected >= 4"),
        ((A, B, C, D, "stranger"), "do not take part"),
        ((A, A, B, C, D), "names a site twice"),
    ],
)
def test_site_unmasks_nothing_for_a_list_that_cannot_be(sites: tuple[str, ...], reason: str) -> None:
    played = Played("unmask")
    bad = Survivors(plan=played.plan.digest, site="", sites=sites)
    refused(lambda: played.sites[A].unmask(bad), reason, phase="unmask", site=A)
    assert played.sites[A].unmask(played.survivors).seed_shares.keys() == {A, B, C, D}


def test_site_unmasks_nothing_where_a_silent_neighbour_is_said_to_survive() -> None:
    played = Played("masked")
    for site in (A, B, C, D):
        without_e = {peer: sealed for peer, sealed in played.peer_shares[site].sealed.items() if peer != E}
        played.sites[site].mask(VALUES, 1, replace(played.peer_shares[site], sealed=without_e))
    everyone = Survivors(plan=played.plan.digest, site="", sites=played.plan.sites)
    refused(lambda: played.sites[A].unmask(everyone), "never shared its keys", phase="unmask", site=A)


def test_site_unmasks_nothing_where_too_few_of_its_neighbours_survive() -> None:
    ring = replace(plan_of(), neighbours=2, threshold=2, min_survivors=2)
    played = Played("masked", ring)
    stranded = next(site for site in ring.sites if E not in (site, *ring.neighbours_of(site)))
    played.sites[stranded].mask(VALUES, 1, played.peer_shares[stranded])
    alone = Survivors(plan=ring.digest, site="", sites=tuple(set(ring.sites) - set(ring.neighbours_of(stranded))))
    refused(lambda: played.sites[stranded].unmask(alone), "too few of its neighbours", phase="unmask", site=stranded)


def test_site_gives_seed_shares_of_survivors_and_key_shares_of_drop_outs() -> None:
    answer = Played("end").answers[A]
    assert answer.seed_shares.keys() == {A, B, C, D} and answer.key_shares.keys() == {E}


# ---- plan, formats


def test_plan_goes_through_its_bytes_and_every_field_changes_its_digest() -> None:
    plan = plan_of()
    assert SecAggPlan.from_bytes(plan.to_bytes()) == plan
    more_room = RingEncoding(bits=32, num_sites=6, arrays=ARRAYS)
    changes: list[dict[str, Any]] = [
        {"round": 2}, {"context": b"x"}, {"threshold": 5}, {"min_survivors": 5}, {"encoding": more_room},
        {"sites": (A, B, C, D, "site-f")}, {"neighbours": 2, "threshold": 2},
    ]  # fmt: skip
    assert len({plan.digest, *(replace(plan, **change).digest for change in changes)}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sites": (A,)}, "fewer than two"),
        ({"sites": (B, A, C, D, E)}, "not sorted"),
        ({"sites": (A, A, B, C, D)}, "not distinct"),
        ({"neighbours": 3}, "3 neighbours among 5 sites"),
        ({"neighbours": 5}, "5 neighbours among 5 sites"),
        ({"threshold": 2}, "threshold 2 of 5 holders"),
        ({"threshold": 6}, "threshold 6 of 5 holders"),
        ({"min_survivors": 1}, "min_survivors 1"),
        ({"encoding": RingEncoding(bits=32, num_sites=4, arrays=ARRAYS)}, "room for 4 sites, not for 5"),
    ],
)
def test_plans_that_would_protect_nothing_are_refused(change: dict[str, Any], reason: str) -> None:
    refused(lambda: replace(plan_of(), **change), reason, phase="plan", site=None)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"round":1}', plan_of().to_bytes().replace(b'"bits":32', b'"bits":16')]
)
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    refused(lambda: SecAggPlan.from_bytes(data), "not a plan of this version", phase="plan", site=None)


@pytest.mark.parametrize(
    ("num_sites", "neighbours", "threshold", "fewest"), [(2, 1, 2, 2), (3, 2, 2, 2), (16, 8, 5, 12)]
)
def test_settings_choose_graph_threshold_and_quorum(
    num_sites: int, neighbours: int, threshold: int, fewest: int
) -> None:
    sites = [f"site-{number}" for number in range(num_sites)]
    plan = SecureAggregationSettings().plan(round=1, sites=sites, arrays=ARRAYS, context=b"", ring_bits=64)
    assert (plan.neighbours, plan.threshold, plan.min_survivors) == (neighbours, threshold, fewest)
    assert plan.encoding.bits == 64


def test_message_of_one_kind_is_not_read_as_another() -> None:
    played = Played("end")
    for kind in (PeerKeys, PeerShares, Survivors, UnmaskShares):
        with pytest.raises(SecureAggregationError, match="it begins with b'GSA1', kind 0"):
            kind.from_bytes(played.keys[A].to_bytes())


def test_names_may_hold_any_letters() -> None:
    plan = SecureAggregationSettings().plan(
        round=1, sites=["Charité", "Hôpital, Nord\n", "東京"], arrays=ARRAYS, context=b""
    )
    played = Played("keys", plan)
    assert {AdvertisedKeys.from_bytes(keys.to_bytes()).site for keys in played.keys.values()} == set(plan.sites)
    assert SecAggPlan.from_bytes(plan.to_bytes()).digest == plan.digest


@pytest.mark.parametrize("bits", [32, 64])
def test_mask_is_aes_128_in_counter_mode(bits: Any) -> None:
    """The format of the masks, from the primitive itself: counter blocks 2, 3, ... after twelve zero bytes."""
    encoding = RingEncoding(bits=bits, num_sites=2, arrays=(ArraySpec(name="update", length=997, clip=1.0),))
    vector = np.zeros(encoding.length, encoding.dtype)
    masks = MaskStream(encoding, [(b"sixteen bytes...", True), (b"another sixteen.", False)])
    masks.apply(vector[:300])
    masks.apply(vector[300:])
    first, second = (
        np.frombuffer(
            Cipher(algorithms.AES(seed), modes.CTR(bytes(15) + b"\2")).encryptor().update(bytes(vector.nbytes)),
            encoding.dtype.newbyteorder("<"),
        )
        for seed in (b"sixteen bytes...", b"another sixteen.")
    )

    np.testing.assert_array_equal(vector, first - second)
