"""What PyTorch and transformers make of a small random GPT-2 and a small random Llama: the oracle of test_oracle.py.

Run `python tests/model/make_goldens.py` with torch and transformers installed to write tests/model/goldens/*.npz anew.
Names of weights and gradients are fastmixer's. Knows nothing of fastmixer's results.
"""

from pathlib import Path

import numpy as np

from fastmixer.weights.names import from_gpt2, from_llama

GOLDENS = Path(__file__).parent / "goldens"
KINDS = ("gpt2", "llama")
LAYERS, STEPS, SEED = 2, 10, 0
# What AdamW is given, there and here: learning rate, moments, epsilon, decay of matrices, the norm that clips.
ADAMW = {"learning_rate": 1e-2, "betas": (0.9, 0.95), "epsilon": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0}
VOCAB, CONTEXT, BATCH, TIME, IGNORED = 61, 32, 3, 13, -100


def _module(kind):
    """A module of transformers with random weights, in float32, without dropout, attention written out."""
    import transformers

    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=CONTEXT, n_embd=32, n_layer=LAYERS, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, initializer_range=0.1, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        config._attn_implementation = "eager"
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, initializer_range=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return transformers.LlamaForCausalLM(config)


def oracle(kind, seed=SEED):
    """ids and targets int64 [batch, time], weight.* and gradient.* under our names, logits [batch, time, vocab], loss,
    losses float64 [steps]: before each of STEPS AdamW steps on this one batch. All but the ids in float32."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    module = _module(kind)
    with torch.no_grad():  # norms that are not all ones, biases that are not all zeros
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids, targets = rng.integers(0, VOCAB, (2, BATCH, TIME))
    targets[0, :2] = IGNORED

    def named(tensors):
        arrays = {name: value.detach().numpy().copy() for name, value in tensors}
        return from_gpt2(arrays, LAYERS) if kind == "gpt2" else from_llama(arrays, LAYERS)

    def forward():
        logits = module(torch.from_numpy(ids)).logits
        flat = torch.from_numpy(targets).reshape(-1)
        return logits, torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), flat, ignore_index=IGNORED)

    found = {f"weight.{name}": value for name, value in named(module.named_parameters()).items()}
    logits, loss = forward()
    loss.backward()
    gradients = ((name, parameter.grad) for name, parameter in module.named_parameters())
    found |= {f"gradient.{name}": value for name, value in named(gradients).items()}

    matrices = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": ADAMW["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=ADAMW["learning_rate"], betas=ADAMW["betas"], eps=ADAMW["epsilon"],
    )  # fmt: skip
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, step_loss = forward()
        losses.append(step_loss.item())
        step_loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), ADAMW["clip_norm"])
        optimizer.step()
    return found | {
        "ids": ids, "targets": targets, "logits": logits.detach().numpy(), "loss": np.float64(loss.item()),
        "losses": np.array(losses),
    }  # fmt: skip


def main():
    GOLDENS.mkdir(exist_ok=True)
    for kind in KINDS:
        path = GOLDENS / f"{kind}.npz"
        np.savez_compressed(path, **oracle(kind))
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
