"""Streamed pieces make up the decoded text, whatever the tokens, and show nothing that may still change."""

import numpy as np
import pytest
from random_models import tiny_tokenizer

from fastmixer.generate.text_so_far import TextSoFar, text_before_stops
from fastmixer.text import Tokenizer, train_tokenizer
from fastmixer.text.assets import alice_text


def sentencepiece():
    """A vocabulary as SentencePiece makes them: spaces are stand-ins, and there is a piece for every byte."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    pieces = ["<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁was", "▁a", "b", "é", "▁▁", "日"]
    inner = Inner(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    return Tokenizer(inner)


TOKENIZERS = {
    "bytes": tiny_tokenizer,
    "sentencepiece": sentencepiece,
    "characters": lambda: train_tokenizer(alice_text()[:3000], "characters"),
    "words": lambda: train_tokenizer(alice_text()[:3000], "words", 300),
}


@pytest.fixture(params=TOKENIZERS)
def any_tokenizer(request):
    return TOKENIZERS[request.param]()


def random_ids(tokenizer, rng, count):
    """Ids of all kinds: bytes that belong to characters, ones that do not, special ones, and pieces of text."""
    ids = rng.integers(0, tokenizer.vocab_size, count).tolist()
    letters = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "naïve 日本\n🎉".encode()]
    if letters[0] is not None:
        ids = [token if rng.random() < 0.2 else int(rng.integers(257, tokenizer.vocab_size)) for token in ids]
        place = int(rng.integers(0, count))
        ids[place:place] = letters
    return [tokenizer.end_id, *ids] if rng.random() < 0.3 else ids


def pieces_of(tokenizer, ids, stops=()):
    """Whether it stopped, how many tokens it took, and the pieces."""
    text = TextSoFar(tokenizer, stops)
    for count, token in enumerate(ids, 1):
        text.push(token)
        if text.has_stopped:
            return True, count, list(text.pieces)
    text.end()
    return text.has_stopped, len(ids), list(text.pieces)


def test_pieces_make_the_text(any_tokenizer, rng):
    for _ in range(60):
        ids = random_ids(any_tokenizer, rng, int(rng.integers(1, 40)))
        _, _, pieces = pieces_of(any_tokenizer, ids)
        assert "".join(pieces) == any_tokenizer.decode(ids) and all(pieces)


def test_what_was_shown_stays(any_tokenizer, rng):
    """Every beginning of the pieces is a beginning of the text, whatever follows."""
    for _ in range(20):
        ids = random_ids(any_tokenizer, rng, 12)
        text = TextSoFar(any_tokenizer, ())
        shown = ""
        for place, token in enumerate(ids):
            text.push(token)
            shown += "".join(text.pieces)
            text.pieces.clear()
            for following in ([], random_ids(any_tokenizer, rng, 3)):
                assert any_tokenizer.decode(ids[: place + 1] + following).startswith(shown)


def test_text_is_shown_at_once(any_tokenizer):
    """After each token that ends at a character, all of the text stands there."""
    text, shown = TextSoFar(any_tokenizer, ()), ""
    ids = any_tokenizer.encode("was a was") if any_tokenizer.kind != "bpe" else any_tokenizer.encode("Alice was a b")
    single_bytes = {any_tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    for place, token in enumerate(ids):
        text.push(int(token))
        shown += "".join(text.pieces)
        text.pieces.clear()
        if int(token) not in single_bytes:
            assert shown == any_tokenizer.decode(ids[: place + 1])


def test_bytes_on_either_side_of_a_special_token_stand_together():
    tokenizer = sentencepiece()
    for between in ([], [tokenizer.end_id]):
        for data in (b"\x52\xbc", "é".encode()):
            ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
            ids = [ids[0], *between, ids[1]]
            assert "".join(pieces_of(tokenizer, ids)[2]) == tokenizer.decode(ids)


def test_added_tokens_are_what_decode_makes_of_them():
    """A byte-level decoder reads their letters as bytes, where all of them are letters of bytes."""
    shared = tiny_tokenizer()._inner
    inner = type(shared).from_str(shared.to_str())
    inner.add_tokens(["Ġfoo", "日本", "<x>", "é"])
    tokenizer = Tokenizer(inner)
    ids = [tokenizer.token_to_id(piece) for piece in ("Ġfoo", "日本", "<x>", "é", "Ġfoo")]
    assert tokenizer.decode(ids[:3]) == " foo日本<x>" and None not in ids
    assert "".join(pieces_of(tokenizer, ids)[2]) == tokenizer.decode(ids)


def test_half_a_character_is_held_back():
    tokenizer = tiny_tokenizer()
    text = TextSoFar(tokenizer, ())
    ids = [i for byte in "é🎉x".encode() for i in range(320) if tokenizer.piece_bytes(i) == bytes([byte])]
    assert len(ids) == 7
    seen = []
    for token in ids:
        text.push(token)
        seen.append("".join(text.pieces))
    assert seen == ["", "é", "é", "é", "é", "é🎉", "é🎉x"]


def test_stops_cut_the_text_wherever_tokens_end(any_tokenizer, rng):
    found = 0
    for _ in range(80):
        ids = random_ids(any_tokenizer, rng, 30)
        whole = any_tokenizer.decode(ids)
        if len(whole) < 8:
            continue
        start = int(rng.integers(0, len(whole) - 4))
        stops = [whole[start : start + int(rng.integers(1, 5))], "never there"]
        if "\ufffd" in stops[0]:
            continue
        has_stopped, count, pieces = pieces_of(any_tokenizer, ids, stops)
        assert has_stopped and "".join(pieces) == text_before_stops(whole, stops)
        # not a token later than it can be known
        assert not any(stop in any_tokenizer.decode(ids[: count - 1]) for stop in stops)
        found += 1
    assert found > 20


def test_the_beginning_of_a_stop_is_held_back():
    tokenizer = train_tokenizer("abcdx", "characters")
    text = TextSoFar(tokenizer, ["abc"])
    shown = []
    for letter in "xabababd":
        text.push(int(tokenizer.encode(letter)[0]))
        shown.append("".join(text.pieces))
    assert shown == ["x", "x", "x", "xab", "xab", "xabab", "xabab", "xabababd"]


def test_a_long_text_costs_the_same_for_each_token():
    """The tokens that are decoded again for a token do not grow with the text."""
    tokenizer = sentencepiece()
    longest = 0

    class Counting:
        piece_style, special_ids = tokenizer.piece_style, tokenizer.special_ids
        token_to_id = staticmethod(tokenizer.token_to_id)

        @staticmethod
        def decode(ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids)

    ids = np.random.default_rng(0).integers(257, tokenizer.vocab_size, 500).tolist()
    assert "".join(pieces_of(Counting(), ids)[2]) == tokenizer.decode(ids) and longest <= 2
