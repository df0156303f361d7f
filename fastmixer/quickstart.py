"""The pipeline told step by step on one sentence, then about a minute of training on the book that fastmixer ships.

Needs no network and no file. Knows nothing of kernels; it shows what a user of model, text and train would see.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmixer.chart import save_loss_curve, text_chart
from fastmixer.data import TokenShard
from fastmixer.model import ModelConfig, Transformer
from fastmixer.ops.embedding import cosine_similarity
from fastmixer.text import Tokenizer, train_tokenizer
from fastmixer.text.assets import alice_path, alice_text
from fastmixer.train import Trainer, TrainResult

SENTENCE = "Alice introduced Bob to Chloe."
RIVER = "The bank by the river"
SHUFFLED = "river the by bank The"
PROMPT = "Alice was"
WORD = " she"
VOCAB = 1024
CONTEXT = 128
STEPS, BATCH = 600, 8
NATS_PER_BIT = math.log(2)

Say = Callable[[str], None]


@dataclass(frozen=True)
class QuickstartResult:
    """What the walk ended with. Losses and entropy in nats a token."""

    folder: Path
    unigram_entropy: float
    training: TrainResult
    before: str
    after: str
    seconds: float


def quickstart(
    out: str | Path, *, steps: int = STEPS, seed: int = 0, say: Say = print, progress: bool = True
) -> QuickstartResult:
    """Walk the pipeline aloud, train a small GPT for `steps` steps into the run folder `out`, and show what changed.

    Raises FileExistsError if `out` already holds a run.
    """
    started = time.perf_counter()
    out, text = Path(out), alice_text()
    chapter = _Chapters(say)

    chapter("Text becomes pieces, and pieces become ids")
    tokenizer = _show_tokenizers(text, say)

    chapter("An id picks a row of the embedding table")
    config = ModelConfig.preset("tiny", vocab=tokenizer.vocab_size, context=CONTEXT, dropout=0.1)
    model = Transformer(config, seed=seed, tokenizer=tokenizer)
    trainer = Trainer(
        model, tokenizer, alice_path(), folder=out, steps=steps, batch=BATCH, time=CONTEXT, learning_rate=3e-3,
        min_learning_rate=3e-4, warmup=min(50, steps // 5), evaluate_every=max(1, steps // 6), save_every=0, seed=seed,
        progress=progress,
    )  # fmt: skip
    _show_rows(model, tokenizer, say)

    chapter("Positions tell one order of words from another")
    _show_positions(model, tokenizer, say)

    chapter("Attention mixes tokens: who looks at whom")
    _show_attention(model, tokenizer, say)

    chapter("The last row becomes a guess at the next piece")
    _show_guess(model, tokenizer, say)
    before = model.generate(PROMPT, max_new_tokens=30, temperature=0.8, seed=seed)
    near_before = model.nearest_tokens(WORD)
    say(f"Asked to go on from {PROMPT!r}, the untrained model writes:\n\n{_indented(PROMPT + before)}\n")

    chapter("Training: guess the next piece, measure the loss, nudge every number")
    entropy = unigram_entropy(trainer.data.train, trainer.data.validation)
    say(
        f"{config.num_parameters:,} numbers to learn from {len(trainer.data.train):,} pieces, {steps} steps of "
        f"{BATCH} x {CONTEXT}.\nWho knows only how often each piece occurs has a validation loss of {entropy:.2f} nats; "
        "what is below that\nwas learned from context. (Loss: minus the logarithm of the chance given to what came.)\n"
    )
    result = trainer.fit()
    losses = result.validation_losses
    say(
        f"\nvalidation loss {losses[0][1]:.2f} -> {losses[-1][1]:.2f} nats a piece "
        f"({losses[-1][1] / NATS_PER_BIT:.1f} bits); counting pieces alone would give {entropy:.2f}"
    )

    chapter("What it writes now")
    after = model.generate(PROMPT, max_new_tokens=100, temperature=0.8, top_p=0.95, seed=seed)
    say(f"{_indented(PROMPT + after)}\n")
    say(f"Pieces nearest to {WORD!r}, by the angle between their rows:")
    say(f"  before  {_neighbours(near_before)}")
    say(f"  after   {_neighbours(model.nearest_tokens(WORD))}")

    chapter("What is left, and what to try next")
    picture = save_loss_curve(out / "loss.png", result.losses, losses, entropy)
    if picture is None:
        say(text_chart(result.losses, losses, entropy))
        say('(pip install "fastmixer[plot]" makes this a picture.)\n')
    seconds = time.perf_counter() - started
    curve = f" and the loss curve, {picture.name}" if picture else ""
    say(f"{out}/ holds the checkpoint (weights, tokenizer, optimizer), metrics.jsonl{curve}.\n")
    commands = {
        f'fastmixer generate {out} "The Queen"': "let it write more",
        'fastmixer tokenize "The bank by the river"': "three ways to cut a text",
        "fastmixer train YOUR.txt --out runs/mine": "train on your own text",
        "fastmixer bench": "how fast, and against what limit",
    }
    width = max(map(len, commands))
    for command, purpose in commands.items():
        say(f"  {command:<{width}}   {purpose}")
    say(f"\nThe whole walk took {seconds:.0f} seconds.")
    return QuickstartResult(out, entropy, result, before, after, seconds)


def unigram_entropy(train: TokenShard, validation: TokenShard) -> float:
    """Nats a token of predicting validation from how often each piece occurs in train (one is added to each count)."""
    counts = np.bincount(train.tokens, minlength=train.vocab) + 1.0
    return float(-np.log(counts / counts.sum())[validation.tokens].mean())


class _Chapters:
    """Numbers the headings."""

    def __init__(self, say: Say):
        self._say, self._number = say, 0

    def __call__(self, title: str) -> None:
        self._number += 1
        self._say(f"\n{self._number}. {title}\n{'-' * (len(title) + 3)}")


def _show_tokenizers(text: str, say: Say) -> Tokenizer:
    say(f"{SENTENCE!r}, cut three ways by tokenizers learned from Alice in Wonderland:\n")
    for kind in ("characters", "words", "bpe"):
        tokenizer = train_tokenizer(text, kind, VOCAB)
        pieces = tokenizer.pieces(SENTENCE)
        say(f"  {kind:<11}{len(pieces):>3} pieces of {tokenizer.vocab_size:>5}   {'|'.join(pieces)}")
    ids = tokenizer.encode(SENTENCE)
    say(f"\nThe model reads the last kind, as ids: {' '.join(map(str, ids))}")
    return tokenizer


def _show_rows(model: Transformer, tokenizer: Tokenizer, say: Say) -> None:
    table = model.parameters["embedding.weight"]
    ids = [int(tokenizer.encode(word)[0]) for word in ("The", " the")]
    first = int(tokenizer.encode(SENTENCE)[0])
    say(f"The table is {table.shape[0]} rows of {table.shape[1]} numbers, random for now. Row {first} "
        f"({tokenizer.id_to_token(first)!r}) begins:")  # fmt: skip
    say("  " + " ".join(f"{value:+.3f}" for value in table[first, :8]) + " ...")
    likeness = cosine_similarity(table[ids[0]], table[ids[1]])
    say(
        f"Ids are labels only: {ids[0]} ({tokenizer.id_to_token(ids[0])!r}) and {ids[1]} "
        f"({tokenizer.id_to_token(ids[1])!r}) are strangers, cosine {float(likeness):+.2f}."
    )


def _show_positions(model: Transformer, tokenizer: Tokenizer, say: Say) -> None:
    row = model.parameters["positions.weight"]
    say("A second table has a row for each place; it is added, so the same piece differs by where it stands:")
    for place in (0, 1):
        say(f"  place {place}  " + " ".join(f"{value:+.3f}" for value in row[place, :8]) + " ...")
    say(f"Without it {RIVER!r} and {SHUFFLED!r} would be the same heap of pieces.")


def _show_attention(model: Transformer, tokenizer: Tokenizer, say: Say) -> None:
    ids = tokenizer.encode(RIVER)
    weights = model.attention_weights(ids, layer=0, head=0)
    pieces = [piece.replace(" ", "_") for piece in tokenizer.pieces(RIVER)]
    width = max(map(len, pieces)) + 1
    say("Each row is one piece asking; it blends the pieces up to itself with these weights (layer 0, head 0):\n")
    say(" " * (width + 2) + "".join(f"{piece:>{width}}" for piece in pieces))
    for index, piece in enumerate(pieces):
        say(f"  {piece:<{width}}" + "".join(f"{weight:>{width}.2f}" for weight in weights[index, : index + 1]))
    say("\nStill even: nothing was learned yet. Every row sums to 1.")


def _show_guess(model: Transformer, tokenizer: Tokenizer, say: Say) -> None:
    logits = model.logits(tokenizer.encode(RIVER)[None])[0, -1]
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    best = np.argsort(-chances)[:5]
    guesses = ", ".join(f"{tokenizer.id_to_token(int(i))!r} {chances[i]:.2%}" for i in best)
    say(f"After {RIVER!r} the untrained model expects: {guesses}")
    say(f"(one in {len(chances)} is {1 / len(chances):.2%}: it has no idea)\n")


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))


def _neighbours(pairs: list[tuple[str, float]]) -> str:
    return ", ".join(f"{piece!r} {similarity:+.2f}" for piece, similarity in pairs)
