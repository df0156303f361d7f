"""Writes tests/embed/goldens/minilm.npz: what transformers makes of real sentences with all-MiniLM-L6-v2, in float32.

Run it where torch and transformers are: PYTHONPATH=tests python tests/embed/make_goldens.py MODEL_FOLDER (the unpacked
model.zip of cached_models.MINILM). Of alice_sentences.sentences(500): the mean of the last hidden states of at most 256
tokens, at unit length, which is what sentence-transformers makes of this folder. vectors: int16 [500, 384], to be multiplied
by scale; such rounding changes a cosine by some 1e-7. neighbours: int16 [500, 10], of each sentence the ten others of the
nearest vectors, nearest first.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from alice_sentences import sentences
from neighbours import nearest

COUNT, MAX_LENGTH = 500, 256


def main() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    model = transformers.AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    found = []
    for sentence in sentences(COUNT):
        inputs = tokenizer(sentence, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            pooled = model(**inputs).last_hidden_state[0].mean(dim=0)
        found.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    vectors = np.array(found)
    scale = float(np.abs(vectors).max()) / 32767
    rounded = np.round(vectors / scale).astype(np.int16)
    least = ((rounded * scale) * vectors).sum(axis=1) / np.linalg.norm(rounded * scale, axis=1)
    path = Path(__file__).parent / "goldens" / "minilm.npz"
    path.parent.mkdir(exist_ok=True)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    neighbours = nearest(vectors, 10).astype(np.int16)
    np.savez_compressed(path, vectors=rounded, scale=scale, neighbours=neighbours, versions=versions)
    print(path, path.stat().st_size, "bytes; rounding costs", 1 - least.min(), "of a cosine")


if __name__ == "__main__":
    main()
