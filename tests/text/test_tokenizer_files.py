"""Tokenizers of other makers: what the files beside tokenizer.json say, exact bytes of pieces, and broken files."""

import json
import re

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Inner

import fastmixer as fm
from fastmixer.text.pieces import byte_letters


def byte_level():
    letters = byte_letters()
    inner = Inner(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<turn>"])  # 256, 257, 258
    inner.add_tokens([AddedToken("日本x", normalized=False)])  # 259
    return inner


@pytest.fixture
def folder(tmp_path):
    def make(inner=None, **files):
        (inner or byte_level()).save(str(tmp_path / "tokenizer.json"))
        for name, value in files.items():
            stem, _, kind = name.rpartition("_")
            text = value if isinstance(value, str) else json.dumps(value)
            (tmp_path / f"{stem}.{kind}").write_text(text, encoding="utf-8")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"tokenizer_config_json": {"eos_token": "</s>"}}, [257]),
        ({"tokenizer_config_json": {"eos_token": {"content": "</s>", "special": True}}}, [257]),
        ({"special_tokens_map_json": {"eos_token": "<turn>"}}, [258]),
        ({"tokenizer_config_json": {"eos_token": "</s>"}, "special_tokens_map_json": {"eos_token": "<turn>"}}, [257]),
        ({"generation_config_json": {"eos_token_id": 258}}, [258]),
        ({"generation_config_json": {"eos_token_id": [258, 257]}}, [258, 257]),
        ({"tokenizer_config_json": {"eos_token": "</s>"}, "generation_config_json": {"eos_token_id": [258, 257]}}, [257, 258]),
        ({"config_json": {"eos_token_id": 258}}, [258]),
        ({"config_json": {"eos_token_id": 258}, "generation_config_json": {"eos_token_id": 257}}, [257]),
    ],
)  # fmt: skip
def test_what_ends_a_text(folder, files, ends):
    tokenizer = fm.Tokenizer.load(folder(**files))
    assert (tokenizer.end_id, tokenizer.end_ids) == (ends[0], frozenset(ends))
    assert (tokenizer.begin_id, tokenizer.adds_begin, tokenizer.chat_template) == (None, False, None)


def test_what_begins_a_text(folder):
    end = {"eos_token": "</s>"}
    told = fm.Tokenizer.load(folder(tokenizer_config_json={**end, "bos_token": "<s>", "add_bos_token": True}))
    assert (told.begin_id, told.adds_begin) == (256, True)
    assert told.encode("a").tolist() == [97] and told.encode("a", begin=True).tolist() == [256, 97]
    assert told.encode("<s>a", begin=True).tolist() == [256, 97] and told.encode("", begin=True).tolist() == [256]
    named = fm.Tokenizer.load(folder(tokenizer_config_json={**end, "bos_token": "<s>", "add_bos_token": False}))
    assert (named.begin_id, named.adds_begin) == (256, False) and named.encode("a", begin=True).tolist() == [97]
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    added = fm.Tokenizer.load(folder(inner, tokenizer_config_json=end))
    assert (added.begin_id, added.adds_begin) == (256, True)


def test_special_tokens_written_out(folder):
    tokenizer = fm.Tokenizer.load(folder(tokenizer_config_json={"eos_token": "</s>"}))
    assert tokenizer.encode("a</s>").tolist() == [97, 257] and tokenizer.special_ids == {256, 257, 258}
    assert tokenizer.encode("a</s>日本x", special=False).tolist() == [*b"a</s>", 259]
    assert tokenizer.encode("a</s>").tolist() == [97, 257]  # the copy that sees letters is another one
    assert tokenizer.decode([97, 257, 259]) == "a日本x"


def test_exact_bytes_of_byte_level_pieces(folder):
    tokenizer = fm.Tokenizer.load(folder(tokenizer_config_json={"eos_token": "</s>"}))
    assert [tokenizer.piece_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert [tokenizer.piece_bytes(i) for i in (257, 259)] == [b"</s>", "日本x".encode()]
    assert tokenizer.pieces("é a") == [r"\xc3", r"\xa9", " ", "a"]
    for wrong in (-1, 260):
        with pytest.raises(IndexError, match=rf"^piece_bytes: {wrong} is out of range; expected 0\.\.259$"):
            tokenizer.piece_bytes(wrong)


def test_exact_bytes_of_sentencepiece_pieces(folder):
    vocab = {"<unk>": 0, "</s>": 1, "▁": 2, "a": 3, "▁a": 4, **{f"<0x{b:02X}>": 5 + b for b in range(256)}}
    inner = Inner(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["</s>"])
    tokenizer = fm.Tokenizer.load(folder(inner, tokenizer_config_json={"eos_token": "</s>"}))
    ids = tokenizer.encode("a é</s>").tolist()
    assert [tokenizer.piece_bytes(i) for i in ids] == [b" a", b" ", b"\xc3", b"\xa9", b"</s>"]
    assert [tokenizer.id_to_token(i) for i in ids] == [" a", " ", r"\xc3", r"\xa9", "</s>"]


def test_trained_pieces_have_bytes_too():
    for kind in ("characters", "words", "bpe"):
        tokenizer = fm.train_tokenizer("Alice, 日本語 and “more” text", kind, 280 if kind == "bpe" else 100)
        ids = tokenizer.encode("Alice, 日本語 and “more” text").tolist()
        assert b"".join(tokenizer.piece_bytes(i) for i in ids).decode() == "Alice, 日本語 and “more” text"


def test_chat_templates(folder, tmp_path):
    end = {"eos_token": "</s>"}
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert fm.Tokenizer.load(folder(tokenizer_config_json={**end, "chat_template": "C"})).chat_template == "C"
    assert fm.Tokenizer.load(folder(tokenizer_config_json={**end, "chat_template": named})).chat_template == "D"
    assert fm.Tokenizer.load(folder(chat_template_json={"chat_template": "J"})).chat_template == "J"
    assert fm.Tokenizer.load(folder(chat_template_jinja="{{ x }}\n")).chat_template == "{{ x }}\n"


def test_saved_with_all_of_it(folder, tmp_path):
    config = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": True, "chat_template": "{{ 'ä' }}"}
    tokenizer = fm.Tokenizer.load(
        folder(tokenizer_config_json=config, generation_config_json={"eos_token_id": [257, 258]})
    )
    tokenizer.save(tmp_path / "saved")
    loaded = fm.Tokenizer.load(tmp_path / "saved")
    for name in ("end_id", "end_ids", "begin_id", "adds_begin", "chat_template", "vocab_size"):
        assert getattr(loaded, name) == getattr(tokenizer, name), name
    fm.train_tokenizer("some text", "bpe", 260).save(tmp_path / "trained")
    assert [path.name for path in (tmp_path / "trained").iterdir()] == ["tokenizer.json"]


def test_a_model_with_such_a_tokenizer_is_saved_twice(folder, tmp_path):
    from fastmixer.weights.folder import save_folder

    config = {"eos_token": "</s>", "chat_template": "x"}
    tokenizer = fm.Tokenizer.load(folder(tokenizer_config_json=config, generation_config_json={"eos_token_id": [258]}))
    for _ in range(2):
        save_folder(tmp_path / "model", {}, {}, tokenizer)
    assert fm.Tokenizer.load(tmp_path / "model").end_ids == {257, 258}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("tokenizer_config_json", "{", " is not JSON: "),
        ("tokenizer_config_json", "[" * 100_000, " is not JSON: "),
        ("tokenizer_config_json", "[]", " must hold an object {...}; got list"),
        ("tokenizer_config_json", {"eos_token": 7}, ": eos_token must be a token's text; got 7"),
        ("tokenizer_config_json", {"eos_token": {"text": "</s>"}}, ": eos_token must be a token's text; got {'text': '</s>'}"),
        ("tokenizer_config_json", {"eos_token": "<none>"}, ": eos_token is '<none>', which is not in the vocabulary"),
        ("tokenizer_config_json", {"eos_token": "</s>", "add_bos_token": "yes"}, ": add_bos_token must be true or false; got 'yes'"),
        ("tokenizer_config_json", {"eos_token": "</s>", "add_bos_token": True}, ": add_bos_token is true, but no bos_token is named"),
        ("tokenizer_config_json", {"eos_token": "</s>", "chat_template": 3}, ': chat_template must be text or a list of {"name", "template"}; got int'),
        ("tokenizer_config_json", {"eos_token": "</s>", "chat_template": [{}]}, ': chat_template must be text or a list of {"name", "template"}; entry 0 is not'),
        ("special_tokens_map_json", {"eos_token": ["</s>"]}, ": eos_token must be a token's text; got ['</s>']"),
        ("generation_config_json", {"eos_token_id": 260}, ": eos_token_id must be ids in 0..259; got 260"),
        ("generation_config_json", {"eos_token_id": [257, -1]}, ": eos_token_id must be ids in 0..259; got -1"),
        ("generation_config_json", {"eos_token_id": True}, ": eos_token_id must be ids in 0..259; got True"),
        ("generation_config_json", '{"eos_token_id": 1' + "0" * 5000 + "}", ": "),
        ("generation_config_json", '{"a": "\0"}', " is binary, not text: byte 7 is 0x00"),
        ("tokenizer_json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', ": model.vocab is empty"),
        ("tokenizer_json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', " is not a tokenizer.json: "),
    ],
)  # fmt: skip
def test_broken_files(folder, name, value, problem):
    stem, _, kind = name.rpartition("_")
    path = folder(**{"config_json": {"eos_token_id": 257}, name: value}) / f"{stem}.{kind}"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}{problem}')}"):
        fm.Tokenizer.load(path.parent)


def test_nothing_ends_a_text(folder):
    path = folder() / "tokenizer.json"
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))}: nothing says which token ends a text: no eos_token"
    ):
        fm.Tokenizer.load(path)
