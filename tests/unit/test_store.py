"""The array store keeps what it was given, through crashes, rot, full disks and company."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fl.data.store import ArrayStore
from fl.errors import DataError

SHAPE = (3, 5)
RECORD_BYTES = 40


def row(key: str) -> NDArray[np.float32]:
    return np.random.default_rng(list(key.encode())).normal(size=SHAPE).astype(np.float32)


class Computer:
    """Computes rows and remembers for which keys it was asked."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.computed: list[str] = []

    def __call__(self, positions: Sequence[int]) -> NDArray[np.float32]:
        self.computed += [self.keys[position] for position in positions]
        return np.stack([row(self.keys[position]) for position in positions])


def opened(root: Path, namespace: str = "n") -> ArrayStore:
    return ArrayStore(root, namespace, SHAPE, np.float32)


def get(store: ArrayStore, keys: Sequence[str]) -> list[str]:
    """Ask for keys, check every row that comes back, and return the keys that had to be computed."""
    computer = Computer(keys)
    found = store.get(keys, computer)
    np.testing.assert_array_equal(found, np.stack([row(key) for key in keys]))
    return computer.computed


def segment_file(root: Path, suffix: str) -> Path:
    (path,) = root.glob(f"*/*.{suffix}")
    return path


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_rows_come_back_in_the_order_asked_for_and_are_computed_once(tmp_path: Path) -> None:
    store = opened(tmp_path)

    assert get(store, ["a", "b", "c"]) == ["a", "b", "c"]
    assert get(store, ["c", "a", "d", "b"]) == ["d"]
    assert get(store, ["d", "c"]) == []


def test_key_that_repeats_in_one_request_is_computed_once(tmp_path: Path) -> None:
    store = opened(tmp_path)

    assert get(store, ["a", "b", "a", "a", "b"]) == ["a", "b"]
    assert store.missing(["a", "x", "y", "x"]) == [1, 2]


def test_later_instance_finds_what_an_earlier_one_stored(tmp_path: Path) -> None:
    get(opened(tmp_path), ["a", "b"])

    assert get(opened(tmp_path), ["b", "c", "a"]) == ["c"]


def test_instances_that_are_open_together_see_each_others_rows(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)

    get(first, ["a"])
    assert get(second, ["a", "b"]) == ["b"]
    assert get(first, ["b", "a"]) == []


def test_processes_share_a_store(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from pathlib import Path; from fl.data.store import ArrayStore\n"
        f"store = ArrayStore(Path(sys.argv[1]), 'n', {SHAPE}, np.float32)\n"
        f"store.put(['from another'], np.full((1, *{SHAPE}), 7, np.float32))\n"
    )
    store = opened(tmp_path)
    assert store.missing(["from another"]) == [0]

    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)

    found = store.get(["from another"], lambda _: pytest.fail("it is there already"))
    np.testing.assert_array_equal(found, np.full((1, *SHAPE), 7, np.float32))


def test_namespaces_shapes_and_dtypes_never_meet(tmp_path: Path) -> None:
    get(opened(tmp_path, "weights 1"), ["a"])

    assert opened(tmp_path, "weights 2").missing(["a"]) == [0]
    assert ArrayStore(tmp_path, "weights 1", SHAPE[::-1], np.float32).missing(["a"]) == [0]
    assert ArrayStore(tmp_path, "weights 1", SHAPE, np.uint16).missing(["a"]) == [0]
    assert opened(tmp_path, "weights 1").missing(["a"]) == []


def test_row_without_a_record_is_computed_again(tmp_path: Path) -> None:
    """A crash between the row and its record, with half of a further row."""
    get(opened(tmp_path), ["a", "b"])
    rows, index = segment_file(tmp_path, "rows"), segment_file(tmp_path, "index")
    with rows.open("ab") as file:
        file.write(row("half")[:1].tobytes())
    index.write_bytes(index.read_bytes()[:RECORD_BYTES])

    assert get(opened(tmp_path), ["a", "b", "half"]) == ["b", "half"]
    assert get(opened(tmp_path), ["a", "b", "half"]) == []


@pytest.mark.parametrize("kept_bytes", [1, RECORD_BYTES - 1, RECORD_BYTES + 1, 2 * RECORD_BYTES - 4])
def test_truncated_index_loses_only_the_records_that_are_cut(tmp_path: Path, kept_bytes: int) -> None:
    get(opened(tmp_path), ["a", "b"])
    index = segment_file(tmp_path, "index")
    index.write_bytes(index.read_bytes()[:kept_bytes])

    assert get(opened(tmp_path), ["a", "b"]) == (["a", "b"] if kept_bytes < RECORD_BYTES else ["b"])


def test_record_whose_row_never_reached_the_disk_is_not_believed(tmp_path: Path) -> None:
    get(opened(tmp_path), ["a", "b"])
    rows = segment_file(tmp_path, "rows")
    rows.write_bytes(rows.read_bytes()[:-1])

    assert get(opened(tmp_path), ["a", "b"]) == ["b"]


@pytest.mark.parametrize("offset", [0, 4 * 15 - 1])
def test_flipped_bit_in_a_row_is_noticed_and_the_row_rebuilt_for_good(tmp_path: Path, offset: int) -> None:
    get(opened(tmp_path), ["a", "b"])
    flip(segment_file(tmp_path, "rows"), offset)

    assert get(opened(tmp_path), ["a", "b"]) == ["a"]
    for _ in range(3):  # segments are named by chance: whichever is read last, the sound row must win
        assert get(opened(tmp_path), ["a", "b"]) == []


def test_sound_row_of_one_process_stands_in_for_the_damaged_one_of_another(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    for store in (first, second):
        store.put(["a"], row("a")[None])
    for path in sorted(tmp_path.glob("*/*.rows")):
        flip(path, 3)
        assert get(opened(tmp_path), ["a"]) == []
        flip(path, 3)


@pytest.mark.parametrize("offset", [0, 31, 32, 35, 36, 39])
def test_flipped_bit_in_a_record_hides_that_row_alone(tmp_path: Path, offset: int) -> None:
    get(opened(tmp_path), ["a", "b", "c"])
    flip(segment_file(tmp_path, "index"), RECORD_BYTES + offset)

    assert get(opened(tmp_path), ["a", "b", "c"]) == ["b"]


def test_rows_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = opened(tmp_path)

    with pytest.raises(ValueError, match=r"the store holds float32\[2, 3, 5\]"):
        store.put(["a", "b"], row("a")[None])
    with pytest.raises(ValueError, match="float64"):
        store.put(["a"], row("a")[None].astype(np.float64))

    assert not list(tmp_path.glob("*/*.rows"))


def test_full_disk_is_a_clear_error_and_corrupts_nothing_that_follows(tmp_path: Path) -> None:
    """The limit strikes in the middle of a row; the same store must go on soundly once there is room."""
    program = (
        "import resource, signal, sys, numpy as np; from pathlib import Path\n"
        "from fl.data.store import ArrayStore; from fl.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = ArrayStore(Path(sys.argv[1]), 'n', (1000,), np.float32)\n"
        "rows = np.arange(5000, dtype=np.float32).reshape(5, 1000)\n"
        "store.put(['0'], rows[:1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "try:\n    store.put(['1', '2'], rows[1:3])\nexcept DataError as error:\n    print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "found = store.get(list('01234'), lambda at: rows[list(at)])\n"
        "np.testing.assert_array_equal(found, rows)\n"
        "again = ArrayStore(Path(sys.argv[1]), 'n', (1000,), np.float32)\n"
        "np.testing.assert_array_equal(again.get(list('01234'), None), rows)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "cannot store 2 rows" in done.stdout and "data.cache_dir" in done.stdout


def test_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    store = opened(tmp_path)
    (folder,) = tmp_path.iterdir()
    folder.rmdir()

    with pytest.raises(DataError, match="cannot store 1 rows"):
        store.put(["a"], row("a")[None])
