"""The exact bytes that a piece of a vocabulary stands for, in the three ways that vocabularies write them.

bytes: one letter a byte (GPT-2's alphabet). sentencepiece: "▁" is a space, <0xE2> a byte. text: as it stands.
"""

import json
import re
from typing import Any

SPACE = "▁"  # what SentencePiece writes for a space
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_letters() -> list[str]:
    """The letter that stands for each byte, [256]: printable Latin-1 stands for itself, the others for what follows U+0100
    (Radford et al. 2019, GPT-2's encoder)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    letters, next_free = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in printable else next_free))
        next_free += byte not in printable
    return letters


BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(byte_letters())}


def piece_style(inner: Any) -> str:
    """How a `tokenizers.Tokenizer` writes bytes in its pieces: "bytes", "sentencepiece" or "text", told by its decoder."""
    if inner.decoder is None:
        return "text"
    decoder = json.loads(inner.decoder.__getstate__())  # what pickling keeps: a decoder's part of tokenizer.json
    steps = decoder.get("decoders", [decoder])
    types = {step.get("type") for step in steps}
    if "ByteLevel" in types:
        return "bytes"
    replaced = {str((step.get("pattern") or {}).get("String")) for step in steps if step.get("type") == "Replace"}
    return "sentencepiece" if types & {"ByteFallback", "Metaspace"} or SPACE in replaced else "text"


def bytes_of_piece(piece: str, style: str) -> bytes:
    """The bytes that a piece, as the vocabulary writes it, stands for."""
    if style == "bytes":
        try:
            return bytes(BYTE_OF_LETTER[letter] for letter in piece)
        except KeyError:  # not of the alphabet: a token that was added as text
            return piece.encode()
    if style == "sentencepiece":
        match = _BYTE.fullmatch(piece)
        return bytes([int(match[1], 16)]) if match else piece.replace(SPACE, " ").encode()
    return piece.encode()


def printable(text: str) -> str:
    """Text from a stranger's file for a terminal: what is no visible character (a line's end, an escape sequence's begin) as
    \\n, \\x1b."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def readable(data: bytes) -> str:
    """The bytes of a piece for a reader: text where they are UTF-8, \\xe2 for those that are not."""
    return data.decode("utf-8", "backslashreplace")
