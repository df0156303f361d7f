"""A tiny encoder with random weights that can learn, and a made set of pairs: each word of an anchor has one other word that
stands for it in the positive, as in a translation."""

import shutil

import numpy as np
from safetensors.numpy import save_file
from tiny_encoders import TINY, WORDS, write_modules, write_pooling, write_tokenizer

import fastmixer as fm
from fastmixer.weights.safetensors_file import SafetensorsFile

SIDE = 13  # words of either language
QUICK = {"steps": 4, "batch": 8, "learning_rate": 3e-3, "holdout": 0, "progress": False}
TEXTS = ["the bank by river", "alice introduced bob", "chloe", "old house and water!"]
LEFT, RIGHT = ([word for word in WORDS if word.isalpha()][first : first + SIDE] for first in (0, SIDE))


def write_random_encoder(folder, name="bert", mode="mean_tokens", deviation=0.05):
    """The folder of a sentence-transformers model with the sizes of tests/embed/tiny/name; mode None: of transformers."""
    shutil.copytree(TINY / name, folder)
    rng = np.random.default_rng(0)

    def values(tensor, shape):
        if len(shape) > 1:
            return (rng.standard_normal(shape) * deviation).astype(np.float32)
        return np.full(shape, "norm" in tensor.lower() and tensor.endswith("weight"), np.float32)

    tensors = {
        tensor: values(tensor, info.shape)
        for tensor, info in SafetensorsFile(folder / "model.safetensors").infos.items()
    }
    (folder / "model.safetensors").unlink()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "goldens.npz").unlink()
    write_tokenizer(folder)
    if mode is not None:
        write_modules(folder, ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
        write_pooling(folder, mode)
    return folder


def made_pairs(count, seed=0):
    """So many (anchor, positive), all different, of three words each in any order."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        chosen = tuple(sorted(rng.permutation(SIDE)[:3].tolist()))
        anchor, positive = (" ".join(side[i] for i in rng.permutation(chosen)) for side in (LEFT, RIGHT))
        found.setdefault(chosen, (anchor, positive))
    return list(found.values())


def tune(model, out, pairs=None, **options):
    trainer = fm.EmbedderTrainer(model, made_pairs(40) if pairs is None else pairs, out=out, **{**QUICK, **options})
    return trainer, trainer.fit()


def embed(folder):
    return fm.load(folder, weights="float32").embed(TEXTS)
