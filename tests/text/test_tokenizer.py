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


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: fm.train_tokenizer(""), ValueError, "train_tokenizer: the text is empty"),
        (lambda: fm.train_tokenizer([" \n", ""]), ValueError, "train_tokenizer: the text is empty"),
        (lambda: fm.train_tokenizer("a", "letters"), ValueError, "train_tokenizer: kind must be one of characters, words, bpe; got 'letters'"),
        (lambda: fm.train_tokenizer("a", "bpe", 100), ValueError, "train_tokenizer: vocab_size must be an integer >= 257 for bpe; got 100"),
        (lambda: fm.train_tokenizer("a").encode(b"a"), TypeError, "encode: text must be a string; got bytes"),
        (lambda: fm.train_tokenizer("a b", "words").id_to_token(99), IndexError, "id_to_token: 99 is out of range; expected 0..3"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:train_tokenizer")
def test_bad_input(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call()


def test_bad_files(tmp_path):
    binary, undecodable = tmp_path / "b.txt", tmp_path / "u.txt"
    binary.write_bytes(b"text\0more")
    undecodable.write_bytes(b"caf\xe9 noir")
    with pytest.raises(ValueError, match=re.escape(f"{binary} is binary, not text: byte 4 is 0x00")):
        fm.train_tokenizer(binary)
    with pytest.raises(ValueError, match=re.escape(f"{undecodable} is not UTF-8 text: byte 3 is 0xe9")):
        fm.train_tokenizer(undecodable)
    with pytest.raises(FileNotFoundError, match="absent.txt is not a file"):
        fm.train_tokenizer(tmp_path / "absent.txt")
    with pytest.raises(FileNotFoundError, match="tokenizer.json does not exist"):
        fm.Tokenizer.load(tmp_path)
    for content, problem in (("{", "is not JSON"), ('{"a": 1}', "is not a tokenizer.json")):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=f"tokenizer.json {problem}"):
            fm.Tokenizer.load(tmp_path)
