"""Tokenizers at three levels: round trips, standard files, and what is refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastmixer as fm
from fastmixer.text import KINDS
from fastmixer.text.assets import alice_path, alice_text

SENTENCE = "Alice introduced Bob to Chloe."


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: fm.train_tokenizer(alice_text(), kind, 1024) for kind in KINDS}


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_bpe_takes_any_text_whatever(tokenizers, text):
    tokenizer = tokenizers["bpe"]
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<|endoftext|>", "")


def test_the_book_comes_back_whole_from_characters_and_bpe(tokenizers):
    for kind in ("characters", "bpe"):
        assert tokenizers[kind].decode(tokenizers[kind].encode(alice_text())) == alice_text()
    words = fm.train_tokenizer(alice_text(), "words", 100_000)
    assert words.decode(words.encode(alice_text())) == alice_text()


def test_sequences_get_shorter_and_vocabularies_larger(tokenizers):
    counts = [len(tokenizers[kind].encode(alice_text())) for kind in ("characters", "bpe", "words")]
    assert counts == sorted(counts, reverse=True)
    assert tokenizers["characters"].vocab_size < 100 < tokenizers["bpe"].vocab_size == 1024


def test_words_have_no_answer_to_a_word_they_have_not_seen(tokenizers):
    assert tokenizers["words"].pieces("Alice zanzibar") == ["Alice", "<unk>"]
    assert "<unk>" not in tokenizers["bpe"].pieces("Alice zanzibar")


def test_pieces_are_readable(tokenizers):
    assert "".join(tokenizers["bpe"].pieces(SENTENCE)) == SENTENCE
    assert "".join(tokenizers["characters"].pieces(SENTENCE)) == SENTENCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_and_standard(tokenizers, kind, tmp_path):
    from tokenizers import Tokenizer as Standard

    tokenizer = tokenizers[kind]
    path = tokenizer.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    for loaded in (fm.Tokenizer.load(tmp_path), fm.Tokenizer.load(path)):
        assert (loaded.kind, loaded.vocab_size, loaded.end_id) == (kind, tokenizer.vocab_size, tokenizer.end_id)
        assert loaded.encode(SENTENCE).tolist() == tokenizer.encode(SENTENCE).tolist()
    assert Standard.from_file(str(path)).encode(SENTENCE).ids == tokenizer.encode(SENTENCE).tolist()


def test_batches_are_encoded_like_single_texts(tokenizers):
    texts = ["", "Alice", SENTENCE]
    found = tokenizers["bpe"].encode_batch(texts)
    assert [ids.tolist() for ids in found] == [tokenizers["bpe"].encode(text).tolist() for text in texts]


def test_training_is_repeatable(tokenizers):
    assert fm.train_tokenizer(alice_path(), "bpe", 1024).to_json() == tokenizers["bpe"].to_json()


def test_fifty_thousand_pieces_from_a_small_text_warns_and_goes_on():
    with pytest.warns(UserWarning, match=r"the text yields \d+ pieces, not the 50000 asked for"):
        assert fm.train_tokenizer(alice_text(), "bpe", 50_000).vocab_size > 5000


def test_long_texts_go_in_pieces(monkeypatch):
    """What is learned of a text does not depend on where it is cut, but for runs of empty lines."""
    from fastmixer.text import files

    text = alice_text().replace("\n\n", "\n")[:20_000]
    whole = {kind: fm.train_tokenizer(text, kind, 400).to_json() for kind in KINDS}
    monkeypatch.setattr(files, "PIECE_CHARACTERS", 500)
    assert "".join(files.pieces_of(text)) == text and len(list(files.pieces_of(text))) > 30
    assert files.lone_surrogate(text) is None
    for kind in ("characters", "words"):
        assert fm.train_tokenizer(text, kind, 400).to_json() == whole[kind]
    assert fm.train_tokenizer(text, "bpe", 400).decode(fm.train_tokenizer(text, "bpe", 400).encode(text)) == text


def test_tokenizers_with_holes_count_to_their_last_id(tmp_path):
    from tokenizers import Tokenizer as Standard
    from tokenizers import models

    Standard(models.WordLevel({"<|endoftext|>": 0, "<unk>": 1, "a": 7}, "<unk>")).save(str(tmp_path / "tokenizer.json"))
    tokenizer = fm.Tokenizer.load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.id_to_token(7)) == (8, "a")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fm.train_tokenizer(""), "train_tokenizer: the text is empty"),
        (lambda: fm.train_tokenizer([" \n", ""]), "train_tokenizer: the text is empty"),
        (lambda: fm.train_tokenizer("a\ud800"), r"train_tokenizer: character 1 is '\ud800', half a surrogate pair; no text holds that alone"),
        (lambda: fm.train_tokenizer("a", "letters"), "train_tokenizer: kind must be one of characters, words, bpe; got 'letters'"),
        (lambda: fm.train_tokenizer("a", "bpe", 100), "train_tokenizer: vocab_size must be an integer >= 257 for bpe; got 100"),
        (lambda: fm.train_tokenizer("a", "words", 2), "train_tokenizer: vocab_size must be an integer >= 3 for words; got 2"),
    ],
)  # fmt: skip
def test_bad_training_input(call, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        call()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda t: fm.train_tokenizer([3]), TypeError, "train_tokenizer: text must be a string; got int"),
        (lambda t: t.encode(b"a"), TypeError, "encode: text must be a string; got bytes"),
        (lambda t: t.encode("\ud800"), ValueError, r"encode: character 0 is '\ud800', half a surrogate pair; no text holds that alone"),
        (lambda t: t.encode_batch("abc"), TypeError, "encode_batch: texts must be a list of strings; got one string"),
        (lambda t: t.encode_batch(["a", None]), TypeError, "encode_batch: text 1: text must be a string; got NoneType"),
        (lambda t: t.decode([1, 2, 1024]), IndexError, "decode: ids[2] = 1024 is out of range; expected 0..1023"),
        (lambda t: t.decode([1, -1]), IndexError, "decode: ids[1] = -1 is out of range; expected 0..1023"),
        (lambda t: t.decode([[1, 2]]), TypeError, "decode: ids must be integers [tokens]; got int64 (1, 2)"),
        (lambda t: t.decode([1.5]), TypeError, "decode: ids must be integers [tokens]; got float64 (1,)"),
        (lambda t: t.id_to_token(2000), IndexError, "id_to_token: 2000 is out of range; expected 0..1023"),
        (lambda t: t.id_to_token(-1), IndexError, "id_to_token: -1 is out of range; expected 0..1023"),
    ],
)  # fmt: skip
def test_bad_input(tokenizers, call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(tokenizers["bpe"])


def test_nothing_is_nothing(tokenizers):
    for tokenizer in tokenizers.values():
        assert tokenizer.encode("").tolist() == [] and tokenizer.decode([]) == "" and tokenizer.encode_batch([]) == []


def test_bad_files(tmp_path):
    binary, undecodable, marked = tmp_path / "b.txt", tmp_path / "u.txt", tmp_path / "m.txt"
    binary.write_bytes(b"text\0more")
    undecodable.write_bytes(b"caf\xe9 noir")
    marked.write_bytes(b"\xef\xbb\xbfcaf\xe9 noir")  # places count from the file's first byte, mark or not
    with pytest.raises(ValueError, match=re.escape(f"{binary} is binary, not text: byte 4 is 0x00")):
        fm.train_tokenizer(binary)
    with pytest.raises(ValueError, match=re.escape(f"{undecodable} is not UTF-8 text: byte 3 is 0xe9")):
        fm.train_tokenizer(undecodable)
    with pytest.raises(ValueError, match=re.escape(f"{marked} is not UTF-8 text: byte 6 is 0xe9")):
        fm.train_tokenizer(marked)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=re.escape(f"train_tokenizer: the text is empty: {tmp_path / 'empty.txt'}")):
        fm.train_tokenizer(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match=r"absent\.txt is not a file"):
        fm.train_tokenizer(tmp_path / "absent.txt")
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        fm.Tokenizer.load(tmp_path)
    for content, problem in (("{", "is not JSON"), ('{"a": 1}', "is not a tokenizer.json")):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=f"tokenizer.json {problem}"):
            fm.Tokenizer.load(tmp_path)
