"""Files of many texts, one a line or a field of JSON lines, read as a stream: never all of it is in memory.

Knows nothing of what texts become.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

STDIN = "-"
JSON_SUFFIXES = (".jsonl", ".ndjson")
FIELD = "text"
CHUNK = 1 << 20  # bytes


def is_json_lines(path: str | Path) -> bool:
    """Whether a file's name says that each of its lines is JSON."""
    return Path(path).suffix.lower() in JSON_SUFFIXES


class Line(NamedTuple):
    """number: of the line, from 1; text: without its end."""

    number: int
    text: str


class TextFile:
    """The texts of a file, in order: a line each, empty ones too; or, of a .jsonl file or with a field, that field of the
    object on each line ("text" unless told), empty lines left out. "-" reads stdin, once.

    Raises FileNotFoundError, or ValueError that names file, line and what is wrong with it, when that line is read.
    """

    def __init__(self, path: str | Path, field: str | None = None):
        self.path = Path(path)
        self.is_stdin = str(path) == STDIN
        self.name = "stdin" if self.is_stdin else str(path)
        is_json = field is not None or is_json_lines(path)
        self.field = (field or FIELD) if is_json else None
        if not self.is_stdin and not self.path.is_file():
            raise FileNotFoundError(f"{self.name} is not a file")

    def __iter__(self) -> Iterator[str]:
        return (line.text for line in self.lines())

    def __length_hint__(self) -> int:
        """How many texts there are, for a progress bar; 0 where that is not known before they are read."""
        if self.is_stdin:
            return 0
        count, last = 0, b"\n"
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                count, last = count + chunk.count(b"\n"), chunk[-1:]
        return count + (last != b"\n")

    def lines(self) -> Iterator[Line]:
        if self.is_stdin:
            yield from self._lines(sys.stdin.buffer)
            return
        with self.path.open("rb") as file:
            yield from self._lines(file)

    def _lines(self, file: BinaryIO) -> Iterator[Line]:
        for number, data in enumerate(file, 1):
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            if self.field is None:
                yield Line(number, self._decoded(number, data))
            elif data.strip():
                yield Line(number, self._from_json(number, self._decoded(number, data)))

    def _decoded(self, number: int, data: bytes) -> str:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.name}, line {number}: not UTF-8: byte {error.start} is 0x{data[error.start]:02x}"
            ) from error
        if "\0" in text:
            raise ValueError(f"{self.name}, line {number}: binary, not text: it holds a byte 0x00")
        return text

    def _from_json(self, number: int, data: str) -> str:
        assert self.field is not None
        where = f"{self.name}, line {number}"
        values = json_object(data, where, repr(self.field))
        if self.field not in values:
            raise ValueError(f"{where}: has no field {self.field!r}; it has {', '.join(map(repr, values)) or 'none'}")
        text = values[self.field]
        if not isinstance(text, str):
            raise ValueError(f"{where}: {self.field!r} must be a string; got {type(text).__name__}")
        return text


def json_object(line: str, where: str, wanted: str) -> dict[str, Any]:
    """The object in a line of JSON. where: file and line, wanted: what it should hold, for the ValueError."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be an object with {wanted}; got {type(values).__name__}")
    return values
