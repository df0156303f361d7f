"""Pairs of texts that belong together, from lines of JSON or from Python: each judged where it stands. Knows no tokens."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastmixer.text.files import lone_surrogate, read_text
from fastmixer.text.text_file import json_object

ANCHOR, POSITIVE, NEGATIVE = "anchor", "positive", "negative"
# What lines may call the three, the first that is there counts.
NAMES = ((ANCHOR, "query"), (POSITIVE, "text"), (NEGATIVE,))


class TextPair(NamedTuple):
    """Two texts that belong together, and texts that look alike but do not belong to the anchor; where: for errors."""

    anchor: str
    positive: str
    negatives: tuple[str, ...] = ()
    where: str = ""


def read_pairs(path: str | Path, fields: Sequence[str] | None = None) -> list[TextPair]:
    """The pairs of a file, a JSON object a line: {"anchor": ..., "positive": ..., "negative": ...}, also called "query"
    and "text"; fields: other names of the two, or the three. A negative may be absent, null, or a list.

    Raises FileNotFoundError, or ValueError that names file, line and field.
    """
    path, names = Path(path), _names(fields)
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        values = json_object(line, where, _wanted(names))
        pairs.append(_from_fields(values, names, where, ValueError))
    if not pairs:
        raise ValueError(f"{path} holds no pairs; expected a JSON object a line with {_wanted(names)}")
    return pairs


def as_pairs(pairs: Iterable[Any], name: str = "pairs") -> list[TextPair]:
    """The same from Python: (anchor, positive), (anchor, positive, negative), or dictionaries with the fields of a file.

    Raises TypeError or ValueError that names the pair by its index.
    """
    if isinstance(pairs, (str, bytes, dict)) or not isinstance(pairs, Iterable):
        raise TypeError(f"{name} must be a file or a list of (anchor, positive); got {type(pairs).__name__}")
    found = []
    for index, values in enumerate(pairs):
        where = f"{name}[{index}]"
        if isinstance(values, TextPair):
            values = values[:3]
        if isinstance(values, dict):
            found.append(_from_fields(values, NAMES, where, TypeError))
            continue
        if not isinstance(values, (tuple, list)) or not 2 <= len(values) <= 3:
            came = f"{len(values)} items" if isinstance(values, (tuple, list)) else type(values).__name__
            raise TypeError(f"{where} must be (anchor, positive) or (anchor, positive, negative); got {came}")
        parts = dict(zip((ANCHOR, POSITIVE, NEGATIVE), values, strict=False))
        found.append(_from_fields(parts, NAMES, where, TypeError))
    if not found:
        raise ValueError(f"{name} is empty; expected (anchor, positive) pairs")
    return found


def _names(fields: Sequence[str] | None) -> Sequence[tuple[str, ...]]:
    if fields is None:
        return NAMES
    if (
        isinstance(fields, str)
        or not 2 <= len(fields) <= 3
        or not all(isinstance(name, str) and name for name in fields)
    ):
        raise ValueError(f"fields must be two or three names: of anchor, positive and negative; got {fields!r}")
    if len(set(fields)) < len(fields):
        raise ValueError(f"fields must differ from each other; got {', '.join(fields)}")
    return [(name,) for name in fields]


def _wanted(names: Sequence[tuple[str, ...]]) -> str:
    return " and ".join(repr(one[0]) for one in names[:2])


def _from_fields(
    values: dict[str, Any], names: Sequence[tuple[str, ...]], where: str, kind: type[Exception]
) -> TextPair:
    anchor, positive = (_text(values, one, where, kind) for one in names[:2])
    negatives: list[str] = []
    name = next((name for name in names[2] if name in values), None) if len(names) > 2 else None
    given = None if name is None else values[name]
    if name is not None and given is not None:
        listed = given if isinstance(given, (list, tuple)) else [given]
        negatives = [_checked(text, name, where, kind) for text in listed]
    return TextPair(anchor, positive, tuple(negatives), where)


def _text(values: dict[str, Any], names: tuple[str, ...], where: str, kind: type[Exception]) -> str:
    name = next((name for name in names if name in values), None)
    if name is None:
        other = "".join(f" (or {name!r})" for name in names[1:])
        raise ValueError(f"{where}: no field {names[0]!r}{other}; got {', '.join(map(repr, values)) or 'none'}")
    return _checked(values[name], name, where, kind)


def _checked(text: Any, name: str, where: str, kind: type[Exception]) -> str:
    if not isinstance(text, str):
        raise kind(f"{where}: {name!r} must be a string; got {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{where}: {name!r} is empty")
    if lone_surrogate(text) is not None:
        raise ValueError(f"{where}: {name!r} holds half a surrogate pair; no text holds that alone")
    return text
