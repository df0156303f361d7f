"""ONNX Runtime on sentences: one of embed_onnx.py's files."""

from pathlib import Path
from typing import Any

import onnxruntime

from fastmixer.bench.embed_worker import timed
from fastmixer.bench.peers.embed_batches import PaddedBatches
from fastmixer.bench.peers.embed_onnx import onnx_file


class Engine:
    """A session on the CPU, with all of its graph optimizations."""

    def __init__(self, path: str, threads: int, *, onnx: str, graph: str, precision: str):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        file = str(onnx_file(Path(onnx), graph, precision))
        self.session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.batches, self.precision = PaddedBatches(path), precision

    def about(self) -> dict[str, Any]:
        """What a table says of it."""
        return {"versions": {"ONNX Runtime": onnxruntime.__version__}, "ran": self.precision}

    def run(self, texts: list[str], batch: int = 32, repeats: int = 1, vectors: bool = False) -> dict[str, Any]:
        """Embed the texts, so many at a time."""

        def run(ids: Any, mask: Any) -> Any:
            return self.session.run(None, {"ids": ids, "mask": mask})[0]

        return timed(lambda: self.batches.embed(texts, batch, run), repeats, vectors)
