"""Reading text files: UTF-8 or a clear error. Knows nothing of tokens."""

from collections.abc import Iterator
from pathlib import Path

PIECE_CHARACTERS = 1 << 20  # of a long text, handled at once


def read_text(path: Path) -> str:
    r"""A file's text, with \n for every end of line (\r\n, \r). FileNotFoundError, or ValueError that names the file and
    the first byte that is not UTF-8 text."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    data = path.read_bytes()
    zero = data.find(b"\0")
    if zero >= 0:
        raise ValueError(f"{path} is binary, not text: byte {zero} is 0x00")
    try:
        return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from error


def lone_surrogate(text: str) -> int | None:
    """The place of the first character that no UTF-8 can write (half of a surrogate pair), None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def pieces_of(text: str) -> Iterator[str]:
    """A long text in pieces of about PIECE_CHARACTERS that end with a line; joined, they are the text."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + PIECE_CHARACTERS)
        stop = len(text) if line_end < 0 else line_end + 1
        yield text[start:stop]
        start = stop
