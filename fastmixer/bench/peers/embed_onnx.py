"""all-MiniLM-L6-v2 as ONNX files, made once in a cache folder by a process of its own: as torch exports it ("plain"), that
with ONNX Runtime's fusions for BERT ("fused"), and both with weights quantized dynamically to int8.

Mean pooling and unit length are part of the graph, so that what comes out are the vectors.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

GRAPHS = ("plain", "fused")
PRECISIONS = ("float32", "int8")


def onnx_file(folder: Path, graph: str, precision: str) -> Path:
    """Where onnx_files puts one of them."""
    return folder / f"{graph}-{precision}.onnx"


def onnx_files(model: Path, cache: Path, tell: Callable[[str], None]) -> Path:
    """The folder of a model's ONNX files, made where it is not there yet. ChildProcessError if that fails."""
    folder = cache / "onnx" / f"{model.parent.name}-torch-{version('torch')}-onnxruntime-{version('onnxruntime')}"
    if folder.exists():
        return folder
    tell("making the ONNX files, once: an export with torch, fusions, int8 (about half a minute) ...")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        command = [sys.executable, "-m", "fastmixer.bench.peers.embed_onnx", str(model), part]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ChildProcessError(f"bench: the ONNX files could not be made: {done.stderr.strip().splitlines()[-1:]}")
        made = Path(part) / "made"
        made.mkdir()
        for graph in GRAPHS:
            for precision in PRECISIONS:
                onnx_file(Path(part), graph, precision).replace(onnx_file(made, graph, precision))
        made.replace(folder)
    return folder


def main(model: str, out: str) -> None:
    """What the process does."""
    import onnx
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    class Sentences(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # "eager" is the attention that ONNX Runtime's fusions know
            self.inner = AutoModel.from_pretrained(model, attn_implementation="eager", dtype=torch.float32).eval()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.inner(input_ids=ids, attention_mask=mask).last_hidden_state
            keep = mask[..., None].to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * keep).sum(1) / keep.sum(1), dim=1)

    sentences = Sentences()
    config = sentences.inner.config
    folder, axes = Path(out), {0: "batch", 1: "time"}
    ids, mask = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
    plain = str(onnx_file(folder, "plain", "float32"))
    torch.onnx.export(
        sentences, (ids, mask), plain, input_names=["ids", "mask"], output_names=["vectors"],
        dynamic_axes={"ids": axes, "mask": axes, "vectors": {0: "batch"}}, dynamo=False, opset_version=17,
    )  # fmt: skip
    heads, dim = config.num_attention_heads, config.hidden_size
    fused = optimizer.optimize_model(plain, model_type="bert", num_heads=heads, hidden_size=dim, opt_level=0)
    if fused.get_fused_operator_statistics()["Attention"] != config.num_hidden_layers:
        raise RuntimeError(f"ONNX Runtime fused no attention: {fused.get_fused_operator_statistics()}")
    fused.save_model_to_file(str(onnx_file(folder, "fused", "float32")))
    for graph in GRAPHS:
        quantize_dynamic(
            onnx_file(folder, graph, "float32"), onnx_file(folder, graph, "int8"),
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
