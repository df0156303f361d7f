"""PyTorch (and transformers' GPT-2): eager, compiled, bfloat16 by autocast, each as fast as its own settings make it."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from fastmixer.bench.peers import Comparison, Prepare
from fastmixer.bench.workloads import step_workload
from fastmixer.kernels.threads import get_threads
from fastmixer.ops.attention import attention, attention_backward
from fastmixer.ops.bfloat16 import is_fast
from fastmixer.ops.cross_entropy import chunk_rows, head_loss
from fastmixer.ops.embedding import embedding_backward

VOCAB, PADDED_VOCAB, DIM = 50257, 50304, 768
Call = Callable[[], object]
Modes = dict[str, dict[str, bool]]  # by name: the keywords of _their_step


def versions() -> dict[str, str]:
    """What is compared against."""
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def comparisons() -> list[Comparison]:
    """What training GPT-2 124M is made of, and the whole step, in bfloat16 where there are instructions for it; targets are
    those that fastmixer holds itself to."""
    torch.set_num_threads(get_threads())
    shapes = (((4, 12, 256, 64), 2.0), ((1, 12, 1024, 64), 2.0), ((1, 12, 4096, 64), 1.5))
    found = [
        Comparison(
            "attention", f"forward+backward {'x'.join(map(str, shape))} causal", _our_attention(shape),
            {"SDPA": _their_attention(shape)}, target,
        )
        for shape, target in shapes
    ]  # fmt: skip
    found += [
        Comparison("embedding", "gradient 4096 ids", _our_embedding, {"sparse, coalesced": _their_sparse}, 2.0),
        Comparison("embedding", "gradient 4096 ids", _our_embedding, {"dense": _their_dense}, 25.0),
        Comparison("head", "head + loss forward+backward 1024x768x50304", _our_head, {"eager": _their_head}, 1.4),
    ]
    eager: Modes = {"eager": {}}
    compiled: Modes = {"compile": {"compiled": True}}
    autocast: Modes = {"autocast": {"autocast": True}}
    fastest: Modes = {**autocast, "compile, autocast": {"autocast": True, "compiled": True}}
    for batch, time, precision, modes, target in (
        (4, 64, "float32", compiled, 1.5), (4, 64, "float32", eager, 1.75), (1, 1024, "float32", eager, 2.0),
        (4, 256, "float32", eager, 1.7),
        (4, 64, "bfloat16", fastest, 1.35), (1, 1024, "bfloat16", autocast, 1.8),
    ):  # fmt: skip
        if precision == "bfloat16" and not is_fast():
            continue  # fastmixer trains in float32 here
        theirs = {mode: _their_step(batch, time, **options) for mode, options in modes.items()}
        name = f"GPT-2 124M, {batch}x{time}, {precision}"
        found.append(Comparison("step", name, _our_step(batch, time, precision), theirs, target))
    for name, ours, theirs_code, target in (
        ("head + loss, beyond its gradients", _OUR_HEAD_MEMORY, _THEIR_HEAD_MEMORY, 10.0),
        ("peak of the step 4x64, float32", _OUR_MEMORY, _THEIR_MEMORY, 1 / 0.8),
    ):
        found.append(
            Comparison("memory", name, _in_a_process(ours), {"eager": _in_a_process(theirs_code)}, target, "bytes")
        )
    return found


# ---- attention ----


def _our_attention(shape: tuple[int, ...]) -> Prepare:
    def prepare() -> Call:
        rng = np.random.default_rng(0)
        q, k, v, d_out = (rng.standard_normal(shape, dtype=np.float32) for _ in range(4))
        out, d_q, d_k, d_v = (np.empty(shape, np.float32) for _ in range(4))

        def call() -> None:
            _, log_sum_exp = attention(q, k, v, causal=True, out=out, return_saved=True)
            attention_backward(d_out, q, k, v, out, log_sum_exp, causal=True, d_q=d_q, d_k=d_k, d_v=d_v)

        return call

    return prepare


def _their_attention(shape: tuple[int, ...]) -> Prepare:
    def prepare() -> Call:
        torch.manual_seed(0)
        q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
        d_out = torch.randn(shape)

        def call() -> None:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), d_out)

        return call

    return prepare


# ---- embedding ----


def _embedding_inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((4096, DIM), dtype=np.float32), rng.integers(0, VOCAB, 4096)


def _our_embedding() -> Call:
    d_out, ids = _embedding_inputs()
    values = np.empty_like(d_out)
    return lambda: embedding_backward(d_out, ids, VOCAB, values=values)


def _their_sparse() -> Call:
    d_out, ids = map(torch.from_numpy, _embedding_inputs())
    size = (VOCAB, DIM)
    return lambda: torch.sparse_coo_tensor(ids[None], d_out, size, check_invariants=False).coalesce()


def _their_dense() -> Call:
    d_out, ids = map(torch.from_numpy, _embedding_inputs())
    return lambda: torch.ops.aten.embedding_dense_backward(d_out, ids, VOCAB, -1, False)


# ---- head ----


def _head_inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal((rows, DIM), dtype=np.float32) for rows in (1024, PADDED_VOCAB))
    weight *= 0.02  # in place: a copy would be a peak of its own
    return x, weight, rng.integers(0, VOCAB, 1024)


def _our_head() -> Call:
    x, weight, targets = _head_inputs()
    d_x, d_weight, logits = (
        np.empty_like(x),
        np.zeros_like(weight),
        np.empty((chunk_rows(1024), PADDED_VOCAB), np.float32),
    )
    return lambda: head_loss(x, weight, targets, d_x=d_x, d_weight=d_weight, logits=logits)


def _their_head() -> Call:
    x, weight, targets = map(torch.from_numpy, _head_inputs())
    x.requires_grad_(), weight.requires_grad_()
    return lambda: torch.autograd.grad(torch.nn.functional.cross_entropy(x @ weight.T, targets), (x, weight))


# ---- the whole step ----


def _our_step(batch: int, time: int, precision: str) -> Prepare:
    return lambda: step_workload(batch, time, precision).prepare(np.random.default_rng(0))


def _their_step(batch: int, time: int, *, autocast: bool = False, compiled: bool = False) -> Prepare:
    def prepare() -> Call:
        torch.manual_seed(0)
        config = transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        config._attn_implementation = "sdpa"
        model = transformers.GPT2LMHeadModel(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
        ids = torch.randint(0, VOCAB, (batch, time))
        forward: Any = torch.compile(model) if compiled else model

        def call() -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return call

    return prepare


# ---- memory: each in a process of its own ----


def _in_a_process(code: str) -> Prepare:
    def call() -> int:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    return lambda: call


# What a call of the head takes beyond the two gradients that come of it.
_HEAD_MEMORY = """
import fastmixer as fm
fm.set_threads(2)
from fastmixer.bench.peers import torch_peer as peer
from fastmixer.train.memory import peak_memory
{prepare}
before = peak_memory()
{call}
print(peak_memory() - before - 4 * (1024 + peer.PADDED_VOCAB) * peer.DIM)
"""
_OUR_HEAD_MEMORY = _HEAD_MEMORY.format(
    prepare="import numpy as np\nfrom fastmixer.ops.cross_entropy import head_loss\n"
    "x, weight, targets = peer._head_inputs()\nhead_loss(x[:8], weight[:64], targets[:8] % 64)",
    call="d_x, d_weight = np.empty_like(x), np.zeros_like(weight)\n"
    "head_loss(x, weight, targets, d_x=d_x, d_weight=d_weight)",
)
_THEIR_HEAD_MEMORY = _HEAD_MEMORY.format(prepare="call = peer._their_head()", call="gradients = call()")

_PRINT_PEAK = "from fastmixer.train.memory import peak_memory; print(peak_memory())"
_OUR_MEMORY = f"""
import numpy as np, fastmixer as fm
fm.set_threads(2)
from fastmixer.bench.workloads import step_workload
call = step_workload(4, 64).prepare(np.random.default_rng(0))
call(), call()
{_PRINT_PEAK}
"""
_THEIR_MEMORY = f"""
import fastmixer as fm
fm.set_threads(2)
from fastmixer.bench.peers.torch_peer import _their_step
call = _their_step(4, 64)()
call(), call()
{_PRINT_PEAK}
"""
