"""A transformer in training writes what its logits say; batches, stops, seeds and streams keep their promises."""

import re

import numpy as np
import pytest

import fastmixer as fm
from fastmixer.model import ModelConfig
from fastmixer.text.assets import alice_text

PROMPTS = ["Alice was", "th", "The Rabbit said", "\n"]


@pytest.fixture(scope="module")
def model():
    """A model of characters with large random weights: what it writes is not sensible, but varied."""
    tokenizer = fm.train_tokenizer(alice_text()[:5000], "characters")
    config = ModelConfig(
        vocab=tokenizer.vocab_size, context=48, dim=32, layers=2, heads=4, kv_heads=2, positions="rotary", norm="rmsnorm"
    )
    model = fm.Transformer(config, seed=4, tokenizer=tokenizer)
    rng = np.random.default_rng(5)
    for name in model.parameters:
        if model.parameters[name].ndim == 2:
            model.parameters[name][...] = rng.standard_normal(model.parameters[name].shape) * 0.4
    return model


def _greedy(model, prompt, count):
    """Without a cache: the whole sequence again for every token."""
    ids = list(model.tokenizer.encode(prompt))
    for _ in range(count):
        logits = model.logits(np.array([ids]))[0, -1, : model.tokenizer.vocab_size]
        ids.append(int(logits.argmax()))
    return ids[-count:]


def test_greedy_is_the_likeliest_token_each_time(model):
    details = model.generate("Alice was", max_new_tokens=20, temperature=0, ignore_eos=True, return_details=True)
    assert details.tokens == _greedy(model, "Alice was", 20)
    assert details.text == model.tokenizer.decode(details.tokens) and details.finish_reason == "length"
    assert details.prefill_tokens_per_second > 0 and details.decode_tokens_per_second > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_writes_what_its_prompts_write_alone(model, temperature):
    """Sampling depends on (seed, place in the list), so alone a prompt stands in its place among others."""
    options = {"max_new_tokens": 12, "temperature": temperature, "seed": 3}
    together = model.generate(PROMPTS, **options)
    assert isinstance(together, list) and len(together) == 4
    for index, prompt in enumerate(PROMPTS):
        others = ["so"] * index + [prompt]
        assert model.generate(others, **options)[index] == together[index]
    assert model.generate(PROMPTS[0], **options) == together[0]


def test_seeds(model):
    def write(seed):
        return model.generate("Alice", max_new_tokens=24, temperature=1.0, seed=seed, ignore_eos=True)

    assert write(1) == write(1) != write(2)
    assert write(None) != write(None)


def test_stop_strings_end_the_text_and_are_left_out(model):
    whole = model.generate("Alice", max_new_tokens=30, temperature=0, ignore_eos=True)
    stop = whole[10:12]
    details = model.generate("Alice", max_new_tokens=30, temperature=0, ignore_eos=True, stop=["@@", stop], return_details=True)
    assert details.text == whole[: whole.find(stop)] and details.finish_reason == "stop"
    assert model.generate("Alice", max_new_tokens=30, temperature=0, ignore_eos=True, stop="@@") == whole


def test_the_end_of_text_ends_it(model):
    table = model.parameters["embedding.weight"]
    before = table.copy()
    try:
        table[model.tokenizer.end_id] = 50 * np.abs(table).max() * np.sign(model.hidden(model.tokenizer.encode("Alice")[None])[0, -1])
        details = model.generate("Alice", temperature=0, return_details=True)
        assert (details.text, details.tokens, details.finish_reason) == ("", [], "eos")
        assert len(model.generate("Alice", temperature=0, ignore_eos=True, max_new_tokens=3, return_details=True).tokens) == 3
    finally:
        table[...] = before


@pytest.mark.parametrize("stop", [None, ["e", "zzz"], "qu"])
def test_streamed_pieces_make_the_text(model, stop):
    options = {"max_new_tokens": 30, "temperature": 0.9, "seed": 2, "stop": stop}
    stream = model.stream("Alice", **options)
    pieces = list(stream)
    assert "".join(pieces) == model.generate("Alice", **options) == stream.details.text and all(pieces)
    assert stream.details.finish_reason in ("length", "stop", "eos")


def test_a_stream_never_shows_half_a_character():
    tokenizer = fm.train_tokenizer("naïve café " * 40, "bpe", 258)
    config = ModelConfig(vocab=tokenizer.vocab_size, context=64, dim=8, layers=1, heads=1)
    model = fm.Transformer(config, seed=0, tokenizer=tokenizer)
    options = {"max_new_tokens": 60, "temperature": 3.0, "seed": 1}
    pieces = list(model.stream("é", **options))
    assert "".join(pieces) == model.generate("é", **options)


def test_the_context_is_an_end(model):
    prompt = "A" * 40
    details = model.generate(prompt, max_new_tokens=100, temperature=0, ignore_eos=True, return_details=True)
    assert details.finish_reason == "length" and len(details.tokens) == 48 - 40 + 1
    with pytest.raises(ValueError, match=r"^generate: prompt 1 has 49 tokens, more than the model's context of 48$"):
        model.generate(["A", "A" * 49])


def test_repetition_penalty(model):
    tokens = model.generate("A", max_new_tokens=30, temperature=0, ignore_eos=True, repetition_penalty=1e6, return_details=True).tokens
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.generate("A", max_new_tokens=0), ValueError, "generate: max_new_tokens must be >= 1; got 0"),
        (lambda m: m.generate("A", temperature=-1.0), ValueError, "generate: temperature must be >= 0; got -1.0"),
        (lambda m: m.generate("A", top_p=0.0), ValueError, "generate: top_p must be > 0 and <= 1; got 0.0"),
        (lambda m: m.generate("A", stop=""), ValueError, "generate: stop must be strings that are not empty; got ''"),
        (lambda m: m.generate([]), ValueError, "generate: the list of prompts is empty"),
        (lambda m: m.generate(["A", 3]), TypeError, "generate: prompt 1 must be a string or ids, integers [tokens]; got int"),
        (lambda m: m.stream(["A"]), TypeError, "stream: prompt must be a string or ids; got list"),
    ],
)
def test_bad_input(model, call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(model)
