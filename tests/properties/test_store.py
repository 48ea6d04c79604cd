"""Whatever is stored, damaged and reopened in whatever order, a store answers as a dict of the true rows would."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl.data.store import ArrayStore

NUM_STORES = 2
keys = st.sampled_from("abcdefg")
stores = st.integers(0, NUM_STORES - 1)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("get"), stores, st.lists(keys, min_size=1, max_size=6)),
        st.tuples(st.just("put"), stores, st.lists(keys, min_size=1, max_size=4, unique=True)),
        st.tuples(st.just("reopen"), stores, st.none()),
        st.tuples(st.just("flip"), st.integers(0, 10**6), st.none()),
        st.tuples(st.just("cut"), st.integers(0, 10**6), st.none()),
    ),
    max_size=14,
)


def true_rows(names: list[str]) -> NDArray[np.uint16]:
    return np.array([[ord(name) * 257 + column for column in range(4)] for name in names], np.uint16)


def damage(root: Path, how: str, number: int) -> None:
    """Flip one bit of, or cut bytes off, one file of the store; all instances must be closed."""
    files = sorted(path for path in root.glob("*/*") if path.stat().st_size)
    if not files:
        return
    path = files[number % len(files)]
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[number % len(data)] ^= 1 << number % 8
    else:
        del data[-1 - number % len(data) :]
    path.write_bytes(data)


@given(steps=operations)
@settings(deadline=None, max_examples=120)
def test_store_answers_as_a_dict(steps: list[tuple[str, int, list[str] | None]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        opened = [ArrayStore(root, "n", (4,), np.uint16) for _ in range(NUM_STORES)]
        for what, number, names in steps:
            if what == "get":
                assert names is not None
                wanted = names
                found = opened[number].get(wanted, lambda at, wanted=wanted: true_rows([wanted[i] for i in at]))
                np.testing.assert_array_equal(found, true_rows(wanted))
                assert opened[number].missing(wanted) == []
            elif what == "put":
                assert names is not None
                opened[number].put(names, true_rows(names))
            elif what == "reopen":
                opened[number] = ArrayStore(root, "n", (4,), np.uint16)
            else:  # what was verified stays believed: rot is found by whoever opens the store next
                opened.clear()
                damage(root, what, number)
                opened = [ArrayStore(root, "n", (4,), np.uint16) for _ in range(NUM_STORES)]
