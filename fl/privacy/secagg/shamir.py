"""Shamir's secret sharing over a prime field (Shamir 1979): any `threshold` shares give the secret, fewer give nothing.

The field is that of p = 2^256 + 297, the smallest prime above 2^256, so that any 32 bytes are one element and a share
takes 33. Python's integers do not run in constant time; secrets are shared and rebuilt where they are known anyway,
and no message tells how long it took.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(secret: int, coefficients: Sequence[int], points: Iterable[int]) -> dict[int, int]:
    """Return the share of every point: the polynomial secret + c1 x + c2 x^2 + ... at x = point.

    secret: in [0, PRIME). coefficients: threshold - 1 values, uniform in [0, PRIME) and secret; with none, every
    share is the secret itself. points: distinct, in [1, PRIME). Raises ValueError for a value out of range, or for
    a point given twice.
    """
    points = list(points)
    if not all(0 <= value < PRIME for value in (secret, *coefficients)):
        raise ValueError("the secret or a coefficient is outside the field [0, 2^256 + 297)")
    _check_points(points)
    return {point: _evaluate(secret, coefficients, point) for point in points}


def combine(shares: Mapping[int, int]) -> int:
    """Return the secret that these shares, point to value, were split from; exactly `threshold` or more are needed.

    With fewer, or where a share is false, it returns another field element: hold the result against a commitment.
    Raises ValueError where there is no share, or a point or value is out of range.
    """
    if not shares:
        raise ValueError("no shares to combine")
    if not all(0 <= value < PRIME for value in shares.values()):
        raise ValueError("a share is outside the field [0, 2^256 + 297)")
    weights = _weights_at_zero(tuple(shares))
    return sum(weight * value for weight, value in zip(weights, shares.values(), strict=True)) % PRIME


def _evaluate(secret: int, coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value + coefficient) * point % PRIME
    return (value + secret) % PRIME


@lru_cache(maxsize=1024)  # in a complete graph all secrets are rebuilt from the same sites
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's basis polynomials of these points, each at x = 0."""
    _check_points(points)
    weights = []
    for own in points:
        numerator = denominator = 1
        for other in points:
            if other != own:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - own) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)


def _check_points(points: Sequence[int]) -> None:
    if not all(0 < point < PRIME for point in points):
        raise ValueError(f"points {list(points)}: expected 0 < point < 2^256 + 297; at 0 lies the secret")
    if len(set(points)) < len(points):
        raise ValueError(f"points {list(points)}: one is given twice")
