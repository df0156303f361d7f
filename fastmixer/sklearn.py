"""Texts to vectors as a step of scikit-learn: in a Pipeline, cloned, searched over, pickled. Knows nothing of models.

Imported only when asked for (fastmixer.sklearn); scikit-learn comes with `pip install "fastmixer[sklearn]"`.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from fastmixer.embed.sentence_model import BATCH_TOKENS, SentenceModel
from fastmixer.opening import load

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('fastmixer.sklearn needs scikit-learn: pip install "fastmixer[sklearn]"') from error

_opened: WeakValueDictionary[tuple[Any, ...], SentenceModel] = WeakValueDictionary()  # clones share what is in use
_lock = threading.Lock()


class Embedder(TransformerMixin, BaseEstimator):
    """A transformer of texts: list, array or Series of n strings -> float32 [n, dim].

    model: what fastmixer.load takes (a folder, or a name on huggingface.co), or a SentenceModel. weights: see
    fastmixer.load. pooling: for a language model, see LanguageModel.embedder. normalize, prompt, prompt_name, truncate,
    batch_tokens, dtype, show_progress: see SentenceModel.embed. offline: names on the hub from the cache alone.

    Nothing is learned: fit only opens the model, and transform works without it. Clones share an open model; a pickle holds
    the parameters, and opens the model again where it is used.
    """

    def __init__(
        self,
        model: str | Path | SentenceModel = "all-MiniLM-L6-v2",
        *,
        weights: str = "auto",
        pooling: str | None = None,
        normalize: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        dtype: str = "float32",
        show_progress: bool | None = False,
        offline: bool | None = None,
    ):
        self.model = model
        self.weights = weights
        self.pooling = pooling
        self.normalize = normalize
        self.prompt = prompt
        self.prompt_name = prompt_name
        self.truncate = truncate
        self.batch_tokens = batch_tokens
        self.dtype = dtype
        self.show_progress = show_progress
        self.offline = offline

    def fit(self, X: Iterable[str], y: Any = None) -> "Embedder":
        """Opens the model. Raises as fastmixer.load does, and ValueError for one that gives no vectors."""
        self._sentence_model()
        return self

    def transform(self, X: Iterable[str]) -> np.ndarray:
        """float32 [n, dim] (or float16, see dtype) of n texts. Raises TypeError or ValueError that names the text."""
        if isinstance(X, str):
            raise TypeError("Embedder: X must be a list of texts; got one string")
        shape = getattr(X, "shape", (0,))
        if len(shape) != 1:
            raise ValueError(f"Embedder: X must be texts [n], such as one column of a table; got shape {tuple(shape)}")
        return self._sentence_model().embed(
            X, batch_tokens=self.batch_tokens, normalize=self.normalize, show_progress=self.show_progress,
            dtype=self.dtype, prompt=self.prompt, prompt_name=self.prompt_name, truncate=self.truncate,
        )  # fmt: skip

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """embedder0, embedder1, ...: object [dim]."""
        return np.array([f"embedder{i}" for i in range(self._sentence_model().dim)], object)

    def _sentence_model(self) -> SentenceModel:
        place = self.model
        if isinstance(place, SentenceModel):
            return self._with_its_own_pooling(place)
        if not isinstance(place, str | os.PathLike):
            raise TypeError(
                "Embedder: model must be a folder, a name on huggingface.co or a SentenceModel; got "
                f"{type(place).__name__}"
            )
        key = (str(place), self.weights, self.pooling, self.offline)
        held: tuple[Any, SentenceModel] | None = getattr(self, "_held", None)
        if held is None or held[0] != key:
            with _lock:
                found = _opened.get(key)
                if found is None:
                    found = _opened[key] = self._open(place)
            held = self._held = (key, found)
        return held[1]

    def _open(self, place: str | Path) -> SentenceModel:
        opened = load(place, weights=self.weights, offline=self.offline, progress=bool(self.show_progress))
        if isinstance(opened, SentenceModel):
            return self._with_its_own_pooling(opened)
        if self.pooling is None:
            raise ValueError(
                f"Embedder: {opened.name} is a language model without pooling files; give pooling='last' or 'mean', or a "
                "model that is made for vectors"
            )
        return opened.embedder(self.pooling)

    def _with_its_own_pooling(self, model: SentenceModel) -> SentenceModel:
        model.require_vectors("Embedder")
        if self.pooling is not None:
            raise ValueError(f"Embedder: {model.name} says itself how it makes vectors; pooling must be None")
        return model

    # ---- what scikit-learn asks ----

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_held"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags
