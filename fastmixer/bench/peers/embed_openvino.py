"""OpenVINO on sentences: the plain one of embed_onnx.py's files."""

from pathlib import Path
from typing import Any

import openvino

from fastmixer.bench.embed_worker import timed
from fastmixer.bench.peers.embed_batches import PaddedBatches
from fastmixer.bench.peers.embed_onnx import onnx_file

HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Engine:
    """A compiled model on the CPU. precision: what it is asked to compute in."""

    def __init__(self, path: str, threads: int, *, onnx: str, precision: str):
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision],
        }  # fmt: skip
        file = onnx_file(Path(onnx), "plain", "float32")
        self.compiled: Any = openvino.Core().compile_model(str(file), "CPU", options)
        self.batches = PaddedBatches(path)

    def about(self) -> dict[str, Any]:
        """What a table says of it. ran: the precision of its linear maps as compiled, whatever was asked for."""
        maps = [op.get_rt_info() for op in self.compiled.get_runtime_model().get_ops()]
        kinds = {str(info["runtimePrecision"].astype(str)) for info in maps if _layer_type(info) == "FullyConnected"}
        return {"versions": {"OpenVINO": openvino.__version__}, "ran": "+".join(sorted(kinds))}

    def run(self, texts: list[str], batch: int = 32, repeats: int = 1, vectors: bool = False) -> dict[str, Any]:
        """Embed the texts, so many at a time."""

        def run(ids: Any, mask: Any) -> Any:
            return self.compiled({"ids": ids, "mask": mask})[0]

        return timed(lambda: self.batches.embed(texts, batch, run), repeats, vectors)


def _layer_type(info: Any) -> str:
    return str(info["layerType"].astype(str)) if "layerType" in info else ""
