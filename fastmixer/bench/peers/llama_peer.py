"""llama.cpp, through the xllamacpp wheel, on the same ids, by the timings that it reports itself."""

import json
import re
import time
from importlib.metadata import version
from typing import Any

import xllamacpp

FLASH = {
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


def versions() -> dict[str, str]:
    """What is compared against, with the instructions that its build uses."""
    features = re.findall(r"(\w+) = 1", str(xllamacpp.get_system_info()))
    return {"llama.cpp": f"xllamacpp {version('xllamacpp')} ({' '.join(features)})"}


class Engine:
    """A server in this process, without HTTP. Batches as llama.cpp has them by default (2048, of 512 at a time), weights
    mapped or repacked as it chooses. flash: its flash attention, "auto", "on" or "off"; warmup: an empty run at loading."""

    def __init__(self, path: str, threads: int, *, context: int = 1024, flash: str = "auto", warmup: bool = True):
        params: Any = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx, params.n_parallel, params.verbosity = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.flash_attn_type, params.warmup = FLASH[flash], warmup
        self.server: Any = xllamacpp.Server(params)

    def about(self) -> dict[str, Any]:
        """What a table says of it."""
        return {"versions": versions()}

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Read one prompt and write so many tokens, greedily."""
        (prompt,) = prompts
        request = {
            "prompt": prompt, "n_predict": new_tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
        }  # fmt: skip
        start = time.perf_counter()
        answer = self.server.handle_completions(request)
        seconds = time.perf_counter() - start
        if isinstance(answer, str | bytes):
            answer = json.loads(answer)
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp gave no timings: {str(answer)[:200]}")
        timings = answer["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (len(prompt), new_tokens):
            raise RuntimeError(
                f"llama.cpp read and wrote other numbers of tokens than {len(prompt)}, {new_tokens}: {timings}"
            )
        return {
            "prefill": timings["prompt_n"] / (timings["prompt_ms"] / 1e3),
            "decode": timings["predicted_n"] / (timings["predicted_ms"] / 1e3),
            "told_seconds": (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3,
            "seconds": seconds,
            "text": answer["choices"][0]["text"],
        }  # fmt: skip
