"""fastmixer: train and run transformers on a CPU.

Everything public is reachable from here (`import fastmixer as fm`) and is imported when it is first used, so that
`import fastmixer` costs a few milliseconds. Knows nothing but where things live.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives; keep in step with the TYPE_CHECKING block, which says the same to type checkers.
_HOME = {
    "fastmixer.ops.embedding": (
        "embedding", "embedding_backward", "SparseRows", "update_rows_sgd", "update_rows_adagrad",
        "update_rows_adamw", "cosine_similarity", "nearest",
    ),
    "fastmixer.ops.positions": ("sinusoidal_table", "rotary_tables", "rotate", "add_positions"),
    "fastmixer.ops.matmul": ("matmul", "linear", "linear_backward"),
    "fastmixer.ops.norm": ("layernorm", "layernorm_backward", "rmsnorm", "rmsnorm_backward"),
    "fastmixer.ops.attention": ("attention", "attention_backward", "attention_weights"),
    "fastmixer.ops.feedforward": ("feedforward", "feedforward_backward"),
    "fastmixer.ops.cross_entropy": ("cross_entropy", "head_loss"),
    "fastmixer.ops.dropout": ("dropout",),
    "fastmixer.ops.sampling": ("sample",),
    "fastmixer.ops.search": ("search",),
    "fastmixer.model": ("ModelConfig", "Transformer"),
    "fastmixer.generate": ("LanguageModel",),
    "fastmixer.opening": ("load",),
    "fastmixer.text": ("Tokenizer", "train_tokenizer"),
    "fastmixer.train": ("AdamW", "EmbedderTrainer", "Trainer"),
    "fastmixer.config_report": ("show_config",),
    "fastmixer.kernels.threads": ("set_threads", "get_threads"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]

if TYPE_CHECKING:
    from fastmixer.config_report import show_config as show_config
    from fastmixer.generate import LanguageModel as LanguageModel
    from fastmixer.kernels.threads import get_threads as get_threads
    from fastmixer.kernels.threads import set_threads as set_threads
    from fastmixer.model import ModelConfig as ModelConfig
    from fastmixer.model import Transformer as Transformer
    from fastmixer.opening import load as load
    from fastmixer.ops.attention import attention as attention
    from fastmixer.ops.attention import attention_backward as attention_backward
    from fastmixer.ops.attention import attention_weights as attention_weights
    from fastmixer.ops.cross_entropy import cross_entropy as cross_entropy
    from fastmixer.ops.cross_entropy import head_loss as head_loss
    from fastmixer.ops.dropout import dropout as dropout
    from fastmixer.ops.embedding import SparseRows as SparseRows
    from fastmixer.ops.embedding import cosine_similarity as cosine_similarity
    from fastmixer.ops.embedding import embedding as embedding
    from fastmixer.ops.embedding import embedding_backward as embedding_backward
    from fastmixer.ops.embedding import nearest as nearest
    from fastmixer.ops.embedding import update_rows_adagrad as update_rows_adagrad
    from fastmixer.ops.embedding import update_rows_adamw as update_rows_adamw
    from fastmixer.ops.embedding import update_rows_sgd as update_rows_sgd
    from fastmixer.ops.feedforward import feedforward as feedforward
    from fastmixer.ops.feedforward import feedforward_backward as feedforward_backward
    from fastmixer.ops.matmul import linear as linear
    from fastmixer.ops.matmul import linear_backward as linear_backward
    from fastmixer.ops.matmul import matmul as matmul
    from fastmixer.ops.norm import layernorm as layernorm
    from fastmixer.ops.norm import layernorm_backward as layernorm_backward
    from fastmixer.ops.norm import rmsnorm as rmsnorm
    from fastmixer.ops.norm import rmsnorm_backward as rmsnorm_backward
    from fastmixer.ops.positions import add_positions as add_positions
    from fastmixer.ops.positions import rotary_tables as rotary_tables
    from fastmixer.ops.positions import rotate as rotate
    from fastmixer.ops.positions import sinusoidal_table as sinusoidal_table
    from fastmixer.ops.sampling import sample as sample
    from fastmixer.ops.search import search as search
    from fastmixer.text import Tokenizer as Tokenizer
    from fastmixer.text import train_tokenizer as train_tokenizer
    from fastmixer.train import AdamW as AdamW
    from fastmixer.train import EmbedderTrainer as EmbedderTrainer
    from fastmixer.train import Trainer as Trainer


if TYPE_CHECKING:
    from fastmixer import sklearn as sklearn

_EXTRAS = ("sklearn",)  # modules that need what not everybody has installed; not in __all__


def __getattr__(name: str) -> Any:
    if name in _EXTRAS:
        return import_module(f"fastmixer.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastmixer' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_EXTRAS})
