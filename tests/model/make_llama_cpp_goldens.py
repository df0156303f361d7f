"""Writes tests/model/goldens/smollm2_llama_cpp.npz: what llama.cpp makes of the beginning of the book, token by token.

    python tests/model/make_llama_cpp_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs xllamacpp. Its server tells the log-probability, before any sampling option, of the token that it draws: so each token
of the text is asked for in turn, with a bias that makes it the one.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "goldens" / "smollm2_llama_cpp.npz"
TOKENS = 2000
CERTAIN = 1000.0


def logprobs_of(path, ids, threads=1):
    """float32 [tokens - 1]: the log-probability of each of ids but the first, by llama.cpp as it comes."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), len(ids) + 64, 1, False
    params.verbosity, params.cpuparams.n_threads = -1, threads
    server = xllamacpp.Server(params)
    found = []
    for place in range(1, len(ids)):
        request = {
            "prompt": ids[:place], "max_tokens": 1, "temperature": 0, "n_probs": 1, "cache_prompt": True,
            "logit_bias": [[ids[place], CERTAIN]],
        }  # fmt: skip
        (step,) = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
        assert step["id"] == ids[place]
        found.append(step["logprob"])
    return np.array(found, np.float32)


def main(path):
    from fastmixer.text.assets import alice_text
    from fastmixer.weights.source import open_source

    ids = open_source(path).tokenizer.encode(alice_text())[:TOKENS].tolist()
    logprobs = logprobs_of(path, ids, threads=2)
    np.savez_compressed(FILE, ids=np.array(ids, np.int32), logprobs=logprobs, version=version("xllamacpp"))
    print(f"perplexity {np.exp(-logprobs.mean(dtype=np.float64)):.4f} of {len(ids)} tokens")


if __name__ == "__main__":
    main(sys.argv[1])
