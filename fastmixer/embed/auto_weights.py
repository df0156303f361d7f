"""weights="auto" of an encoder: the fastest kind for this processor that keeps its vectors, tried on a few sentences. Texts
of one to four words may keep less (see GATES).

Knows nothing of what is done with the vectors, or of files.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmixer.embed.pooling import pool, unit_length
from fastmixer.embed.sentence_tokenizer import SentenceTokenizer
from fastmixer.kernels.select import implementation
from fastmixer.model.encoder import Encoder

if TYPE_CHECKING:
    from fastmixer.weights.encoder_folder import EncoderSource

# The least cosine with float32's vector that a kind has to keep, in every one of the sentences. That speaks for texts of
# five words or more: in fewer, the rounding of one token is not averaged away. Of Alice's texts of one or two words int8
# keeps 0.993 to 0.999 of MiniLM's vectors (4 of 94 below 0.995), of longer ones 0.9956 at least; of "thank you" 0.9906.
GATES = {"int8": 0.995, "bfloat16": 0.9995}
# The kinds that levels have instructions for, fastest first; others multiply float32 fastest.
FASTER = {
    "x86_64_v4_amx": ("bfloat16", "int8"),
    "x86_64_v4_bf16": ("int8", "bfloat16"),
    "x86_64_v4_vnni": ("int8",),
}
SENTENCES = (  # from Alice in Wonderland, and some that are unlike it
    "Down, down, down.",
    "There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit "
    "say to itself, `Oh dear! Oh dear! I shall be late!'",
    "The first thing she heard was a general chorus of `There goes Bill!'",
    "`Would you tell me, please, which way I ought to go from here?'",
    "The bank by the river was flooded.",
    "Alice introduced Bob to Chloe at a networking event last year.",
    "error: index 17 is out of range for axis 0 with size 12",
    "price",
)


@dataclass(frozen=True)
class Choice:
    """kind: what the weights are kept as; tried: the least cosine of each kind that was tried, the chosen one last (float32
    needs no trial)."""

    kind: str
    tried: dict[str, float]


def fastest_accurate(source: "EncoderSource", tokenizer: SentenceTokenizer, progress: bool) -> tuple[Encoder, Choice]:
    """The encoder whose weights are kept in the first of the kinds that are fast here and pass their gate, else float32.

    Raises ValueError that names a weight whose vectors are no numbers, where kinds are tried at all."""
    tried: dict[str, float] = {}
    plain: Encoder | None = None
    truth = np.empty(0)
    for kind in faster_kinds(implementation("encoder")):
        if plain is None:
            plain = Encoder(source, "float32", progress=progress)
            truth = _vectors(plain, source, tokenizer)
            if not np.isfinite(truth).all():
                raise ValueError(_not_finite(source))
        encoder = Encoder(source, kind, progress=progress)
        tried[kind] = float((_vectors(encoder, source, tokenizer) * truth).sum(axis=1).min())
        if tried[kind] >= GATES[kind]:
            return encoder, Choice(kind, tried)
    return plain or Encoder(source, "float32", progress=progress), Choice("float32", tried)


def faster_kinds(implementation: str) -> tuple[str, ...]:
    """The kinds that kernels of this name multiply faster than float32, fastest first."""
    return FASTER.get(implementation.removeprefix("native-"), ())


def _not_finite(source: "EncoderSource") -> str:
    """What is wrong with a model whose vectors are not finite."""
    for name, tensor in source.tensors.items():
        wrong = ~np.isfinite(values := tensor.values())
        if wrong.any():
            place = np.unravel_index(int(wrong.argmax()), wrong.shape)
            where = ", ".join(map(str, place))
            return f"{source.folder}: weights must be finite; {name}[{where}] = {values[place]}"
    return f"{source.folder}: vectors must be finite; its weights are, but some hidden state is too large for float32"


def _vectors(encoder: Encoder, source: "EncoderSource", tokenizer: SentenceTokenizer) -> np.ndarray:
    """float32 [sentences, dim] of unit length."""
    ids = tokenizer.encode("load", SENTENCES).ids
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    head = source.config.head
    pooling = source.recipe.pooling if head is None else head.pooling
    return unit_length(pool(encoder.forward(np.concatenate(ids), starts), starts, pooling))
