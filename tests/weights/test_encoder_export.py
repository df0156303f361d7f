"""Folders of encoders that are written again: what is said of one that said nothing itself."""

import json

import pytest
from tiny_encoders import TINY, write_json

from fastmixer.weights.encoder_export import write_encoder_folder
from fastmixer.weights.encoder_folder import open_encoder


@pytest.mark.parametrize(("said", "limit"), [(None, 64), (30, 30), (1e30, 64)])
def test_texts_keep_their_limit(tmp_path, said, limit):
    folder = tmp_path / "bert"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((TINY / "bert" / name).read_bytes())
    if said is not None:
        write_json(folder / "tokenizer_config.json", {"model_max_length": said})
    written = write_encoder_folder(open_encoder(folder), {}, tmp_path / "again", {})
    assert json.loads((written / "sentence_bert_config.json").read_text()) == {"max_seq_length": limit}
    assert open_encoder(written).recipe.pooling == "mean"
