"""JSON and arrays as a bundle's files have them: one text for one value, strictly read."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import BundleError


def canonical_json(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, two spaces, UTF-8 as it is, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)


def json_bytes(name: str, value: object) -> bytes:
    """Return a file of the value. Raises BundleError, naming the file, for what JSON cannot hold."""
    try:
        return (canonical_json(value) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise BundleError(
            name, f"cannot be written as JSON ({error}); pass plain finite numbers, text, lists"
        ) from error


def parse_json(name: str, data: bytes) -> dict[str, Any]:
    """Return the file's JSON object; repeated keys and NaN, which readers take differently, are refused."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(name, f"is not the JSON we write ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(name, f"holds a {type(value).__name__}; expected a JSON object")
    return value


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return a NumPy array file of the array."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def parse_npy(name: str, data: bytes) -> NDArray[Any]:
    """Return the array of a NumPy array file; pickled objects are refused."""
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(name, f"is not a NumPy array file ({error})") from error
    return array


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")
