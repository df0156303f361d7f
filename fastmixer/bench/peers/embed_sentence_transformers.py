"""sentence-transformers, as its users open a folder and embed with it: what loading is compared with."""

from typing import Any

import sentence_transformers
import torch

from fastmixer.bench.embed_worker import timed


class Engine:
    """A SentenceTransformer on the CPU."""

    def __init__(self, path: str, threads: int):
        torch.set_num_threads(threads)
        self.model: Any = sentence_transformers.SentenceTransformer(path, device="cpu")

    def about(self) -> dict[str, Any]:
        """What a table says of it."""
        return {"versions": {"sentence-transformers": sentence_transformers.__version__}, "ran": "float32"}

    def run(self, texts: list[str], batch: int = 32, repeats: int = 1, vectors: bool = False) -> dict[str, Any]:
        """Embed the texts, so many at a time."""
        options = {"batch_size": batch, "normalize_embeddings": True, "show_progress_bar": False}
        return timed(lambda: self.model.encode(texts, **options), repeats, vectors)
