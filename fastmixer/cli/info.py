"""`fastmixer info`: what a model is made of and will take, without loading it. Knows only how to ask and print."""

import json
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastmixer.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastmixer.text import Tokenizer
    from fastmixer.weights.encoder_folder import EncoderSource
    from fastmixer.weights.source import ModelSource
    from fastmixer.weights.stored import StoredTensor


@click.command("info")
@click.argument("model")
@click.option("--tensors", "list_tensors", is_flag=True, help="Also list every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@options.loading
def info(
    model: str,
    list_tensors: bool,
    as_json: bool,
    weights: str,
    cache: str,
    context: int | None,
    packed_cache: bool | None,
    offline: bool,
) -> None:
    """Print what MODEL (a .gguf file, a folder, an encoder, a training run, or org/name) is made of, and the memory that a
    model that writes will need.

    \b
    Examples:
      fastmixer info model.gguf
      fastmixer info model.gguf --context 2048 --cache int8 --weights int8
      fastmixer info runs/book --tensors
    """
    from fastmixer.opening import place_of, vectors_folder
    from fastmixer.weights.encoder_folder import is_encoder_folder, open_encoder
    from fastmixer.weights.encoder_recipe import transformer_folder
    from fastmixer.weights.hf_folder import open_folder
    from fastmixer.weights.source import open_source

    model = str(place_of("info", "MODEL", model))
    folder = vectors_folder(model, offline or None, None)
    if folder is not None and is_encoder_folder(folder):
        _show_encoder(open_encoder(folder, name=None if Path(model).exists() else model), list_tensors, as_json)
        return
    if folder is not None:  # a decoder whose hidden states become vectors
        source = open_folder(
            transformer_folder(folder), context, folder.name if Path(model).exists() else model, body_only=True
        )
    else:
        source = open_source(model, context=context, offline=offline or None)
    found = _report(source, weights, cache)
    found["packed_cache"] = _packed(source, weights, packed_cache)
    if list_tensors:
        found["tensors"]["list"] = _tensors(source.tensors, found.pop("kinds"))
    found.pop("kinds", None)
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _print(_lines(found), found["tensors"].get("list", []))


def _print(lines: list[tuple[str, str]], tensors: list[dict[str, Any]]) -> None:
    for name, text in lines:
        click.echo(f"{name:<13}{options.visible(text)}")
    for tensor in tensors:
        shape = " x ".join(f"{n:,}" for n in tensor["shape"])
        kept = tensor["kept"] or ""
        click.echo(
            f"  {options.visible(tensor['name']):<40} {tensor['type']:<7} {shape:>16} "
            f"{options.size(tensor['bytes']):>12}  {kept}"
        )


def _report(source: "ModelSource", weights: str, cache: str) -> dict[str, Any]:
    from fastmixer.generate.pages import sequence_bytes
    from fastmixer.generate.scheduler import CHUNK
    from fastmixer.kernels.decoder.pages import DTYPES
    from fastmixer.memory import available_memory
    from fastmixer.model.plan import plan
    from fastmixer.ops.checks import check_choice

    check_choice("info", "cache", cache, tuple(DTYPES))
    planned = plan(source, weights)
    config = source.config
    cache_bytes = sequence_bytes(planned, CHUNK, cache)
    return {
        "name": source.name,
        "path": str(source.path),
        "architecture": {"name": _architecture(source), **asdict(config)},
        "parameters": sum(prod(tensor.shape) for tensor in source.tensors.values()),
        "context": config.context,
        "tensors": _types(source.tensors),
        "weights": {
            "asked": weights,
            "matrices": planned.matrices,
            "bytes": planned.weight_bytes,
            "rounded": _rounded(source.tensors, planned.kinds) if weights == "auto" else [],
        },
        "cache": {"dtype": cache, "tokens": config.context, "bytes": cache_bytes},
        "memory": {"needed": planned.weight_bytes + cache_bytes, "available": available_memory()},
        "tokenizer": None if source.tokenizer is None else _tokenizer(source.tokenizer),
        "generation": dict(source.generation),
        "kinds": planned.kinds,
    }


def _types(tensors: "Mapping[str, StoredTensor]") -> dict[str, Any]:
    """How many tensors there are, and of what types."""
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors.values():
        entry = types.setdefault(tensor.type.name, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += tensor.nbytes
    return {
        "count": len(tensors),
        "bytes": sum(entry["bytes"] for entry in types.values()),
        "types": dict(sorted(types.items(), key=lambda pair: -pair[1]["bytes"])),
    }


def _rounded(tensors: "Mapping[str, StoredTensor]", kinds: dict[str, str]) -> list[str]:
    """Which types of the file's plain numbers lose digits as they are kept."""
    return sorted({tensors[name].type.name for name, kind in kinds.items() if kind == "bfloat16"} - {"BF16"})


def _packed(source: "ModelSource", weights: str, asked: bool | None) -> dict[str, Any] | None:
    """Where packed weights are kept, and how many bytes of this model are there; None where they are not kept."""
    from fastmixer.kernels.select import implementation
    from fastmixer.model.packed_cache import PackedCache, cache_folder

    folder = cache_folder(asked)
    if folder is None:
        return None
    path = PackedCache(folder, source, weights, implementation("decoder")).path
    return {"path": str(path), "bytes": path.stat().st_size if path.exists() else 0}


def _architecture(source: "ModelSource") -> str:
    """What the model's file calls it."""
    from fastmixer.weights.folder import CONFIG
    from fastmixer.weights.gguf import GGUFFile
    from fastmixer.weights.strict_json import read_object

    if source.path.is_dir():
        return str(read_object(source.path / CONFIG)["model_type"])
    return str(GGUFFile(source.path).metadata["general.architecture"])


def _tokenizer(tokenizer: "Tokenizer") -> dict[str, Any]:
    def piece(token_id: int) -> dict[str, Any]:
        return {"id": token_id, "piece": tokenizer.id_to_token(token_id)}

    return {
        "kind": tokenizer.kind,
        "pieces": tokenizer.vocab_size,
        "begin": None if tokenizer.begin_id is None else piece(tokenizer.begin_id),
        "adds_begin": tokenizer.adds_begin,
        "end": [piece(token_id) for token_id in sorted(tokenizer.end_ids)],
        "special": len(tokenizer.special_ids),
        "chat_template": tokenizer.chat_template is not None,
    }


def _tensors(tensors: "Mapping[str, StoredTensor]", kinds: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "type": tensor.type.name,
            "shape": list(tensor.shape),
            "bytes": tensor.nbytes,
            "kept": kinds.get(name),
        }
        for name, tensor in tensors.items()
    ]


# ---- encoders ----


def _show_encoder(source: "EncoderSource", list_tensors: bool, as_json: bool) -> None:
    """What makes vectors (or scores) of texts."""
    from fastmixer.weights.folder import CONFIG
    from fastmixer.weights.strict_json import read_object

    config, recipe = source.config, source.recipe
    listed = _tensors(source.tensors, {}) if list_tensors else []
    found: dict[str, Any] = {
        "name": source.name,
        "path": str(source.folder),
        "architecture": {"name": str(read_object(source.path / CONFIG)["model_type"]), **asdict(config)},
        "parameters": sum(prod(tensor.shape) for tensor in source.tensors.values()),
        "context": recipe.max_length or config.context,
        "tensors": {**_types(source.tensors), **({"list": listed} if list_tensors else {})},
        "pooling": None if config.head else recipe.pooling,
        "vector": recipe.vector_dim(config.dim),
        "classes": config.head.classes if config.head else None,
        "prompts": sorted(recipe.prompts),
    }
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    shape = f"{config.layers} layers of width {config.dim:,}, vocabulary {config.vocab:,}"
    gives = f"vectors of {found['vector']:,} numbers, pooling {recipe.pooling}"
    if recipe.dense:
        gives += f", {len(recipe.dense)} dense"
    if config.head:
        gives = f"scores of pairs, {config.head.classes} each"
    _print(
        [
            ("model", source.name),
            ("path", str(source.folder)),
            ("architecture", f"{found['architecture']['name']}: an encoder, {shape}"),
            ("attention", f"{config.heads} heads of {config.dim // config.heads}"),
            ("feedforward", f"{config.hidden:,} wide, {'gated ' if config.gated else ''}{config.activation}"),
            ("gives", gives),
            ("parameters", f"{found['parameters']:,}"),
            ("context", f"{found['context']:,} tokens"),
            _tensors_line(found["tensors"]),
            *([("prompts", ", ".join(found["prompts"]))] if recipe.prompts else []),
        ],
        listed,
    )


# ---- as text ----


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    size = options.size
    weights, cache, memory = (found[name] for name in ("weights", "cache", "memory"))
    kinds = ", ".join(f"{count} {kind}" for kind, count in weights["matrices"].items())
    available = memory["available"]
    fits = ""
    if available is not None:
        fits = f", {size(available)} available"
        if memory["needed"] > available:
            fits += ": NOT ENOUGH; try a smaller --context, --cache int8 or --weights int4"
    rounded = ""
    if weights["rounded"]:
        rounded = f"; {' and '.join(weights['rounded'])} rounded to bfloat16 (--weights float32 keeps every digit)"
    advice = ", ".join(f"{name} {value:g}" for name, value in found["generation"].items())
    return [
        ("model", found["name"]),
        ("path", found["path"]),
        *_architecture_lines(found["architecture"]),
        ("parameters", f"{found['parameters']:,}"),
        ("context", f"{found['context']:,} tokens"),
        _tensors_line(found["tensors"]),
        ("weights", f"{weights['asked']}: matrices {kinds}; {size(weights['bytes'])}{rounded}"),
        ("cache", f"{cache['dtype']}: {size(cache['bytes'])} for {cache['tokens']:,} tokens"),
        ("memory", f"{size(memory['needed'])} needed{fits}"),
        *([("packed", _packed_line(found["packed_cache"]))] if found["packed_cache"] else []),
        ("tokenizer", _tokenizer_line(found["tokenizer"])),
        *([("advised", advice)] if advice else []),
    ]


def _tensors_line(tensors: dict[str, Any]) -> tuple[str, str]:
    size = options.size
    types = ", ".join(f"{one['count']} {name} ({size(one['bytes'])})" for name, one in tensors["types"].items())
    return "tensors", f"{tensors['count']}, {size(tensors['bytes'])}: {types}"


def _packed_line(found: dict[str, Any]) -> str:
    kept = f"{options.size(found['bytes'])} kept" if found["bytes"] else "not kept yet"
    return f"{kept} in {found['path']}"


def _architecture_lines(a: dict[str, Any]) -> list[tuple[str, str]]:
    attention = f"{a['heads']} heads of {a['head_dim']}"
    if a["kv_heads"] != a["heads"]:
        attention += f", {a['kv_heads']} of keys and values"
    if a["qk_norm"]:
        attention += ", normalized queries and keys"
    if a["window"]:
        local = a["local_layers"] or (True,) * a["layers"]
        attention += f", window {a['window']:,} in {sum(local)} of {a['layers']} layers"
    if a["attention_softcap"]:
        attention += f", scores capped at {a['attention_softcap']:g}"
    positions = a["positions"]
    if positions == "rotary":
        positions += f" (base {a['rotary_base']:,g}{', scaled' if a['rotary_factors'] else ''})"
    gate = "gated " if a["gated"] else ""
    return [
        ("architecture", f"{a['name']}: {a['layers']} layers of width {a['dim']:,}, vocabulary {a['vocab']:,}"),
        ("attention", f"{attention}; positions: {positions}"),
        ("feedforward", f"{a['hidden']:,} wide, {gate}{a['activation']}; {a['norm']}{', biases' if a['bias'] else ''}"),
        ("head", "the embedding" if a["tied_head"] else "of its own"),
    ]


def _tokenizer_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none: prompts must be ids, from Python"
    begin = found["begin"]
    text = f"{found['kind']}, {found['pieces']:,} pieces, {found['special']} of them special"
    if begin is not None:
        text += f"; begin {options.quoted(begin['piece'])} ({begin['id']}{'' if found['adds_begin'] else ', not added'})"
    text += "; end " + ", ".join(f"{options.quoted(one['piece'])} ({one['id']})" for one in found["end"])
    return text + ("; chat template" if found["chat_template"] else "; no chat template")
