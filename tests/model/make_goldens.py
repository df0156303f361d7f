"""What PyTorch and transformers make of a small random GPT-2 and a small random Llama: the oracle of test_oracle.py.

Run `PYTHONPATH=tests python tests/model/make_goldens.py` with torch and transformers installed to write
tests/model/goldens/*.npz anew.
Names of weights and gradients are fastmixer's. Knows nothing of fastmixer's results.
"""

import copy
from pathlib import Path

import numpy as np
from transformers_names import from_gpt2, from_llama

GOLDENS = Path(__file__).parent / "goldens"
KINDS = ("gpt2", "llama")
LAYERS, STEPS, SEED = 2, 10, 0
# At the lower rate all gradients are clipped, and AdamW forgets by what; at the higher one their norms fall below the
# norm that clips, so that a wrong one shows.
LEARNING_RATES = (1e-3, 1e-2)
# What AdamW is given, there and here: moments, epsilon, decay of matrices, the norm that clips.
ADAMW = {"betas": (0.9, 0.95), "epsilon": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}
VOCAB, CONTEXT, HEADS, KV_HEADS, BATCH, TIME, IGNORED = 61, 32, 4, 2, 3, 13, -100
DIM = 24  # of the stored models: their files stay small


def hidden_width(kind, dim):
    """How wide the feedforward is: as GPT-2 has it, and one and a half times dim for Llama."""
    return 4 * dim if kind == "gpt2" else 3 * dim // 2


def _module(kind, dim):
    """A module of transformers with random weights, in float32, without dropout, attention written out."""
    import transformers

    deviation = 0.5 / dim**0.5  # of the weights: wider models do not make more of rounding
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=CONTEXT, n_embd=dim, n_inner=hidden_width(kind, dim), n_layer=LAYERS, n_head=HEADS,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=deviation, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        config._attn_implementation = "eager"
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=dim, intermediate_size=hidden_width(kind, dim),
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5,
        tie_word_embeddings=False, initializer_range=deviation,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.LlamaForCausalLM(config)


def oracle(kind, seed=SEED, dim=DIM):
    """ids and targets int64 [batch, time], weight.* and gradient.* under our names, logits [batch, time, vocab], loss,
    losses float64 [rates, steps]: before each of STEPS AdamW steps on this one batch. All else is float32."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    module = _module(kind, dim)
    with torch.no_grad():  # norms that are not all ones, biases that are not all zeros
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids, targets = rng.integers(0, VOCAB, (2, BATCH, TIME))
    targets[0, :2] = IGNORED

    def named(tensors):
        arrays = {name: value.detach().numpy().copy() for name, value in tensors}
        return from_gpt2(arrays, LAYERS) if kind == "gpt2" else from_llama(arrays, LAYERS)

    losses = [_train(copy.deepcopy(module), ids, targets, rate) for rate in LEARNING_RATES]
    logits, loss = _forward(module, ids, targets)
    loss.backward()
    weights = named(module.named_parameters())
    gradients = named((name, parameter.grad) for name, parameter in module.named_parameters())
    return {
        "ids": ids, "targets": targets, "logits": logits.detach().numpy(), "loss": np.float64(loss.item()),
        "losses": np.array(losses),
        **{f"weight.{name}": value for name, value in weights.items()},
        **{f"gradient.{name}": value for name, value in gradients.items()},
    }  # fmt: skip


def _forward(module, ids, targets):
    """(logits, mean loss): targets are given as they are, where transformers would shift its labels."""
    import torch

    logits = module(torch.from_numpy(ids)).logits
    flat = torch.from_numpy(targets).reshape(-1)
    return logits, torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), flat, ignore_index=IGNORED)


def _train(module, ids, targets, learning_rate):
    """The losses of STEPS AdamW steps; the module changes."""
    import torch

    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": ADAMW["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate, betas=ADAMW["betas"], eps=ADAMW["epsilon"],
    )  # fmt: skip
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = _forward(module, ids, targets)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), ADAMW["clip_norm"])
        optimizer.step()
    return losses


def main():
    GOLDENS.mkdir(exist_ok=True)
    for kind in KINDS:
        path = GOLDENS / f"{kind}.npz"
        np.savez_compressed(path, **oracle(kind))
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
