"""A transformer's logits in a page of NumPy, float64, straight from a ModelConfig's words: what loaders are checked with."""

import math

import numpy as np


def plain_logits(source, ids):
    """float64 [tokens, vocab] of a ModelSource's answer to ids [tokens]."""
    config = source.config
    weights = {name: tensor.values().astype(np.float64) for name, tensor in source.tensors.items()}
    time, rotary_dim = len(ids), config.rotary_dim or config.head_dim

    def norm(x, name):
        if config.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon)
        return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def rotate(x, base, factors):
        frequencies = base ** (-np.arange(0, rotary_dim, 2) / rotary_dim) / factors
        angles = np.arange(time)[:, None] * frequencies
        cos, sin = np.cos(angles) * config.rotary_magnitude, np.sin(angles) * config.rotary_magnitude
        first, second = x[..., : rotary_dim // 2], x[..., rotary_dim // 2 : rotary_dim]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., rotary_dim:]], -1)

    def capped(x, cap):
        return cap * np.tanh(x / cap) if cap else x

    def activate(x):
        if config.activation == "silu":
            return x / (1 + np.exp(-x))
        assert config.activation == "gelu_tanh"
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(x, name, local):
        q, k, v = (linear(x, f"{name}.{p}").reshape(time, -1, config.head_dim).transpose(1, 0, 2) for p in "qkv")
        if config.qk_norm:
            q, k = norm(q, f"{name}.q_norm"), norm(k, f"{name}.k_norm")
        if config.positions == "rotary":
            own = local and config.local_rotary_base is not None
            base = config.local_rotary_base if own else config.rotary_base
            factors = np.array(1.0 if own or config.rotary_factors is None else config.rotary_factors)
            q, k = rotate(q, base, factors), rotate(k, base, factors)
        k, v = (np.repeat(part, config.heads // config.kv_heads, axis=0) for part in (k, v))
        scores = capped(
            q @ k.transpose(0, 2, 1) * (config.attention_scale or config.head_dim**-0.5), config.attention_softcap
        )
        back = np.arange(time)[:, None] - np.arange(time)
        scores = np.where((back < 0) | (local & (back >= (config.window or time))), -np.inf, scores)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return linear((shares @ v).transpose(1, 0, 2).reshape(time, -1), f"{name}.output")

    def feedforward(x, name):
        up = linear(x, f"{name}.up")
        return linear(activate(linear(x, f"{name}.gate")) * up if config.gated else activate(up), f"{name}.down")

    x = weights["embedding.weight"][ids] * config.embedding_scale
    if config.positions == "learned":
        x = x + weights["positions.weight"][:time]
    for layer in range(config.layers):
        local = config.window is not None and (config.local_layers is None or config.local_layers[layer])
        for branch, part in ((attention, "attention"), (feedforward, "feedforward")):
            normed = norm(x, f"layers.{layer}.{part}_norm")
            name = f"layers.{layer}.{part}"
            out = attention(normed, name, local) if branch is attention else feedforward(normed, name)
            x = x + (norm(out, f"{name}_post_norm") if config.post_norms else out)
    head = weights["embedding.weight" if config.tied_head else "head.weight"]
    return capped(norm(x, "final_norm") @ head.T, config.logit_softcap)
