"""The same promises over real decoders: the reference's, the compiled one's, and SmolLM2 itself."""

import signal
import threading
import time

import numpy as np
import pytest
from random_models import random_source

from fastmixer.generate import LanguageModel
from fastmixer.kernels import select
from fastmixer.model.decoder import Decoder
from fastmixer.text.assets import alice_text
from fastmixer.weights.source import open_source

OPTIONS = {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True}
PROMPTS = ["Alice was", "th", "The Rabbit said to the Queen " * 6, "Off with her head"]


@pytest.fixture(params=sorted({"reference", select.implementation("decoder")}))
def implementation(request):
    with select.use_kernels(request.param):
        yield request.param


@pytest.fixture
def make_model(implementation):
    """make_model(kind): a LanguageModel over a random model with float32 weights and cache."""

    def make(kind="llama", cache_dtype="float32", **options):
        source = random_source(kind, context=320)
        decoder = Decoder(source, "float32", progress=False)
        return LanguageModel(decoder, source.tokenizer, kind, cache_dtype=cache_dtype, **options)

    return make


def greedy_tokens(model, prompt, count):
    """Each token from the logits of the whole text so far."""
    ids = model.tokenize(prompt).tolist()
    start = len(ids)
    for _ in range(count):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_texts_are_those_of_the_whole_text_at_every_token(make_model, kind):
    model = make_model(kind)
    expected = [greedy_tokens(model, prompt, 24) for prompt in PROMPTS]
    for options in ({}, {"speculative": 4}, {"deterministic": True}):
        found = model.generate(PROMPTS, return_details=True, **OPTIONS, **options)
        assert [one.tokens for one in found] == expected
    again = model.generate(PROMPTS[2], return_details=True, **OPTIONS)
    assert again.tokens == expected[2] and again.reused_tokens >= 64 and model.scheduler.pool.held == 0


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_window_and_a_cache_that_is_too_small_for_all(make_model, kind):
    model = make_model(kind, cache_tokens=256)
    prompts = [PROMPTS[2][place:] for place in range(5)]
    expected = [model.generate(prompt, **OPTIONS) for prompt in prompts]
    model.reset_cache()
    assert model.generate(prompts, **OPTIONS) == expected
    assert model.scheduler.pool.held == 0


def test_deterministic_numbers_do_not_depend_on_company(make_model):
    model = make_model("llama", "bfloat16")
    options = {**OPTIONS, "logprobs": 5, "deterministic": True, "return_details": True}
    alone = [model.generate(prompt, **options).logprobs for prompt in PROMPTS]
    together = model.generate(PROMPTS, **options)
    assert [one.logprobs for one in together] == alone
    stream = model.stream("Something else", max_new_tokens=60, ignore_eos=True)
    next(stream)
    assert [one.logprobs for one in model.generate(PROMPTS, **options)] == alone
    stream.close()
    assert model.scheduler.pool.held == 0


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
def test_a_reused_beginning_says_what_a_new_one_says(make_model, cache_dtype):
    model = make_model("gemma2", cache_dtype)
    first = model.generate(PROMPTS[2], return_details=True, logprobs=0, **OPTIONS)
    again = model.generate(PROMPTS[2], return_details=True, logprobs=0, **OPTIONS)
    assert (first.reused_tokens, again.reused_tokens > 0) == (0, True)
    for one, other in zip(first.logprobs, again.logprobs, strict=True):
        assert one.token == other.token and abs(one.logprob - other.logprob) < 1e-3


def test_perplexity_is_that_of_the_logits(make_model):
    model = make_model("llama")
    ids = model.tokenize(PROMPTS[2])
    logits = model.logits(ids).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    exact = np.exp(-logs[np.arange(len(ids) - 1), ids[1:]].mean())
    assert model.perplexity(PROMPTS[2]) == pytest.approx(exact, rel=1e-4)


def test_smollm2(smollm2_path):
    source = open_source(smollm2_path)
    model = LanguageModel(
        Decoder(source, progress=False), source.tokenizer, source.name, source.generation, cache_tokens=1024
    )
    # without its second sentence, float32 prefers the right answer's first token by 0.08 nats only
    messages = [{"role": "user", "content": "What is the capital of France? Answer in a sentence."}]
    first = model.chat(messages, temperature=0, return_details=True)
    assert "Paris" in first.text and first.finish_reason == "eos"
    assert "".join(model.chat_stream(messages, temperature=0)) == first.text
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
    second = model.chat(messages, temperature=0, return_details=True)
    # some 40 tokens of the first turn, 7 of the answer: no full page before the second
    assert "Rome" in second.text and second.reused_tokens == 0
    messages += [{"role": "assistant", "content": second.text}, {"role": "user", "content": "And of Spain?"}]
    third = model.chat(messages, temperature=0, return_details=True)
    assert "Madrid" in third.text and third.reused_tokens == 64
    prompts = ["Once upon a time", "The capital of France is", "def add(a, b):\n    return"]
    plain = model.generate(prompts, max_new_tokens=24, temperature=0)
    assert plain == [model.generate(prompt, max_new_tokens=24, temperature=0) for prompt in prompts]
    assert plain == model.generate(prompts, max_new_tokens=24, temperature=0, speculative=5)
    assert model.scheduler.pool.held == 0


@pytest.mark.parametrize("cache", ["bfloat16", "int8"])
def test_guesses_and_what_is_reused_change_nothing_that_smollm2_writes(smollm2_path, cache):
    """Not even a bit of a logarithm, in a cache that rounds, where a prompt's last piece is short or long."""
    source = open_source(smollm2_path)
    model = LanguageModel(Decoder(source, progress=False), source.tokenizer, source.name, cache_dtype=cache)
    options = {"max_new_tokens": 40, "ignore_eos": True, "logprobs": 1, "return_details": True}
    for start, length in ((15000, 700), (30000, 515), (45000, 538)):
        prompt = alice_text()[start : start + length]
        model.reset_cache()
        greedy, drawn = (model.generate(prompt, temperature=heat, seed=1, **options) for heat in (0, 0.8))
        assert drawn.reused_tokens > 0
        assert model.generate(prompt, temperature=0.8, seed=1, **options).logprobs == drawn.logprobs
        for speculative in (4, 40):
            guessed = model.generate(prompt, temperature=0, speculative=speculative, **options)
            assert guessed.tokens == greedy.tokens and guessed.logprobs == greedy.logprobs


@pytest.mark.parametrize("prompt", ["Once upon a time", "Once upon a time " * 1000])
def test_ctrl_c_stops_smollm2(smollm2_path, prompt):
    """While it writes, and while it reads a long prompt."""
    source = open_source(smollm2_path)
    model = LanguageModel(Decoder(source, progress=False), source.tokenizer, source.name, cache_tokens=6000)
    options = {"max_new_tokens": 900, "temperature": 0, "ignore_eos": True}
    pressed = []

    def press():
        pressed.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0.3, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate(prompt, **options)
    seconds = time.perf_counter() - pressed[0]
    assert seconds < 1, f"it took {seconds:.2f} s to stop"  # a few ms on a machine that does nothing else
    assert model.scheduler.active == 0 and model.scheduler.pool.held == 0
    assert model.generate("2 + 2 =", max_new_tokens=3, temperature=0)
    print(f"stopped after {seconds * 1000:.0f} ms")
