"""Shamir's sharing: any threshold of shares give the secret, fewer fit every secret, and shares add up."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.privacy.secagg.shamir import PRIME, SHARE_BYTES, combine, split

elements = st.integers(0, PRIME - 1)


@dataclass(frozen=True)
class Sharing:
    secret: int
    coefficients: list[int]
    points: list[int]

    @property
    def threshold(self) -> int:
        return len(self.coefficients) + 1

    @property
    def shares(self) -> dict[int, int]:
        return split(self.secret, self.coefficients, self.points)


@st.composite
def sharings(draw: st.DrawFn, least_threshold: int = 1) -> Sharing:
    threshold = draw(st.integers(least_threshold, 7))
    points = draw(st.lists(st.integers(1, 60), min_size=threshold, max_size=12, unique=True))
    coefficients = draw(st.lists(elements, min_size=threshold - 1, max_size=threshold - 1))
    return Sharing(draw(elements), coefficients, points)


@given(sharing=sharings(), data=st.data())
def test_any_threshold_of_shares_in_any_order_give_the_secret(sharing: Sharing, data: st.DataObject) -> None:
    chosen = data.draw(st.permutations(sharing.points))
    count = data.draw(st.integers(sharing.threshold, len(chosen)))

    assert combine({point: sharing.shares[point] for point in chosen[:count]}) == sharing.secret


@given(sharing=sharings(least_threshold=2), other=elements)
def test_fewer_shares_fit_every_secret(sharing: Sharing, other: int) -> None:
    """One missing share can be chosen so that any secret comes out: what is known excludes none."""
    *known, missing = sharing.points[: sharing.threshold]
    shares = {point: sharing.shares[point] for point in known}
    at_zero, at_one = (combine({**shares, missing: value}) for value in (0, 1))
    slope = (at_one - at_zero) % PRIME

    assert slope
    fitting = (other - at_zero) * pow(slope, -1, PRIME) % PRIME
    assert combine({**shares, missing: fitting}) == other


@given(sharing=sharings(least_threshold=2))
def test_one_share_too_few_gives_the_secret_only_where_the_last_coefficient_is_zero(sharing: Sharing) -> None:
    known = {point: sharing.shares[point] for point in sharing.points[: sharing.threshold - 1]}

    assert (combine(known) == sharing.secret) == (sharing.coefficients[-1] == 0)


@given(sharing=sharings(least_threshold=2), secret=elements)
def test_shares_of_two_secrets_add_up_to_shares_of_their_sum(sharing: Sharing, secret: int) -> None:
    second = split(secret, sharing.coefficients[::-1], sharing.points)
    added = {point: (share + second[point]) % PRIME for point, share in sharing.shares.items()}

    assert combine(added) == (sharing.secret + secret) % PRIME


@given(sharing=sharings(), wrong=elements.filter(bool))
def test_a_false_share_changes_what_comes_out(sharing: Sharing, wrong: int) -> None:
    point = sharing.points[0]
    shares = {at: sharing.shares[at] for at in sharing.points[: sharing.threshold]}

    assert combine({**shares, point: (shares[point] + wrong) % PRIME}) != sharing.secret


def test_field_is_prime_and_holds_any_32_bytes() -> None:
    assert 2**256 < PRIME < 2 ** (8 * SHARE_BYTES)
    assert all(_passes_miller_rabin(PRIME, 2 + secrets.randbelow(PRIME - 4)) for _ in range(40))


@pytest.mark.parametrize("points", [[0], [PRIME], [-1], [3, 5, 3]])
def test_points_that_would_show_or_spoil_the_secret_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="points"):
        split(7, [1, 2], points)
    with pytest.raises(ValueError, match="points"):
        combine({0: 7, 1: 3})


def test_values_outside_the_field_are_refused() -> None:
    for secret, coefficient in ((PRIME, 1), (1, PRIME), (-1, 1)):
        with pytest.raises(ValueError, match="outside the field"):
            split(secret, [coefficient], [1])
    with pytest.raises(ValueError, match="outside the field"):
        combine({1: PRIME})
    with pytest.raises(ValueError, match="no shares"):
        combine({})


def _passes_miller_rabin(number: int, base: int) -> bool:
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    power = pow(base, odd, number)
    return power in (1, number - 1) or any(pow(power, 2**square, number) == number - 1 for square in range(1, twos))
