"""Model folders as open models: transformers' (config.json, safetensors in one file or many, tokenizer, advice on sampling)
and our own. Knows the files; what names and fields mean is in architectures.py and hf_names.py."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmixer.model.config import ModelConfig
from fastmixer.weights.architectures import ARCHITECTURES, WRAPPERS, architecture_of, read_config, trained_context
from fastmixer.weights.encoder_architectures import CLASSIFIER, ENCODERS
from fastmixer.weights.folder import CONFIG, FORMAT, TOKENIZER, WEIGHTS
from fastmixer.weights.hf_names import hf_places, plain_name
from fastmixer.weights.placed import PlacedTensors, check_places, own_places
from fastmixer.weights.safetensors_file import PICKLES, SafetensorsFile, refuse_pickle
from fastmixer.weights.safetensors_file import WEIGHTS as WEIGHT_TYPES
from fastmixer.weights.source import ModelSource
from fastmixer.weights.stored import StoredTensor
from fastmixer.weights.strict_json import Fields, read_object, short

if TYPE_CHECKING:
    from fastmixer.text import Tokenizer

INDEX, GENERATION = "model.safetensors.index.json", "generation_config.json"
MAX_SHARDS = 2000


def open_folder(
    folder: str | Path, context: int | None = None, name: str | None = None, *, body_only: bool = False
) -> ModelSource:
    """The model in a folder with a config.json, whoever wrote it; its tensors are views of the mapped files.

    context: the longest sequence to make ready for, up to the model's own (None). body_only: for hidden states, without a
    head (which need not be there; the embedding stands in its place) and tokenizer. Raises FileNotFoundError, or ValueError
    that names file, field and value.
    """
    folder = Path(folder)
    values = read_object(folder / CONFIG)
    where = str(folder / CONFIG)
    files = weight_files(folder)
    if values.get("model_type") == FORMAT:
        config, tensors = _own(values, where, files, context)
    else:
        config, tensors = _others(values, where, files, context, body_only)
    return ModelSource(
        name=name or folder.resolve().name,
        path=folder,
        config=config,
        tensors=tensors,
        tokenizer=None if body_only else _tokenizer(folder, config),
        generation=_generation(folder),
    )


def _own(
    values: dict[str, Any], where: str, files: "TensorFiles", context: int | None
) -> tuple[ModelConfig, Mapping[str, StoredTensor]]:
    try:
        config = ModelConfig.from_dict({name: value for name, value in values.items() if name != "model_type"})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    trained = config.context
    if context is not None:
        if type(context) is not int or not 1 <= context <= trained:
            raise ValueError(f"{where}: context must be an integer from 1 to context {trained}; got {context!r}")
        config = replace(config, context=context)
    places = own_places(config, trained)
    check_places(places, files.shapes(), files.where, "a fastmixer model")
    return config, PlacedTensors(places, files.tensor)


def _others(
    values: dict[str, Any], where: str, files: "TensorFiles", context: int | None, body_only: bool
) -> tuple[ModelConfig, Mapping[str, StoredTensor]]:
    _check_kind(values, where)
    config = read_config(values, where, context)
    if body_only:
        config = replace(config, tied_head=True)
    architecture, _ = architecture_of(values, where)
    files.rename(lambda name: plain_name(architecture, name))
    if config.tied_head:  # some files hold the embedding a second time
        files.drop("lm_head.weight")
    places = hf_places(architecture, config, trained_context(values, where))
    if not config.tied_head and "lm_head.weight" not in files.shapes():
        raise ValueError(
            f"{files.where('lm_head.weight')}: tensor lm_head.weight is missing, and tie_word_embeddings is false: the body "
            "of a model alone writes no text; with sentence-transformers' files beside it (modules.json, 1_Pooling) it "
            "opens as a model of vectors"
        )
    check_places(places, files.shapes(), files.where, architecture)
    return config, PlacedTensors(places, files.tensor)


def _check_kind(values: dict[str, Any], where: str) -> None:
    """ValueError for a model that is neither a decoder nor an encoder we know, and for a decoder that classifies."""
    fields = Fields(values, where)
    name, decoders = values.get("model_type"), (*ARCHITECTURES, *WRAPPERS)
    if not isinstance(name, str) or name not in (*decoders, *ENCODERS):
        raise fields.wrong("model_type", f"a decoder's, {', '.join(decoders)}, or an encoder's, {', '.join(ENCODERS)}")
    kinds = values.get("architectures")
    if isinstance(kinds, list) and any(isinstance(kind, str) and kind.endswith(CLASSIFIER) for kind in kinds):
        raise fields.wrong("architectures", "one that writes text (decoders' classification heads are not supported)")


class TensorFiles:
    """The tensors of one or many safetensors files, by name."""

    def __init__(self, main: Path, files: list[SafetensorsFile]):
        self._main = main
        self._tensors: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in files:
            for name in file:
                self._add(name, file, name)

    def _add(self, name: str, file: SafetensorsFile, stored: str) -> None:
        if name in self._tensors:
            raise ValueError(f"{file.path}: tensor {stored} stands also in {self._tensors[name][0].path} as {name}")
        self._tensors[name] = (file, stored)

    def rename(self, plain: Callable[[str], str | None]) -> None:
        """Names as the model's body alone would have them; None: no tensor of it."""
        old, self._tensors = self._tensors, {}
        for file, stored in old.values():
            name = plain(stored)
            if name is not None:
                self._add(name, file, stored)

    def drop(self, name: str) -> None:
        self._tensors.pop(name, None)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name. ValueError for a tensor whose numbers are no weights."""
        for file, stored in self._tensors.values():
            if file.infos[stored].dtype not in WEIGHT_TYPES:
                file[stored]
        return {name: file.infos[stored].shape for name, (file, stored) in self._tensors.items()}

    def where(self, name: str) -> str:
        return str(self._tensors[name][0].path if name in self._tensors else self._main)

    def tensor(self, name: str) -> StoredTensor:
        file, stored = self._tensors[name]
        return file[stored]


def weight_files(folder: Path) -> TensorFiles:
    """The safetensors file of a folder, or its shards. FileNotFoundError or ValueError names the file."""
    if (folder / WEIGHTS).exists():
        return TensorFiles(folder / WEIGHTS, [SafetensorsFile(folder / WEIGHTS)])
    if (folder / INDEX).exists():
        return _shards(folder)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix.lower() in PICKLES:
            refuse_pickle(path)
    gguf = sorted(folder.glob("*.gguf"))
    advice = f"; open {gguf[0]} itself" if gguf else ""
    raise FileNotFoundError(f"{folder} holds neither {WEIGHTS} nor {INDEX}{advice}")


def _shards(folder: Path) -> TensorFiles:
    index = folder / INDEX
    weight_map = Fields(read_object(index), str(index)).object("weight_map")
    if not weight_map.values:
        raise ValueError(f"{index}: weight_map must name a file for each tensor; got none")
    shards: dict[str, SafetensorsFile] = {}
    for tensor, shard in weight_map.values.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or not shard.strip("."):
            raise weight_map.wrong(tensor, "the name of a file in the same folder")
        if shard not in shards:
            if len(shards) == MAX_SHARDS:
                raise ValueError(f"{index}: weight_map must name at most {MAX_SHARDS} files")
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{folder / shard} does not exist; {index} names it")
            shards[shard] = SafetensorsFile(folder / shard)
        if tensor not in shards[shard].infos:
            raise ValueError(f"{folder / shard}: tensor {short(tensor)} is missing, which {index} says is there")
    return TensorFiles(index, list(shards.values()))


def _tokenizer(folder: Path, config: ModelConfig) -> "Tokenizer | None":
    """The folder's tokenizer, None if it has none. Special tokens may lie beyond the vocabulary (Gemma 3's image token)."""
    if not (folder / TOKENIZER).exists():
        return None
    from fastmixer.text import Tokenizer

    tokenizer = Tokenizer.load(folder)
    excess = tokenizer.vocab_size - config.vocab
    if excess > len(tokenizer.special_ids) or not tokenizer.special_ids.issuperset(
        range(config.vocab, tokenizer.vocab_size)
    ):
        raise ValueError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} pieces, the model's vocab is {config.vocab}: they do not "
            "belong together"
        )
    return tokenizer


def _generation(folder: Path) -> dict[str, Any]:
    """What generation_config.json advises on writing, in our words; a model that is not to be sampled has temperature 0."""
    path = folder / GENERATION
    if not path.exists():
        return {}
    fields = Fields(read_object(path), str(path))
    found: dict[str, Any] = {}
    if fields.has("max_new_tokens"):
        found["max_new_tokens"] = fields.integer("max_new_tokens", high=1 << 31)
    if not fields.flag("do_sample", True):
        return {**found, "temperature": 0.0}
    for name, above in (("temperature", False), ("top_p", True), ("min_p", False), ("repetition_penalty", True)):
        if fields.has(name):
            found[name] = fields.number(name, above=above)
            if name in ("top_p", "min_p") and found[name] > 1:
                raise fields.wrong(name, "a number from 0 to 1")
            # as far as generate.options.LARGEST_PENALTY, which stands above this layer: logits stay finite in float32
            if name == "repetition_penalty" and not 1e-6 <= found[name] <= 1e6:
                raise fields.wrong(name, "a number from 1e-06 to 1e+06")
    if fields.has("top_k"):
        found["top_k"] = fields.integer("top_k", low=0)
    return found
