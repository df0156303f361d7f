"""Does training in bfloat16 follow float32? 500 steps of a small GPT on Alice in Wonderland, three runs on the same batches.

    python benchmarks/bfloat16_loss.py          writes benchmarks/bfloat16_loss.svg and prints the figures

float32, bfloat16, and float32 with other random weights: the distance of the last two from the first shows what is
noise. Needs matplotlib. tests/model/test_bfloat16.py does the same at a smaller scale.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import fastmixer as fm
from fastmixer.data import write_dataset
from fastmixer.model import ModelConfig
from fastmixer.text.assets import alice_path, alice_text

STEPS, BATCH, TIME, SMOOTH = 500, 8, 128, 25
RUNS = (("float32", "float32", 0), ("bfloat16", "bfloat16", 0), ("float32, other weights", "float32", 1))
COLOURS = ("#1f2933", "#c0392b", "#9aa5b1")


def losses(precision, weight_seed, tokenizer, data, folder):
    """float64 [steps]: the training loss, step by step."""
    config = ModelConfig.preset("tiny", vocab=tokenizer.vocab_size, context=TIME)
    model = fm.Transformer(config, seed=weight_seed, tokenizer=tokenizer, precision=precision, force_precision=True)
    trainer = fm.Trainer(
        model, tokenizer, data, folder=folder, steps=STEPS, batch=BATCH, time=TIME, learning_rate=3e-3, evaluate_every=0,
        save_every=0,
    )  # fmt: skip
    return np.array([loss for _, loss in trainer.fit().losses])


def smoothed(curve):
    """float64 [steps - SMOOTH + 1]: running means."""
    return np.convolve(curve, np.ones(SMOOTH) / SMOOTH, "valid")


def plot(curves, path):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasSVG(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = np.arange(SMOOTH, STEPS + 1)
    first = smoothed(next(iter(curves.values())))
    for colour, (name, curve) in zip(COLOURS, curves.items(), strict=True):
        above.plot(steps, smoothed(curve), color=colour, linewidth=1.4, label=name)
        below.plot(steps, smoothed(curve) - first, color=colour, linewidth=1.4)
    above.set_title(f"Training loss in bfloat16 and float32, means of {SMOOTH} steps", loc="left")
    above.set_ylabel("nats a token")
    above.legend(frameon=False)
    below.set_ylabel("minus float32")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    picture = Path(__file__).with_suffix(".svg")
    parser.add_argument("--out", type=Path, default=picture, help="the picture (default: %(default)s)")
    path = parser.parse_args().out
    tokenizer = fm.train_tokenizer(alice_text(), "bpe", 1024)
    with tempfile.TemporaryDirectory() as folder:
        data = write_dataset(alice_path(), tokenizer, Path(folder) / "data")
        curves = {
            name: losses(precision, seed, tokenizer, data, Path(folder) / str(number))
            for number, (name, precision, seed) in enumerate(RUNS)
        }
    first = curves["float32"]
    for name, curve in curves.items():
        distance = np.abs(smoothed(curve) - smoothed(first))
        print(
            f"{name:<24} last {SMOOTH} steps {curve[-SMOOTH:].mean():.4f}   "
            f"distance from float32: mean {distance.mean():.4f}, most {distance.max():.4f}"
        )
    plot(curves, path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
