"""The text that comes with fastmixer. Knows only where it is."""

from importlib.resources import files
from pathlib import Path

from fastmixer.text.files import read_text


def alice_path() -> Path:
    """The file of Alice's Adventures in Wonderland (152,089 bytes, public domain)."""
    return Path(str(files("fastmixer") / "assets" / "alice29.txt"))


def alice_text() -> str:
    """Alice's Adventures in Wonderland, as one string."""
    return read_text(alice_path())
