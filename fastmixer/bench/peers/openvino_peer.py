"""OpenVINO GenAI on a GGUF file, on the same ids, by the timings that it reports itself."""

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai


def versions() -> dict[str, str]:
    """What is compared against."""
    return {"OpenVINO GenAI": openvino_genai.__version__}


class Engine:
    """A pipeline on the CPU. precision: what it computes in, None: as it chooses."""

    def __init__(self, path: str, threads: int, *, precision: str | None = None):
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            options["INFERENCE_PRECISION_HINT"] = precision
        self.pipeline: Any = openvino_genai.LLMPipeline(path, "CPU", **options)

    def about(self) -> dict[str, Any]:
        """What a table says of it."""
        return {"versions": versions()}

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Read one prompt and write so many tokens, greedily."""
        (prompt,) = prompts
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        ids = openvino.Tensor(np.array([prompt], np.int64))
        start = time.perf_counter()
        answer = self.pipeline.generate(ids, config)
        seconds = time.perf_counter() - start
        metrics = answer.perf_metrics
        found = {
            "prefill": len(prompt) / (metrics.get_ttft().mean / 1e3),
            "told_seconds": metrics.get_generate_duration().mean / 1e3,
            "seconds": seconds,
            "tokens": [int(token) for token in answer.tokens[0]],
        }
        if new_tokens > 1:
            found["decode"] = 1e3 / metrics.get_tpot().mean
        return found
