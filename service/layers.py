"""Settings from several sources: laid over each other, validated into one model, explained; every fault with its place.

Knows no particular settings: job files and the endpoint's settings both come this way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.yaml_source import KeyPath, Source, SpecError, key_paths

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """One setting of a resolved spec: its value, who set it, what it means."""

    key: str
    value: Any
    origin: str
    description: str


def overlay(sources: Sequence[Source]) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the values of sources, later ones over earlier ones, and where each value that remains was said."""
    values: dict[str, Any] = {}
    places: dict[KeyPath, str] = {}
    for source in sources:
        values = _overlay(values, source.values)
        places.update(source.places)
    # where one alternative replaced another, the settings of the one that is gone have no say
    kept = set(key_paths(values))
    return values, {path: place for path, place in places.items() if path in kept}


def validate(model: type[Settings], values: dict[str, Any], places: Mapping[KeyPath, str], path: Path) -> Settings:
    """Return the settings. Raises SpecError with a `file:line:column: key: fault` line for each fault.

    path: named where a fault has no place of its own.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SpecError([_fault(model, item, values, places, path) for item in error.errors()]) from error


def explain_model(model: BaseModel, places: Mapping[KeyPath, str], above: KeyPath = ()) -> Iterator[Explained]:
    """Yield every setting, in order, with where its value comes from."""
    for name, info in type(model).model_fields.items():
        value, path = getattr(model, name), (*above, name)
        if isinstance(value, BaseModel):
            yield from explain_model(value, places, path)
        else:
            yield Explained(
                key=".".join(map(str, path)),
                value=value,
                origin=places.get(path, "default"),
                description=info.description or "",
            )


def _overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return lower under upper, mapping by mapping; a mapping of another `kind` or `source` replaces, not mixes."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not _are_alternatives(below, value):
            merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged


def _are_alternatives(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> bool:
    return any(tag in lower and tag in upper and lower[tag] != upper[tag] for tag in ("kind", "source"))


def _fault(
    model: type[BaseModel], item: Any, values: Mapping[str, Any], places: Mapping[KeyPath, str], path: Path
) -> str:
    # pydantic names the member of a union (`iid`) inside the location; it is no key of the file
    location = _existing_keys(item["loc"], values)
    where = next((places[location[:end]] for end in range(len(location), 0, -1) if location[:end] in places), str(path))
    key = ".".join(map(str, location)) or "settings"
    if item["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown setting{_suggestion(model, location)}"
    if item["type"] == "missing":
        return f"{where}: {key}: required, but not set"
    message = item["msg"].removeprefix("Value error, ")
    given = item["input"]
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{where}: {key}: {message}{shown}"


def _existing_keys(location: Sequence[Any], values: Any) -> KeyPath:
    keys: list[str | int] = []
    for depth, key in enumerate(location):
        last = depth == len(location) - 1
        is_tag = isinstance(values, Mapping) and key in (values.get("kind"), values.get("source"))
        if isinstance(values, Mapping) and (key in values or (last and not is_tag)):
            keys.append(key)
            values = values.get(key)
    return tuple(keys)


def _suggestion(model: type[BaseModel], location: KeyPath) -> str:
    known = [str(".".join(map(str, path))) for path in _all_settings(model)]
    prefix = ".".join(map(str, location[:-1]))
    siblings = [key for key in known if key.rpartition(".")[0] == prefix]
    names = {key.rpartition(".")[2]: key for key in siblings}
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {names[close[0]]}?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == str(location[-1])]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    return f"; known here: {', '.join(names)}" if names else ""


def _all_settings(model: type[BaseModel], above: KeyPath = ()) -> Iterator[KeyPath]:
    for name, info in model.model_fields.items():
        yield (*above, name)
        for inner in _models_in(info.annotation):
            yield from _all_settings(inner, (*above, name))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
