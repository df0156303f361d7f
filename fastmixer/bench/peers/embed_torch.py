"""PyTorch on sentences: transformers' model, pooled as sentence-transformers does."""

from typing import Any

import torch
import transformers

from fastmixer.bench.embed_worker import timed
from fastmixer.bench.peers.embed_batches import PaddedBatches


class Engine:
    """transformers' AutoModel in float32, eager, with the attention that it chooses."""

    def __init__(self, path: str, threads: int):
        torch.set_num_threads(threads)
        self.model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        self.batches = PaddedBatches(path)

    def about(self) -> dict[str, Any]:
        """What a table says of it."""
        return {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "ran": "float32"}

    def run(self, texts: list[str], batch: int = 32, repeats: int = 1, vectors: bool = False) -> dict[str, Any]:
        """Embed the texts, so many at a time."""

        def run(ids: Any, mask: Any) -> Any:
            with torch.inference_mode():
                inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
                hidden, keep = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
                return torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=1).numpy()

        return timed(lambda: self.batches.embed(texts, batch, run), repeats, vectors)
