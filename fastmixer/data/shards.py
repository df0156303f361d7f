"""Shards: one long row of token ids in a file that is memory-mapped, behind a header that is checked on opening.

Header, 64 bytes little-endian: magic "FMTOKENS"; uint32 version; uint32 bytes an id (2 or 4); uint64 count; uint64 vocab;
16 bytes tokenizer digest; uint32 CRC-32 of the ids; uint32 CRC-32 of the header so far; 8 zero bytes. Then the ids.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmixer.text.files import lone_surrogate, pieces_of, read_text
from fastmixer.text.text_file import TextFile, is_json_lines
from fastmixer.text.tokenizer import Tokenizer
from fastmixer.weights.files import replace_folder

MAGIC, VERSION = b"FMTOKENS", 1
HEADER = struct.Struct("<8sIIQQ16sI")
HEADER_BYTES = 64
TRAIN, VALIDATION = "train.tokens", "validation.tokens"


@dataclass(frozen=True)
class TokenShard:
    """tokens: uint16 or uint32 [count], memory-mapped and read-only; vocab: all ids are below it; digest: of the tokenizer
    that made them (tokenizer_digest); crc: their CRC-32."""

    path: Path
    tokens: np.ndarray
    vocab: int
    digest: bytes
    crc: int

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def open(cls, path: str | Path) -> "TokenShard":
        """The shard in a file, its header, length and checksum checked. FileNotFoundError or ValueError names file,
        field and value."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file")
        size = path.stat().st_size
        if size < HEADER_BYTES:
            raise ValueError(f"{path}: a shard's header has {HEADER_BYTES} bytes; the file has {size}")
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        magic, version, width, count, vocab, digest, data_crc = HEADER.unpack_from(header)
        (header_crc,) = struct.unpack_from("<I", header, HEADER.size)
        if magic != MAGIC:
            raise ValueError(f"{path}: magic must be {MAGIC!r}; got {magic!r}")
        if header_crc != zlib.crc32(header[: HEADER.size]):
            raise ValueError(f"{path}: the header is damaged: its checksum {header_crc:#010x} does not fit it")
        if version != VERSION:
            raise ValueError(f"{path}: version must be {VERSION}; got {version}")
        if width not in (2, 4):
            raise ValueError(f"{path}: bytes an id must be 2 or 4; got {width}")
        if size != HEADER_BYTES + width * count:
            raise ValueError(
                f"{path}: count says {count} ids, {HEADER_BYTES + width * count} bytes; the file has {size}"
            )
        if count == 0:
            return cls(path, np.empty(0, f"<u{width}"), vocab, digest, data_crc)
        tokens = np.memmap(path, dtype=f"<u{width}", mode="r", offset=HEADER_BYTES, shape=(count,))
        if zlib.crc32(tokens.data) != data_crc:
            raise ValueError(f"{path}: the ids are damaged: their checksum is not {data_crc:#010x}")
        return cls(path, tokens, vocab, digest, data_crc)


@dataclass(frozen=True)
class Dataset:
    """A folder of shards: train and validation."""

    folder: Path
    train: TokenShard
    validation: TokenShard


def tokenizer_digest(tokenizer: Tokenizer) -> bytes:
    """16 bytes that tell tokenizers apart."""
    return hashlib.blake2b(tokenizer.to_json().encode(), digest_size=16).digest()


def write_dataset(
    paths: str | Path | Sequence[str | Path],
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    validation_fraction: float = 0.1,
    field: str = "text",
    seed: int = 0,
) -> Dataset:
    """Tokenize text files (.jsonl, .ndjson: a document a line, its text under `field`; others: one document) into a dataset.

    The end of each text file is validation, about validation_fraction of it; of JSON lines that part is drawn by seed.
    Each document ends with the end-of-text token. Raises FileNotFoundError, or ValueError naming file and place: no UTF-8,
    binary, a broken line, a missing field, no text at all.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"write_dataset: validation_fraction must be >= 0 and < 1; got {validation_fraction}")
    files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not files:
        raise ValueError("write_dataset: there are no files to read")
    splits: dict[str, list[np.ndarray]] = {TRAIN: [], VALIDATION: []}
    rng = np.random.default_rng(seed)
    for path in files:
        for text in read_documents(path, field):
            ids = _encode(tokenizer, text)
            if is_json_lines(path):
                splits[VALIDATION if rng.random() < validation_fraction else TRAIN].append(ids)
            else:
                cut = len(ids) - int(len(ids) * validation_fraction)
                splits[TRAIN].append(ids[:cut])
                splits[VALIDATION].append(ids[cut:])
    if not any((ids != tokenizer.end_id).any() for parts in splits.values() for ids in parts):
        raise ValueError(f"write_dataset: the text is empty: {', '.join(map(str, files))}")

    digest, dtype = tokenizer_digest(tokenizer), np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32

    def write(temporary: Path) -> None:
        for name, parts in splits.items():
            ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
            write_shard(temporary / name, ids.astype(dtype), tokenizer.vocab_size, digest)

    return open_dataset(replace_folder(folder, write))


def open_dataset(folder: str | Path) -> Dataset:
    """The dataset that write_dataset wrote. FileNotFoundError or ValueError names the file and what is wrong."""
    folder = Path(folder)
    return Dataset(folder, TokenShard.open(folder / TRAIN), TokenShard.open(folder / VALIDATION))


def write_shard(path: Path, tokens: np.ndarray, vocab: int, digest: bytes) -> None:
    """One shard file from tokens: uint16 or uint32 [count]."""
    tokens = np.ascontiguousarray(tokens)
    header = HEADER.pack(MAGIC, VERSION, tokens.itemsize, len(tokens), vocab, digest, zlib.crc32(tokens.data))
    header += struct.pack("<I", zlib.crc32(header))
    with path.open("wb") as file:
        file.write(header.ljust(HEADER_BYTES, b"\0"))
        tokens.tofile(file)


def read_documents(path: Path, field: str) -> Iterator[str]:
    """Of JSON lines the text under `field` of each; of any other file its whole text. FileNotFoundError, or ValueError that
    names the file and the place in it."""
    if not is_json_lines(path):
        yield read_text(path)
        return
    for number, text in TextFile(path, field).lines():
        if lone_surrogate(text) is not None:
            raise ValueError(f"{path}, line {number}: {field!r} holds half a surrogate pair; no text holds that alone")
        yield text


def _encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """A document's ids and the end-of-text token: int64 [tokens]. Long texts go in pieces that end with a line."""
    parts = tokenizer.encode_batch(list(pieces_of(text))) if text else []
    return np.concatenate([*parts, np.array([tokenizer.end_id])])
