"""Tiny models of every architecture with random weights, as a loader would give them, and a tokenizer to go with them."""

import functools
import math
from pathlib import Path

import numpy as np

from fastmixer.model.config import ModelConfig
from fastmixer.text import train_tokenizer
from fastmixer.weights.quantized import BY_NAME, quantize
from fastmixer.weights.source import ModelSource
from fastmixer.weights.stored import StoredTensor, expected_tensors

VOCAB, CONTEXT = 320, 64
_SIZES = {"vocab": VOCAB, "context": CONTEXT, "dim": 64, "layers": 3, "heads": 4, "kv_heads": 2, "hidden": 96}
_LLAMA = {
    **_SIZES, "norm": "rmsnorm", "norm_epsilon": 1e-6, "positions": "rotary", "activation": "silu", "gated": True,
    "bias": False, "tied_head": False,
}  # fmt: skip
_GEMMA = {
    **_LLAMA, "activation": "gelu_tanh", "post_norms": True, "embedding_scale": 8.0, "tied_head": True, "window": 5,
    "head_dim": 32,
}  # fmt: skip
_RISING = tuple(float(np.float32(1.1**i)) for i in range(8))
CONFIGS = {
    "gpt2": {**_SIZES, "kv_heads": 4, "norm": "layernorm", "positions": "learned", "activation": "gelu_tanh"},
    "llama": _LLAMA,
    "llama with a factor for each frequency": {**_LLAMA, "rotary_factors": _RISING, "rotary_base": 5e5, "tied_head": True},
    "llama stretched": {**_LLAMA, "rotary_factors": (4.0,) * 16, "head_dim": 32},
    "llama with biases": {**_LLAMA, "bias": True},
    "mistral": {**_LLAMA, "window": CONTEXT},  # llama.cpp knows no window in this architecture
    "qwen2": {**_LLAMA, "qkv_bias": True, "rotary_base": 1e6},
    "qwen3": {**_LLAMA, "qk_norm": True, "head_dim": 32, "tied_head": True},
    "gemma2": {
        **_GEMMA, "attention_softcap": 5.0, "logit_softcap": 3.0, "local_layers": (True, False, True),
    },
    "gemma3": {
        **_GEMMA, "layers": 7, "qk_norm": True, "local_layers": (True, True, True, True, True, False, True),
        "rotary_base": 1e6, "local_rotary_base": 1e4, "rotary_factors": (8.0,) * 16,
    },
    "phi3": {**_LLAMA, "head_dim": 16, "rotary_dim": 12, "rotary_factors": _RISING[:6], "rotary_magnitude": 1.25},
}  # fmt: skip


@functools.cache
def tiny_tokenizer():
    """Byte-level BPE of VOCAB pieces."""
    text = (Path(__file__).parents[1] / "fastmixer" / "assets" / "alice29.txt").read_text()[:20000]
    return train_tokenizer(text, "bpe", VOCAB)


def random_source(kind, type_name="F32", **changes):
    """A ModelSource of CONFIGS[kind]: matrices of this type, vectors in float32."""
    config = ModelConfig(**{**CONFIGS[kind], **changes})
    rng = np.random.default_rng(7)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        values = (centre + rng.standard_normal(shape) * (0.3 if centre else 1.2 / math.sqrt(shape[-1]))).astype(np.float32)
        stored = BY_NAME[type_name if len(shape) == 2 and name != "positions.weight" else "F32"]
        tensors[name] = StoredTensor(stored, quantize(values.reshape(-1, shape[-1]), stored), shape)
    return ModelSource(
        name="random", path=Path("random"), config=config, tensors=tensors, tokenizer=tiny_tokenizer(),
        generation={"temperature": 0.5, "top_k": 40, "top_p": 0.25},
    )  # fmt: skip
