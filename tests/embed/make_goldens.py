"""Writes tests/embed/goldens/minilm.npz: what transformers makes of real sentences with all-MiniLM-L6-v2, in float32.

Run it where torch and transformers are: PYTHONPATH=tests python tests/embed/make_goldens.py MODEL_FOLDER (the unpacked
model.zip of cached_models.MINILM). vectors: float16 [100, 384], of alice_sentences.sentences(100), the mean of the last
hidden states of at most 256 tokens, at unit length, which is what sentence-transformers makes of this folder.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from alice_sentences import sentences

COUNT, MAX_LENGTH = 100, 256


def main() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    model = transformers.AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
    vectors = []
    for sentence in sentences(COUNT):
        inputs = tokenizer(sentence, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            pooled = model(**inputs).last_hidden_state[0].mean(dim=0)
        vectors.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    path = Path(__file__).parent / "goldens" / "minilm.npz"
    path.parent.mkdir(exist_ok=True)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(path, vectors=np.array(vectors, np.float16), versions=versions)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
