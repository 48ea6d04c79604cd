"""Job files as values with the line and column of every key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class SpecError(Exception):
    """A job spec that cannot be used: one complete line for each fault. Exit code 2."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Values from one place, and where each was said: `job.yaml:5:3` or `--set fl.rounds=3`."""

    values: dict[str, Any]
    places: Mapping[KeyPath, str]


def read_yaml(path: Path) -> Source:
    """Read a job file. Raises SpecError with line and column where it is not a YAML mapping, or repeats a key."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read ({error})"]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise SpecError([f"{where}: not valid YAML: {error.problem}"]) from error
    except (yaml.YAMLError, ValueError) as error:  # control characters; a date such as 2024-13-45
        raise SpecError([f"{path}: not valid YAML: {error}"]) from error
    if not isinstance(node, yaml.MappingNode):
        raise SpecError([f"{path}:1:1: expected a mapping of settings, see `gliofed config schema`"])
    places: dict[KeyPath, str] = {}
    _collect_places(node, (), str(path), places)
    return Source(values=values, places=places)


def read_overrides(overrides: Sequence[str]) -> Source:
    """Read `a.b=value` settings; the value is YAML, so `null`, `true`, numbers and `{...}` work."""
    values: dict[str, Any] = {}
    places: dict[KeyPath, str] = {}
    for override in overrides:
        name, separator, text = override.partition("=")
        keys = tuple(name.split("."))
        if not separator or not all(keys):
            raise SpecError([f"--set {override}: expected a.b=value, for example fl.rounds=10"])
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise SpecError([f"--set {override}: the value is not valid YAML; quote it"]) from error
        target = values
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise SpecError([f"--set {override}: {key} was set to a plain value by an earlier --set"])
        target[keys[-1]] = value
        said: list[KeyPath] = [keys[: depth + 1] for depth in range(len(keys))]
        if isinstance(value, Mapping):
            said += key_paths(value, keys)
        places.update(dict.fromkeys(said, f"--set {override}"))
    return Source(values=values, places=places)


def key_paths(values: Mapping[str, Any], above: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every key of nested mappings."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from key_paths(value, (*above, key))


def _collect_places(node: yaml.MappingNode, path: KeyPath, file: str, places: dict[KeyPath, str]) -> None:
    for key_node, value_node in node.value:
        here = (*path, str(key_node.value))
        where = f"{file}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        if here in places:
            raise SpecError([f"{where}: {'.'.join(map(str, here))}: said twice, first at {places[here]}; keep one"])
        places[here] = where
        if isinstance(value_node, yaml.MappingNode):
            _collect_places(value_node, here, file, places)
