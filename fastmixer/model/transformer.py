"""The one config-driven transformer: ids -> rows + positions -> layers -> norm -> head -> logits or loss -> gradients.

Forward and backward are written by hand over fastmixer.ops. Knows nothing of optimizers, files of text or prompts'
wording; what writes text is fastmixer.generate, folders are fastmixer.weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmixer.model.block import Layer, Norm, Rotary
from fastmixer.model.config import ModelConfig, parameter_shapes
from fastmixer.model.parameters import Parameters
from fastmixer.model.precision import usable_precision
from fastmixer.model.workspace import LayerActivations, Workspace, split_heads
from fastmixer.ops.attention import MAX_HEAD_DIM, attention_weights
from fastmixer.ops.checks import Arrays, check_integer, check_number
from fastmixer.ops.cross_entropy import head_loss
from fastmixer.ops.dropout import check_seed, dropout, fold_seed
from fastmixer.ops.embedding import embedding, embedding_backward, nearest
from fastmixer.ops.matmul import linear
from fastmixer.ops.positions import add_positions, rotary_tables, sinusoidal_table
from fastmixer.weights.folder import load_folder, save_folder

if TYPE_CHECKING:
    from fastmixer.generate.language_model import LanguageModel
    from fastmixer.generate.stream import TextStream
    from fastmixer.text import Tokenizer
    from fastmixer.weights.source import ModelSource

INITIAL_DEVIATION = 0.02  # GPT-2's; projections into the residual stream are scaled by 1 / sqrt(2 layers)
IGNORE_INDEX = -100
EMBEDDING_DROPOUT = 0  # the number of the embedding's dropout among a step's seeds; layers count from 1


class Transformer:
    """A transformer with random weights (seed; None leaves zeros), or those that load() put in.

    parameters: all weights and gradients in two flat buffers with named views; tokenizer: what text goes through in
    generate, stream and nearest_tokens (None: ids only). dtype "float64" runs on the NumPy reference alone, for gradient
    checks. precision "bfloat16": products of weights and of attention are in bfloat16, added up in float32; weights,
    gradients and all else stay float32. Where no instructions for it run, it warns and takes float32, unless
    force_precision is set.
    sparse_embedding (untied heads only): the embedding's gradient is made of the rows that occurred, and AdamW updates no
    others: less to do where batches are small and vocabularies large. checkpoint_activations (an attribute too,
    free to change between steps): of each layer only the input is kept until backward, which runs its forward again: more
    work, a fraction of the memory at long context, the same bits (Chen et al. 2016, arXiv 1604.06174).
    Architecture: Radford et al. 2019 (GPT-2), Touvron et al. 2023 (Llama), by configuration.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int | None = 0,
        tokenizer: "Tokenizer | None" = None,
        dtype: str = "float32",
        precision: str = "float32",
        force_precision: bool = False,
        sparse_embedding: bool = False,
        checkpoint_activations: bool = False,
    ):
        if not isinstance(config, ModelConfig):
            raise TypeError(f"Transformer: config must be a ModelConfig; got {type(config).__name__}")
        if config.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"Transformer: head_dim must be at most {MAX_HEAD_DIM}; got {config.head_dim}")
        if tokenizer is not None and tokenizer.vocab_size > config.vocab:
            raise ValueError(
                f"Transformer: the tokenizer has {tokenizer.vocab_size} pieces, the model's vocab is {config.vocab}"
            )
        if config.untrained_fields:
            name = config.untrained_fields[0]
            raise ValueError(
                f"Transformer: {name} {getattr(config, name)!r} is not trained yet; inference alone knows it"
            )
        self.config, self.tokenizer = config, tokenizer
        if dtype not in ("float32", "float64"):
            raise ValueError(f"Transformer: dtype must be 'float32' or 'float64'; got {dtype!r}")
        self.dtype = np.dtype(dtype)
        self.precision = usable_precision("Transformer", precision, force_precision)
        self._force_precision = force_precision
        self.checkpoint_activations = checkpoint_activations
        self._head_name = "embedding.weight" if config.tied_head else "head.weight"
        self.parameters = Parameters(parameter_shapes(config), self.dtype)
        if seed is not None:
            self._initialize(check_integer("Transformer", "seed", seed, at_least=0))
        if sparse_embedding:
            if config.tied_head:
                raise ValueError("Transformer: sparse_embedding needs an untied head: a tied one moves every row")
            self.parameters.keep_sparse("embedding.weight")
        linears = [name for name in self.parameters if name.startswith("layers.") and self.parameters.decayed(name)]
        self.parameters.keep_rewritten([*linears, self._head_name])
        if self.precision == "bfloat16":
            self.parameters.keep_rounded([*linears, self._head_name])
        self._connect()

    def _connect(self) -> None:
        """The parts, which look into parameters."""
        config, rotary = self.config, Rotary(None, None)
        if config.positions == "rotary":
            rotary = Rotary(
                *(t.astype(self.dtype) for t in rotary_tables(config.context, config.head_dim, config.rotary_base))
            )
        self._position_table = self.parameters.get("positions.weight")
        if config.positions == "sinusoidal":
            self._position_table = sinusoidal_table(config.context, config.dim).astype(self.dtype)
        self._layers = [Layer(config, self.parameters, index, rotary) for index in range(config.layers)]
        self._final_norm = Norm.of(config, self.parameters, "final_norm")
        self._d_head = self.parameters.gradient(self._head_name)
        self._workspace: Workspace | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which connect their parts with their own parameters."""
        parts = ("_position_table", "_layers", "_final_norm", "_d_head", "_workspace")
        return {name: value for name, value in vars(self).items() if name not in parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    # ---- training ----

    def forward_backward(
        self, ids: np.ndarray, targets: np.ndarray, *, loss_scale: float = 1.0, dropout_seed: int | None = None
    ) -> float:
        """The mean loss in nats of predicting targets from ids, both integer [batch, time]; gradients of loss_scale *
        loss are added to parameters.gradients_data. Targets of -100 count for nothing.

        dropout_seed: this step's seed for dropout, an int in [0, 2^64) (None: the model's dropout is off). Raises
        IndexError for an id out of range (value and position), ValueError for a shape or a time beyond the context.
        """
        ids, targets = self._check_ids("forward_backward", ids, targets)
        check_number("forward_backward", "loss_scale", loss_scale)
        if dropout_seed is not None:
            check_seed("forward_backward", dropout_seed, "dropout_seed")
        space = self._space(ids)
        seed = dropout_seed if self.config.dropout > 0 else None

        self._forward(ids, space, seed)
        head, d_normed, rewrite = self.parameters[self._head_name], space.d_branch, self.parameters.stale
        loss = head_loss(
            space.final_normed, head, targets.reshape(-1), ignore_index=IGNORE_INDEX, loss_scale=loss_scale,
            d_x=d_normed, d_weight=self._d_head, logits=space.logits, rounded=self.parameters.rounded(self._head_name),
            overwrite_d_weight=rewrite,
        )  # fmt: skip
        self.parameters.stale = False  # the layers below write theirs

        d_x = self._final_norm.backward(
            d_normed, self._last_stream(space), space.final_norm_saved, None, space.d_stream
        )
        for layer in reversed(self._layers):
            saved = self._activations(space, layer, seed)
            d_x = layer.backward(
                d_x, self._stream_before(space, layer.index), saved, space, seed, rewrite=rewrite
            )
        self._embed_backward(ids, d_x, seed)
        return loss

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """The mean loss in nats, as forward_backward without dropout and gradients."""
        ids, targets = self._check_ids("loss", ids, targets)
        space = self._space(ids)
        self._forward(ids, space, None)
        return head_loss(
            space.final_normed, self.parameters[self._head_name], targets.reshape(-1), ignore_index=IGNORE_INDEX,
            logits=space.logits, rounded=self.parameters.rounded(self._head_name),
        )  # fmt: skip

    def _forward(self, ids: np.ndarray, space: Workspace, seed: int | None) -> None:
        """Everything up to the head's input, space.final_normed."""
        positions = np.tile(np.arange(space.time), space.batch)
        x = self._embed(ids.reshape(-1), positions, space.embedded)
        if seed is not None:
            dropout(x, self.config.dropout, fold_seed(seed, EMBEDDING_DROPOUT), out=x)
        for layer, saved in zip(self._layers, space.layers, strict=True):
            x = layer.forward(x, saved, space, seed)
        _, space.final_norm_saved = self._final_norm.forward(x, space.final_normed)

    def _embed(self, ids: np.ndarray, positions: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Rows of ids: [tokens], with rows of positions: [tokens] added where positions are rows."""
        x = embedding(self.parameters["embedding.weight"], ids, out=out)
        if self._position_table is not None:
            add_positions(x, self._position_table, positions)
        return x

    def _embed_backward(self, ids: np.ndarray, d_x: np.ndarray, seed: int | None) -> None:
        if seed is not None:
            dropout(d_x, self.config.dropout, fold_seed(seed, EMBEDDING_DROPOUT), out=d_x)
        if self.config.positions == "learned":
            batch, time = ids.shape
            self.parameters.gradient("positions.weight")[:time] += d_x.reshape(batch, time, -1).sum(axis=0)
        rows = embedding_backward(d_x, ids.reshape(-1), self.config.vocab)
        if self.parameters.is_sparse("embedding.weight"):
            self.parameters.add_sparse("embedding.weight", rows)
        else:  # with a tied head the rows join the head's gradient, which is this same array
            rows.add_to(self.parameters.gradient("embedding.weight"))

    # ---- inference ----

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 [batch, time, vocab]: how strongly each piece is expected after each of ids: integer [batch, time]."""
        hidden = self.hidden(ids)
        rounded = self.parameters.rounded(self._head_name)
        return linear(hidden, self.parameters[self._head_name], transpose_weight=True, rounded=rounded)

    def hidden(self, ids: np.ndarray) -> np.ndarray:
        """float32 [batch, time, dim]: what the head reads, after the last norm."""
        ids, _ = self._check_ids("hidden", ids, None)
        space = self._space(ids)
        self._forward(ids, space, None)
        return space.final_normed.reshape(*ids.shape, self.config.dim).copy()

    def language_model(self) -> "LanguageModel":
        """The weights as they are now, in float32, as what fastmixer.load gives: with a cache of keys and values."""
        # The face of a model leads up to what writes with it; nothing else here does.
        from fastmixer.generate.language_model import LanguageModel
        from fastmixer.model.decoder import Decoder

        decoder = Decoder(self._source(), "float32", progress=False)
        return LanguageModel(decoder, self.tokenizer, "the model", cache_dtype="float32")

    def generate(self, prompt: str | list[str], **options: Any) -> Any:
        """Text that goes on from a prompt, or a list of texts from a list: see fastmixer.generate.Options.

        max_new_tokens=64, temperature=0.8 (0: always the likeliest), top_k=0, top_p=1.0, min_p=0.0,
        repetition_penalty=1.0, seed=None, stop=None (a string or several), ignore_eos=False and more. With
        return_details=True gives Generation objects: text, tokens, finish_reason, tokens a second. Packs the weights anew
        each time, as training may have moved them; for many calls keep language_model().
        """
        return self.language_model().generate(prompt, return_details=options.pop("return_details", False), **options)

    def stream(self, prompt: str, **options: Any) -> "TextStream":
        """The same text piece by piece, as soon as each is certain; its .details say what came. Options as generate's."""
        return self.language_model().stream(prompt, **options)

    def _source(self) -> "ModelSource":
        # Here and not above: these modules ask for this package's configuration, and would find it half made.
        from fastmixer.weights.placed import PlacedTensors, own_places
        from fastmixer.weights.quantized import BY_NAME
        from fastmixer.weights.source import ModelSource
        from fastmixer.weights.stored import StoredTensor

        def stored(name: str) -> StoredTensor:
            values = np.ascontiguousarray(self.parameters[name], np.float32)
            return StoredTensor(BY_NAME["F32"], values.reshape(-1, values.shape[-1]).view(np.uint8), values.shape)

        tensors = PlacedTensors(own_places(self.config, self.config.context), stored)
        return ModelSource("the model", Path(), self.config, tensors, self.tokenizer)

    # ---- looking inside ----

    def nearest_tokens(self, text: str, k: int = 5) -> list[tuple[str, float]]:
        """The k pieces whose embedding rows are most alike to that of text (one piece), with cosine similarities."""
        if self.tokenizer is None:
            raise ValueError("nearest_tokens: the model has no tokenizer; give one to Transformer(..., tokenizer=...)")
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            pieces = tokenizer.pieces(text)
            raise ValueError(f"nearest_tokens: text must be one piece; {text!r} is {len(pieces)}: {pieces}")
        table = self.parameters["embedding.weight"][: tokenizer.vocab_size]
        if not 1 <= k < len(table):
            raise ValueError(f"nearest_tokens: k must be 1..{len(table) - 1}; got {k}")
        found, similarities = nearest(table, table[ids[0]], k + 1)
        pairs = [(i, s) for i, s in zip(found, similarities, strict=True) if i != ids[0]][:k]
        return [(tokenizer.id_to_token(int(i)), float(s)) for i, s in pairs]

    def attention_weights(self, ids: np.ndarray, layer: int, head: int) -> np.ndarray:
        """float32 [time, time]: how much each of ids: integer [time] looks at each earlier one, in one head."""
        ids, _ = self._check_ids("attention_weights", np.asarray(ids)[None], None)
        for name, value, limit in (("layer", layer, self.config.layers), ("head", head, self.config.heads)):
            if not 0 <= value < limit:
                raise ValueError(f"attention_weights: {name} must be 0..{limit - 1}; got {value}")
        space = self._space(ids)
        self._forward(ids, space, None)
        q, k, _ = split_heads(self._activations(space, self._layers[layer], None).qkv, self.config, 1, space.time)
        return attention_weights(q, k, causal=True, window=self.config.window)[0, head]

    def first_nonfinite(self, ids: np.ndarray, targets: np.ndarray) -> str | None:
        """The first place, in the order of the data's flow, that is NaN or infinite: a parameter, a layer's output, the
        final norm, the loss or a gradient; None if all is finite. Changes no parameter and no gradient."""
        for name in self.parameters:
            if not np.isfinite(self.parameters[name]).all():
                return f"parameter {name}"
        ids, targets = self._check_ids("first_nonfinite", ids, targets)
        space = self._space(ids)
        with np.errstate(all="ignore"):
            self._forward(ids, space, None)
            stages = [("embedding", space.embedded)]
            stages += [(f"layers.{index}", saved.out) for index, saved in enumerate(space.layers)]
            for name, value in [*stages, ("final_norm", space.final_normed)]:
                if not np.isfinite(value).all():
                    return name
            loss = head_loss(
                space.final_normed, self.parameters[self._head_name], targets.reshape(-1), ignore_index=IGNORE_INDEX
            )
        if not np.isfinite(loss):
            return "loss"
        sparse = self.parameters.sparse()
        for name in self.parameters:
            if not np.isfinite(sparse[name].values if name in sparse else self.parameters.gradient(name)).all():
                return f"gradient of {name}"
        return None

    @property
    def options(self) -> dict[str, Any]:
        """How this model trains, as keywords of Transformer: what a folder of weights does not tell."""
        return {
            "precision": self.precision,
            "force_precision": self._force_precision,
            "sparse_embedding": self.parameters.is_sparse("embedding.weight"),
            "checkpoint_activations": self.checkpoint_activations,
        }

    # ---- folders ----

    def save(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and tokenizer.json into folder, all or nothing."""
        save_folder(
            folder, self.config.to_dict(), {name: self.parameters[name] for name in self.parameters}, self.tokenizer
        )

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> "Transformer":
        """The model of a folder that save() or a training run wrote. Options: as Transformer's (precision, say). Errors
        name file, field and value."""
        values, tensors, tokenizer = load_folder(folder)
        config = ModelConfig.from_dict(values)
        model = cls(config, seed=None, tokenizer=tokenizer, **options)
        model.set_weights(tensors, source=str(folder))
        return model

    def set_weights(self, tensors: dict[str, np.ndarray], source: str = "weights") -> None:
        """Copy tensors, by name, into the parameters; every name and shape must match. Raises ValueError."""
        missing, unknown = sorted(set(self.parameters) - set(tensors)), sorted(set(tensors) - set(self.parameters))
        if missing or unknown:
            problem = f"tensor {missing[0]!r} is missing" if missing else f"tensor {unknown[0]!r} is unknown"
            raise ValueError(f"{source}: {problem}")
        for name in self.parameters:
            tensor, shape = tensors[name], self.parameters[name].shape
            if tensor.shape != shape or tensor.dtype not in (np.float32, self.dtype):
                raise ValueError(
                    f"{source}: tensor {name!r} must be float32 {shape}; got {tensor.dtype.name} {tensor.shape}"
                )
        for name in self.parameters:
            self.parameters[name][...] = tensors[name]
        self.parameters.round()

    # ---- parts ----

    def _initialize(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for name in self.parameters:
            view = self.parameters[name]
            if view.ndim >= 2:
                deviation = INITIAL_DEVIATION
                if name.endswith(("attention.output.weight", "feedforward.down.weight")):
                    deviation /= np.sqrt(2 * self.config.layers)
                view[...] = rng.standard_normal(view.shape, dtype=np.float32) * np.float32(deviation)
            elif name.endswith("weight"):
                view[...] = 1

    def _check_ids(self, op: str, ids: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
        arrays = Arrays(op, "embedding")
        ids = arrays.check_ids("ids", ids, "batch time", self.config.vocab)
        if ids.shape[1] > self.config.context:
            raise ValueError(f"{op}: {ids.shape[1]} tokens are more than the model's context of {self.config.context}")
        if ids.size == 0:
            raise ValueError(f"{op}: ids must hold at least one token; got {ids.shape}")
        if targets is not None:
            targets = arrays.check_ids("targets", targets, "batch time", self.config.vocab, IGNORE_INDEX)
            if (targets == IGNORE_INDEX).all():
                raise ValueError(f"{op}: targets must hold at least one that counts; all are {IGNORE_INDEX}")
        return ids, targets

    def _space(self, ids: np.ndarray) -> Workspace:
        batch, time = ids.shape
        if self._workspace is None or not self._workspace.fits(batch, time, self.checkpoint_activations):
            self._workspace = None  # let the old arrays go before new ones are made
            self._workspace = Workspace(self.config, batch, time, self.dtype, shared=self.checkpoint_activations)
        return self._workspace

    def _activations(self, space: Workspace, layer: Layer, seed: int | None) -> LayerActivations:
        """What this layer's forward left; where layers share its arrays, it is made again, but for the last layer's."""
        saved = space.layers[layer.index]
        if space.shared and layer.index < len(self._layers) - 1:
            layer.forward_again(self._stream_before(space, layer.index), saved, space, seed)
        return saved

    def _stream_before(self, space: Workspace, layer: int) -> np.ndarray:
        return space.embedded if layer == 0 else space.layers[layer - 1].out

    def _last_stream(self, space: Workspace) -> np.ndarray:
        return space.layers[-1].out
