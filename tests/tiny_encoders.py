"""Tiny encoders of tests/embed/tiny with a tokenizer of their own, and sentence-transformers' files to put around them."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TINY = Path(__file__).parent / "embed" / "tiny"
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] the bank by river was flooded and water came up to door of old house where alice introduced "
    "bob chloe at a networking event last year query : passage . , ! ? ##s ##ed ##ing"
).split()
TEXTS = [
    "Alice introduced Bob to Chloe.", "The bank by the river", "", "the water came up to the door of the old house",
    "Alice!", "unheard words", "The bank by the river",
]  # fmt: skip


def write_tokenizer(folder, max_length=None):
    """A WordPiece tokenizer as BERT's; max_length: what tokenizer_config.json says."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=7)  # as files in the wild have; it must not matter
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    if max_length is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": max_length}))


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def write_modules(folder, *kinds):
    """modules.json that names a transformer, then these: ("Pooling", "1_Pooling"), ..."""
    listed = [("Transformer", ""), *kinds]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(listed)
        ],
    )


def write_pooling(folder, mode, dim=32):
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    fields = {f"pooling_mode_{name}": name == mode for name in modes}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dim, **fields})


def write_dense(
    folder, place, inputs, outputs, bias=True, activation="torch.nn.modules.activation.Tanh", use_residual=False
):
    """A Dense module of random weights: (weight, bias or None), with use_residual also the residual's weight or None."""
    rng = np.random.default_rng(len(place) + inputs)
    tensors = {"linear.weight": rng.standard_normal((outputs, inputs), dtype=np.float32)}
    if bias:
        tensors["linear.bias"] = rng.standard_normal(outputs, dtype=np.float32)
    if use_residual and inputs != outputs:
        tensors["residual.weight"] = rng.standard_normal((outputs, inputs), dtype=np.float32)
    fields = {"in_features": inputs, "out_features": outputs, "bias": bias, "activation_function": activation}
    write_json(folder / place / "config.json", {**fields, "use_residual": True} if use_residual else fields)
    save_file(tensors, str(folder / place / "model.safetensors"))
    made = tensors["linear.weight"], tensors.get("linear.bias")
    return (*made, tensors.get("residual.weight")) if use_residual else made


def make_sentence_folder(folder, prompts):
    """The tiny BERT as sentence-transformers lays it out: mean pooling, unit length, prompts by name."""
    shutil.copytree(TINY / "bert", folder)
    write_tokenizer(folder)
    write_modules(folder, ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    write_pooling(folder, "mean_tokens")
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    return folder
