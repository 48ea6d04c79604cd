"""Protobuf's text form, as much of it as Triton's config.pbtxt needs; deterministic, and without protobuf."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class Word(str):
    """A name of an enumeration, which is written without quotes."""

    __slots__ = ()


def render(message: Mapping[str, Any], comment: str = "") -> str:
    """Return the message as text, fields in the mapping's order, below `comment`, each line of it marked as one.

    Values: texts, numbers, bools, `Word`s, mappings (messages), and lists of any of these (repeated fields).
    """
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    return head + "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, value in message.items():
        repeated = isinstance(value, Sequence) and not isinstance(value, str)
        for item in value if repeated else [value]:
            if isinstance(item, Mapping):
                lines += [f"{indent}{name} {{", *_lines(item, indent + "  "), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value, ensure_ascii=False)  # quotes, escapes, true, false and numbers are protobuf's as well
