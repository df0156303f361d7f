"""JSON from files that anybody may have written: bounded, without duplicate names, without NaN; and its fields, each checked
(type, range) where it is read. Knows nothing of what the fields mean."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_FILE = 16 << 20  # bytes; an index of 50,000 tensors takes about 5 MB
MAX_ITEMS = 600_000  # commas: some 12 to a tensor
MAX_BRACKETS = 200_000


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object in UTF-8 text. Raises ValueError that begins with where."""
    if text.count(b",") > MAX_ITEMS or text.count(b"{") + text.count(b"[") > MAX_BRACKETS:
        raise ValueError(f"{where} has more than {MAX_ITEMS} items or {MAX_BRACKETS} brackets")
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a JSON object; got {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError, or ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with path.open("rb") as file:
        text = file.read(MAX_FILE + 1)
    if len(text) > MAX_FILE:
        raise ValueError(f"{path} must be at most {MAX_FILE} bytes; got more")
    return parse_object(text, str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{short(name)} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def short(value: Any) -> str:
    """repr, cut to what fits a message."""
    text = repr(value[:20] if isinstance(value, (list, tuple)) else value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:77] + "..."


class Fields:
    """The fields of a JSON object. Errors name the file, the field (behind prefix) and its value; null is as absent."""

    def __init__(self, values: dict[str, Any], where: str, prefix: str = ""):
        self.values, self.where, self.prefix = values, where, prefix

    def wrong(self, name: str, expected: str) -> ValueError:
        """The error of a field that is not as expected."""
        if self.values.get(name) is None:
            return ValueError(f"{self.where}: {self.prefix}{name} is missing; expected {expected}")
        return ValueError(f"{self.where}: {self.prefix}{name} must be {expected}; got {short(self.values[name])}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 24) -> int:
        value = self._value(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0, above: bool = False) -> float:
        """A finite number >= low, or > low."""
        value = self._value(name, default)
        expected = f"a finite number {'>' if above else '>='} {low:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e30 or math.isnan(value):
            raise self.wrong(name, expected)
        if value < low or (above and value == low):
            raise self.wrong(name, expected)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}")
        return value

    def object(self, name: str) -> "Fields":
        """A field that is an object itself; an empty one if it is absent."""
        value = self._value(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.where, f"{self.prefix}{name}.")

    def numbers(self, name: str, length: int) -> list[float]:
        """So many finite numbers > 0."""
        value = self.values.get(name)
        if not isinstance(value, list) or len(value) != length:
            raise self.wrong(name, f"a list of {length} finite numbers > 0")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 < item < 1e30:
                raise self.wrong(name, f"a list of {length} finite numbers > 0")
        return [float(item) for item in value]

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
