"""The real all-MiniLM-L6-v2 fine-tuned for a few steps: it begins where inference is, and what is written is what was trained."""

import numpy as np
from alice_sentences import sentences

import fastmixer as fm
from fastmixer.train import EmbedderTrainer


def test_a_few_steps(minilm_folder, tmp_path):
    texts = sentences(48)
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    trainer = EmbedderTrainer(
        minilm_folder, pairs, out=tmp_path / "tuned", steps=4, batch=8, holdout=0, dropout=0, learning_rate=1e-4, seed=1,
        progress=False,
    )  # fmt: skip

    def vectors():
        found = trainer.vectors(trainer.pairs, trainer.pairs.anchors)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    anchors = texts[::2]
    before = fm.load(minilm_folder, weights="float32").embed(anchors)
    assert (vectors() * before).sum(axis=1).min() >= 0.99999
    result = trainer.fit()
    after = fm.load(tmp_path / "tuned", weights="float32").embed(anchors)
    assert (vectors() * after).sum(axis=1).min() >= 0.99999
    assert (after * before).sum(axis=1).max() < 0.999 and np.isfinite(result.losses).all()
