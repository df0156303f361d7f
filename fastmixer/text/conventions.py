"""What a model's maker agreed on besides pieces: where texts begin and end, and how a chat is written.

Read from the files that lie beside a tokenizer.json. Knows nothing of models.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmixer.text.files import read_text

END = "<|endoftext|>"  # what ends a text when nothing else says so
TOKENIZER_CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
GENERATION_CONFIG, MODEL_CONFIG = "generation_config.json", "config.json"
TEMPLATE_JINJA, TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"


@dataclass(frozen=True)
class Conventions:
    """end_ids: what ends a text or a turn, the usual one first; begin_id: what a text begins with, None if nothing does;
    adds_begin: whether prompts get it; chat_template: jinja2, None if there is none."""

    end_ids: tuple[int, ...]
    begin_id: int | None = None
    adds_begin: bool = False
    chat_template: str | None = None


def read_conventions(path: Path, inner: Any, vocab_size: int) -> Conventions:
    """The conventions for the tokenizer.json at path, from the files beside it; any of them may be absent.

    inner: tokenizers.Tokenizer. ValueError names file and field.
    """
    files = {
        name: read_object(path.parent / name)
        for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, GENERATION_CONFIG, MODEL_CONFIG, TEMPLATE_JSON)
    }
    ends = _ends(path, files, inner, vocab_size)
    begin = _special_id(path.parent, files, "bos_token", inner)
    # What the tokenizer.json's own post-processor puts before a text.
    first = inner.encode("", add_special_tokens=True).ids[:1]
    if first and begin is None and first[0] not in ends:
        begin = first[0]
    adds = files[TOKENIZER_CONFIG].get("add_bos_token")
    if adds is None:
        adds = bool(first) and first[0] == begin
    place = f"{path.parent / TOKENIZER_CONFIG}: add_bos_token"
    if not isinstance(adds, bool):
        raise ValueError(f"{place} must be true or false; got {adds!r}")
    if adds and begin is None:
        raise ValueError(f"{place} is true, but no bos_token is named")
    return Conventions(ends, begin, adds, _chat_template(path.parent, files))


def write_conventions(folder: Path, conventions: Conventions, inner: Any) -> None:
    """Write what a tokenizer.json does not hold into folder; nothing where it follows from the vocabulary."""
    if conventions == Conventions((inner.token_to_id(END),)):
        return
    begin = conventions.begin_id
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": inner.id_to_token(conventions.end_ids[0]),
        "bos_token": None if begin is None else inner.id_to_token(begin),
        "add_bos_token": conventions.adds_begin,
        "chat_template": conventions.chat_template,
    }
    _write(folder / TOKENIZER_CONFIG, {name: value for name, value in fields.items() if value is not None})
    if len(conventions.end_ids) > 1:
        path = folder / GENERATION_CONFIG
        _write(path, {**read_object(path), "eos_token_id": list(conventions.end_ids)})


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file. ValueError names the file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except ValueError as error:  # not text, or a number of thousands of digits
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object {{...}}; got {type(value).__name__}")
    return value


def named_template(value: Any, place: str) -> str | None:
    """A chat template: text, or the one called "default" in a list of {"name", "template"}. ValueError names the place."""
    if value is None or isinstance(value, str):
        return value
    expected = 'must be text or a list of {"name", "template"}'
    if not isinstance(value, list):
        raise ValueError(f"{place} {expected}; got {type(value).__name__}")
    templates: dict[str, str] = {}
    for index, entry in enumerate(value):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "template")):
            raise ValueError(f"{place} {expected}; entry {index} is not")
        templates[entry["name"]] = entry["template"]
    return templates.get("default")


def _ends(path: Path, files: dict[str, dict[str, Any]], inner: Any, vocab_size: int) -> tuple[int, ...]:
    folder = path.parent
    named = _special_id(folder, files, "eos_token", inner)
    ends = [] if named is None else [named]
    ends += _ids(folder / GENERATION_CONFIG, files[GENERATION_CONFIG].get("eos_token_id"), vocab_size)
    if not ends and inner.token_to_id(END) is not None:
        ends = [inner.token_to_id(END)]
    if not ends:
        ends = _ids(folder / MODEL_CONFIG, files[MODEL_CONFIG].get("eos_token_id"), vocab_size)
    if not ends:
        raise ValueError(
            f"{path}: nothing says which token ends a text: no eos_token in {TOKENIZER_CONFIG}, no eos_token_id in "
            f"{GENERATION_CONFIG}, and the vocabulary has no {END!r} token"
        )
    return tuple(dict.fromkeys(ends))


def _ids(path: Path, value: Any, vocab_size: int) -> list[int]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise ValueError(f"{path}: eos_token_id must be ids in 0..{vocab_size - 1}; got {token_id!r}")
    return ids


def _special_id(folder: Path, files: dict[str, dict[str, Any]], field: str, inner: Any) -> int | None:
    """The id of a token that tokenizer_config.json, or else special_tokens_map.json, names; None if neither does."""
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS):
        value = files[name].get(field)
        if value is None:
            continue
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(f"{folder / name}: {field} must be a token's text; got {value!r}")
        token_id = inner.token_to_id(text)
        if token_id is None:
            raise ValueError(f"{folder / name}: {field} is {text!r}, which is not in the vocabulary")
        return token_id
    return None


def _chat_template(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    if (folder / TEMPLATE_JINJA).exists():
        return read_text(folder / TEMPLATE_JINJA)
    for name in (TEMPLATE_JSON, TOKENIZER_CONFIG):
        if files[name].get("chat_template") is not None:
            return named_template(files[name]["chat_template"], f"{folder / name}: chat_template")
    return None


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
