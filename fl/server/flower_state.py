"""What a Flower strategy object remembers, as arrays by name: written down after a round, put back before the next.

Flower's strategies keep momentum and the like in attributes. Those that differ from a fresh object's are captured,
whatever they are called: arrays, numbers, and lists, dicts, ArrayRecords and wrapped strategies of these. Names spell
how to build them again: `m_t/dict/0/array`, `strategy/attr/momentum_vector/list/3/array`, `clipping_norm/float`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fl.errors import GliofedError
from fl.runtime.flower_internals import view
from fl.runtime.messages import arrays_record
from fl.server.strategy import StrategyState

_SCALARS: Mapping[str, type[bool] | type[int] | type[float]] = {"bool": bool, "int": int, "float": float}
_KINDS: Mapping[type[Any], str] = {list: "list", dict: "dict", ArrayRecord: "record"}


def capture(strategy: Strategy, fresh: Strategy) -> dict[str, NDArray[Any]]:
    """Return what the strategy has come to remember since it was as `fresh`.

    Arrays are not copied. Raises GliofedError where something cannot be written down as arrays and numbers.
    """
    return dict(_changes(strategy, fresh, ""))


def restore(strategy: Strategy, state: StrategyState) -> None:
    """Give a fresh strategy what `capture` returned; its arrays are read-only there."""
    tree: dict[str, Any] = {}
    for name, array in state.items():
        node, *inner = tree, *name.split("/")
        for token in inner[:-1]:
            node = node.setdefault(token, {})
        node[inner[-1]] = array
    _assign(strategy, tree)


def owner(name: str) -> str:
    """Return the attribute that a captured name is a part of, with the strategies that wrap it."""
    tokens = name.split("/")
    depth = 1
    while tokens[depth] == "attr":
        depth += 2
    return "/".join(tokens[:depth])


def is_same(left: Any, right: Any) -> bool:
    """Return whether two values of attributes are the same: by value where they hold numbers, else by identity."""
    if left is right:
        return True
    if type(left) is not type(right) and not (_is_array(left) and _is_array(right)):
        return False
    if isinstance(left, ArrayRecord | dict):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(is_same, left, right))
    if _is_array(left):
        one, other = _as_array(left), _as_array(right)
        return one is other or (one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True))
    return bool(left == right) if isinstance(left, bool | int | float | str | np.generic) else False


def _changes(strategy: Strategy, fresh: Strategy, above: str) -> Iterator[tuple[str, NDArray[Any]]]:
    known = vars(fresh)
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            yield from _changes(value, known[name], f"{above}{name}/attr/")
        elif name not in known or not is_same(value, known[name]):
            yield from _leaves(value, f"{above}{name}", strategy)


def _leaves(value: Any, path: str, strategy: Strategy) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, np.generic):
        value = value.item()
    if _is_array(value):
        yield f"{path}/array", _as_array(value)
    elif type(value).__name__ in _SCALARS:
        yield f"{path}/{type(value).__name__}", np.asarray(value)
    elif type(value) in _KINDS and not any("/" in str(key) for key in value if isinstance(value, Mapping)):
        kind = _KINDS[type(value)]
        if not value:
            yield f"{path}/empty/{kind}", np.empty(0)
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(item, f"{path}/{kind}/{key}", strategy)
    else:
        raise GliofedError(
            f"Flower's {type(strategy).__name__} remembers {path.replace('/', '.')} from round to round, of type "
            f"{type(value).__name__}, which a checkpoint cannot hold; use another strategy"
        )


def _assign(strategy: Strategy, tree: Mapping[str, Any]) -> None:
    for name, node in tree.items():
        if "attr" in node:
            _assign(getattr(strategy, name), node["attr"])
        else:
            setattr(strategy, name, _build(node))


def _build(node: Mapping[str, Any]) -> Any:
    ((kind, inner),) = node.items()
    if kind == "array":
        array: NDArray[Any] = np.asarray(inner).view()
        array.flags.writeable = False  # it belongs to the state that the round began with
        return array
    if kind in _SCALARS:
        return _SCALARS[kind](inner)
    if kind == "empty":
        return next(made() for made, name in _KINDS.items() if name in inner)
    built = {key: _build(value) for key, value in inner.items()}
    if kind == "list":
        return [built[str(number)] for number in range(len(built))]
    return built if kind == "dict" else arrays_record(built)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Array)


def _as_array(value: Any) -> NDArray[Any]:
    return value if isinstance(value, np.ndarray) else view(value)
