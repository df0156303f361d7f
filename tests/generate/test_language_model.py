"""The face: prompts in, texts out; what is wrong is refused before any work begins."""

import json

import numpy as np
import pytest
from fake_decoder import FakeDecoder, greedy_tokens

from fastmixer.generate import Generation, LanguageModel
from fastmixer.text import Tokenizer

PROMPT = "Alice was beginning to get very tired"


def greedy(model, prompt, count):
    decoder = FakeDecoder(model.decoder.windows, model.config.context)
    return greedy_tokens(decoder, model.tokenize(prompt).tolist(), count)


def details(model, prompt=PROMPT, **options):
    options = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True, **options}
    return model.generate(prompt, return_details=True, **options)


def test_one_prompt_gives_one_text_a_list_gives_a_list(model):
    options = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    one = model.generate(PROMPT, **options)
    assert one == model.detokenize(greedy(model, PROMPT, 8))
    assert model.generate([PROMPT], **options) == [one]
    several = model.generate([PROMPT, "th", "The Rabbit"], **options)
    assert len(several) == 3 and several[0] == one
    samples = model.generate(PROMPT, n=3, seed=1, max_new_tokens=8, ignore_eos=True)
    assert len(set(samples)) == 3
    both = model.generate([PROMPT, "th"], n=3, seed=1, max_new_tokens=8, ignore_eos=True)
    assert both[0] == samples and len(both) == 2 and len(both[1]) == 3
    assert model.generate(PROMPT, seed=1, max_new_tokens=8, ignore_eos=True) == samples[0]


def test_prompts_of_ids(model):
    ids = model.tokenize(PROMPT)
    expected = details(model).tokens
    for prompt in (ids, ids.astype(np.int32), ids.tolist(), tuple(ids.tolist())):
        assert details(model, prompt).tokens == expected
    assert [one.tokens for one in details(model, [ids, ids.tolist()])] == [expected] * 2


def test_details(model):
    one = details(model, logprobs=2)
    assert isinstance(one, Generation) and one.tokens == greedy(model, PROMPT, 20)
    assert one.text == model.detokenize(one.tokens) and one.finish_reason == "length"
    assert one.prompt_tokens == len(model.tokenize(PROMPT)) and one.reused_tokens == 0 and one.sampled_tokens == 20
    assert one.prefill_seconds > 0 and one.decode_seconds > 0
    assert one.prefill_tokens_per_second == pytest.approx(one.prompt_tokens / one.prefill_seconds)
    assert one.decode_tokens_per_second == pytest.approx(19 / one.decode_seconds)
    assert [each.token for each in one.logprobs] == one.tokens and details(model).logprobs is None
    for each in one.logprobs:
        assert each.top[0] == (each.token, each.logprob) and each.top[1][1] <= each.logprob < 0 and len(each.top) == 2


def test_logprobs_are_those_of_the_model_before_any_option(model):
    one = details(model, temperature=3.0, seed=1, top_k=50, logit_bias={3: 2.0}, logprobs=0, max_new_tokens=6)
    ids = model.tokenize(PROMPT).tolist() + one.tokens
    logits = model.logits(ids).astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for place, each in enumerate(one.logprobs, one.prompt_tokens - 1):
        assert each.logprob == pytest.approx(exact[place, each.token], abs=1e-5) and each.top == ()


def test_seeds(model):
    def write(seed):
        return model.generate("Alice", max_new_tokens=24, temperature=1.0, seed=seed, ignore_eos=True)

    assert write(1) == write(1) != write(2)
    assert write(None) != write(None)


def test_the_end_of_a_text(make_model):
    end = make_model().tokenizer.end_id
    model = make_model(favourite=lambda position: end if position == 12 else 70)
    prompt = [5] * 10
    one = details(model, prompt, ignore_eos=False)
    assert (one.tokens, one.finish_reason, one.sampled_tokens) == ([70] * 3, "eos", 4)
    on = details(model, prompt)
    assert on.tokens == [70] * 3 + [end] + [70] * 16 and on.text == model.detokenize([70] * 19)


def test_stop_tokens(make_model):
    model = make_model(favourite=lambda position: 100 + position)
    one = details(model, [5] * 10, stop=[115, "never"])
    assert one.tokens == list(range(109, 115)) and one.finish_reason == "stop" and one.sampled_tokens == 7


@pytest.mark.parametrize("stop", ["<|endoftext|>", ["zz", "<|endoftext|>"]])
def test_a_special_token_stops_by_its_text(make_model, stop):
    """Text leaves such tokens out, so that a stop string would never be found in it."""
    end = make_model().tokenizer.end_id
    model = make_model(favourite=lambda position: end if position == 12 else 70)
    one = details(model, [5] * 10, stop=stop)
    assert (one.tokens, one.finish_reason) == ([70] * 3, "stop")
    with model.stream([5] * 10, stop=stop, temperature=0, ignore_eos=True) as stream:
        assert "".join(stream) == one.text and stream.details.finish_reason == "stop"


def test_stop_strings_wherever_tokens_end(model):
    whole = details(model, max_new_tokens=60)
    for start in range(2, 20, 3):
        stop = whole.text[start : start + 4]
        if "\ufffd" in stop:
            continue
        one = details(model, max_new_tokens=60, stop=["@@@", stop])
        assert one.text == whole.text[: whole.text.find(stop)] and one.finish_reason == "stop"
        assert whole.tokens[: len(one.tokens)] == one.tokens and stop in model.detokenize(one.tokens)
    assert details(model, max_new_tokens=60, stop="@@@").text == whole.text


def test_bias_and_penalties(model):
    first = details(model).tokens[0]
    assert first not in details(model, logit_bias={first: -np.inf}).tokens
    assert details(model, logit_bias={9: 100.0}).tokens == [9] * 20
    assert details(model, logit_bias={"e": 100.0}).text == "e" * 20
    for penalty in ({"presence_penalty": 1000.0}, {"frequency_penalty": 1000.0}):
        tokens = details(model, logit_bias={9: 100.0}, **penalty).tokens
        assert len(set(tokens)) == 20 and tokens[0] == 9
    extremes = {"logit_bias": {9: 1e30, 10: -1e30}, "frequency_penalty": -1e30, "presence_penalty": -1e30}
    assert details(model, repetition_penalty=1e-6, **extremes).tokens == [9] * 20
    ids = [7] * 5
    assert details(model, ids, logit_bias={7: 100.0}, repetition_penalty=1e6).tokens[0] != 7


def test_the_makers_defaults_stand_behind_what_is_given(make_model):
    model = make_model(generation={"temperature": 0.0, "max_new_tokens": 5, "eos_token_id": 3})
    assert model.generate(PROMPT, ignore_eos=True) == model.detokenize(greedy(model, PROMPT, 5))
    assert len(model.generate(PROMPT, return_details=True, max_new_tokens=7, ignore_eos=True).tokens) == 7


def test_rows_without_pieces_are_never_written(make_model):
    model = make_model(vocab=400, favourite=lambda position: 350)
    assert max(details(model, temperature=2.0, seed=0, max_new_tokens=50).tokens) < 320
    assert max(details(model).tokens) < 320


def test_the_context_is_an_end(make_model):
    model = make_model(context=48)
    one = details(model, [3] * 40, max_new_tokens=100)
    assert one.finish_reason == "length" and len(one.tokens) == 48 - 40 + 1
    assert len(details(model, [3] * 48, max_new_tokens=100).tokens) == 1


# ---- streams ----


@pytest.mark.parametrize("stop", [None, ["e", "zzz"], "qu"])
def test_streamed_pieces_make_the_text(model, stop):
    options = {"max_new_tokens": 60, "temperature": 0.9, "seed": 2, "stop": stop}
    stream = model.stream(PROMPT, **options)
    pieces = list(stream)
    assert "".join(pieces) == model.generate(PROMPT, **options) == stream.details.text and all(pieces)
    assert stream.details.finish_reason in ("length", "stop", "eos") and not list(stream)


def test_pieces_come_as_they_are_written(model):
    with model.stream(PROMPT, max_new_tokens=40, temperature=0, ignore_eos=True) as stream:
        calls = len(model.decoder.calls)
        next(stream)
        assert 1 <= len(model.decoder.calls) - calls <= 5 and stream.details.finish_reason == ""
    assert model.scheduler.active == 0 and not list(stream)


def test_a_stream_that_nobody_wants_is_let_go(model):
    stream = model.stream(PROMPT, max_new_tokens=100, ignore_eos=True)
    next(stream)
    assert model.scheduler.pool.held
    del stream
    assert not model.scheduler.step() and model.scheduler.pool.held == 0


def test_several_streams_side_by_side(model):
    options = {"max_new_tokens": 30, "temperature": 0, "ignore_eos": True}
    streams = [model.stream(prompt, **options) for prompt in (PROMPT, "th", "x")]
    texts = ["", "", ""]
    for _ in range(200):
        for place, stream in enumerate(streams):
            texts[place] += next(stream, "")
    assert texts == [model.generate(prompt, **options) for prompt in (PROMPT, "th", "x")]
    assert max(count for count, _ in model.decoder.calls) == 3


# ---- chat ----

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[{{ name | default('assistant') }}] {% endif %}"
)


@pytest.fixture
def chat_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "chat_template": TEMPLATE})
    )
    return Tokenizer.load(tmp_path)


def test_a_chat_is_its_template_and_its_next_turn_computes_what_is_new(make_model, chat_tokenizer):
    model = make_model(tokenizer=chat_tokenizer)
    options = {"temperature": 0, "max_new_tokens": 30, "ignore_eos": True, "return_details": True}
    messages = [{"role": "user", "content": "Who are you, and what do you make of all this? " * 3}]
    first = model.chat(messages, **options)
    text = f"[user] {messages[0]['content']}<|endoftext|>[assistant] "
    assert first.tokens == greedy(model, text, 30) and first.prompt_tokens == len(model.tokenize(text))
    messages += [{"role": "assistant", "content": "I am."}, {"role": "user", "content": "And?"}]
    second = model.chat(messages, **options)
    assert first.prompt_tokens // 64 * 64 == second.reused_tokens > 0
    assert model.chat(messages[:1], template={"name": "model"}, **options).tokens == greedy(
        model, text.replace("assistant", "model"), 30
    )
    assert "".join(model.chat_stream(messages[:1], temperature=0, max_new_tokens=30, ignore_eos=True)) == first.text


def test_a_begun_answer_goes_on(make_model, chat_tokenizer):
    model = make_model(tokenizer=chat_tokenizer)
    options = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True, "return_details": True}
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I am "}]
    begun = "[user] Who?<|endoftext|>[assistant] I am "
    assert model.chat(messages, template={"continue_final_message": True}, **options).tokens == greedy(model, begun, 10)
    no_answer = model.chat(messages[:1], template={"add_generation_prompt": False}, **options)
    assert no_answer.tokens == greedy(model, "[user] Who?<|endoftext|>", 10)


@pytest.mark.parametrize(
    ("template", "error", "text"),
    [
        ({"messages": []}, ValueError, "render_chat: messages is a name that the template has already; .*"),
        ({"add_generation_prompt": 1}, TypeError, "render_chat: add_generation_prompt must be True or False; got 1"),
        ("{{ x }}", TypeError, "chat: template must be a dict of what the chat template asks for; got '{{ x }}'"),
        ({1: 2}, TypeError, "chat: template must be a dict of .*"),
        ({"tokenizer": 1, "self": 2}, None, ""),
    ],
)
def test_what_else_a_template_may_be_given(make_model, chat_tokenizer, template, error, text):
    model = make_model(tokenizer=chat_tokenizer)
    messages = [{"role": "user", "content": "Hello"}]
    if error is None:
        assert model.chat(messages, template=template, max_new_tokens=2, ignore_eos=True)
        return
    with pytest.raises(error, match=f"^{text}$"):
        model.chat(messages, template=template)
    assert model.decoder.calls == []


def test_a_chat_ends_at_the_end_of_a_turn(make_model, chat_tokenizer):
    end = chat_tokenizer.end_id
    model = make_model(tokenizer=chat_tokenizer, favourite=lambda position: end if position % 10 == 0 else 70)
    one = model.chat([{"role": "user", "content": "Hello"}], temperature=0, return_details=True)
    assert one.finish_reason == "eos" and len(one.tokens) < 10 and set(one.tokens) <= {70}


# ---- numbers ----


def test_logits(make_model):
    model = make_model(context=600)
    ids = np.random.default_rng(0).integers(0, 320, 300)
    found = model.logits(ids)
    assert found.shape == (300, 320) and found.dtype == np.float32
    pages, tables = model.decoder.new_pages([5]), np.arange(5, dtype=np.int32)[None, None]
    expected, _ = model.decoder.forward(ids, np.array([0, 300]), np.array([0]), pages, tables, np.arange(300))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(model.logits(ids[:20].reshape(2, 10))[1], model.logits(ids[10:20]))
    np.testing.assert_array_equal(model.logits("Alice"), model.logits(model.tokenize("Alice")))


@pytest.mark.parametrize(
    ("count", "window", "stride"), [(50, None, None), (300, 64, 16), (300, 64, None), (97, 30, 29), (2, 9, 3)]
)
def test_perplexity(make_model, count, window, stride):
    model = make_model(context=600)
    ids = np.random.default_rng(1).integers(0, 320, count)
    found = model.perplexity(ids, window=window, stride=stride)
    size, step = window or 600, stride or (window or 600) // 2
    losses, start, done = [], 0, 1
    while done < count:
        part = ids[start : start + size]
        logits = model.logits(part).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        losses += [-logs[place - start - 1, ids[place]] for place in range(done, start + len(part))]
        start, done = start + step, start + len(part)
    assert len(losses) == count - 1 and found == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_info(make_model):
    model = make_model(cache_tokens=256)
    found = model.info()
    assert found["name"] == "fake" and found["context"] == 256 and found["architecture"]["layers"] == 2
    assert found["weights"] == {"asked": "auto", "matrices": {"int8": 1, "int4": 1}, "bytes": 1000}
    assert found["cache"] == {"tokens": 256, "dtype": "bfloat16", "bytes": 4 * 6400}
    assert found["tokenizer"]["end"] == ["<|endoftext|>"] and found["tokenizer"]["vocab"] == 320
    json.dumps(found)


def test_reset_cache(model):
    prompt = [5] * 100
    assert [details(model, prompt).reused_tokens for _ in range(2)] == [0, 64]
    model.reset_cache()
    assert details(model, prompt).reused_tokens == 0


# ---- what is wrong ----


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.generate(""), ValueError, "generate: prompt 0 is empty; it must have at least one token"),
        (lambda m: m.generate(["A", ""]), ValueError, "generate: prompt 1 is empty; it must have at least one token"),
        (lambda m: m.generate([]), ValueError, "generate: the list of prompts is empty"),
        (lambda m: m.generate(["A", 3]), TypeError, r"generate: prompt 1 must be a string or ids, integers \[tokens\]; got int"),
        (lambda m: m.generate(3), TypeError, "generate: prompt must be a string, ids, or a list of those; got int"),
        (lambda m: m.generate([1.5]), TypeError, r"generate: prompt 0 must be a string or ids, integers \[tokens\]; got float"),
        (lambda m: m.generate([1, 999]), IndexError, r"generate: prompt 0\[1\] = 999 is out of range; expected 0..319"),
        (lambda m: m.generate([1, 2**70]), IndexError, rf"generate: prompt 0\[1\] = {2**70} is out of range; expected 0..319"),
        (lambda m: m.generate(np.array([1, 2**63 + 5], np.uint64)), IndexError, rf"generate: prompt 0\[1\] = {2**63 + 5} is out of range; .*"),
        (lambda m: m.logits(np.zeros((0, 3), int)), ValueError, r"logits: prompt has no rows; it must be ids \[batch, tokens\]; got shape \(0, 3\)"),
        (lambda m: m.logits(np.zeros((2, 0), int)), ValueError, "logits: prompt is empty; it must have at least one token"),
        (lambda m: m.generate("A", logit_bias=dict.fromkeys(range(320), -np.inf)), ValueError, "generate: logit_bias rules out every token, .*"),
        (lambda m: m.generate("A", stop="x<|endoftext|>"), ValueError, r"generate: stop 'x<\|endoftext\|>' holds the special token .*"),
        (lambda m: m.generate([5] * 257), ValueError, "generate: prompt 0 has 257 tokens, more than the model's context of 256"),
        (lambda m: m.generate("A", n=0), ValueError, "generate: n must be >= 1; got 0"),
        (lambda m: m.generate("A", logit_bias={"qqqq": 1}), ValueError, "generate: logit_bias names 'qqqq', which is 4 tokens; it must be one"),
        (lambda m: m.generate("A", temprature=1), TypeError, "generate: there is no option 'temprature'; .*"),
        (lambda m: m.stream("A", n=2), ValueError, "stream: n must be 1; got 2"),
        (lambda m: m.stream(["A"]), TypeError, "stream: prompt must be a string or ids; got list"),
        (lambda m: m.stream(""), ValueError, "stream: prompt is empty; it must have at least one token"),
        (lambda m: m.stream("A", top_p=2), ValueError, "generate: top_p must be > 0 and <= 1; got 2"),
        (lambda m: m.chat([{"role": "user", "content": "A"}]), ValueError, "chat: fake has no chat template; use generate"),
        (lambda m: m.logits([5] * 257), ValueError, "logits: the prompt has 257 tokens, more than the model's context of 256"),
        (lambda m: m.perplexity("e"), ValueError, "perplexity: text must have at least two tokens; got 1"),
        (lambda m: m.perplexity("e", window=300), ValueError, "perplexity: window must be <= 256, the model's context; got 300"),
        (lambda m: m.perplexity("e", window=30, stride=30), ValueError, "perplexity: stride must be < 30, the window; got 30"),
    ],
)  # fmt: skip
def test_errors_before_work_begins(model, call, error, text):
    with pytest.raises(error, match=f"^{text}$"):
        call(model)
    assert model.decoder.calls == [] and model.scheduler.active == 0


def test_a_list_with_one_wrong_prompt_begins_nothing(model):
    with pytest.raises(ValueError, match="prompt 2 has 300 tokens"):
        model.generate([[5] * 10, [6] * 10, [7] * 300])
    assert model.scheduler.active == 0 and model.decoder.calls == []


def test_without_a_tokenizer_there_are_ids_alone(make_model):
    model = make_model(tokenizer=None)
    one = model.generate([1, 2, 3], return_details=True, temperature=0, max_new_tokens=5)
    assert one.text == "" and one.tokens == greedy_tokens(FakeDecoder(), [1, 2, 3], 5)
    for call in (
        lambda: model.generate("A", return_details=True),
        lambda: model.generate([1, 2]),
        lambda: model.stream([1, 2]),
        lambda: model.chat([]),
        lambda: model.tokenize("A"),
        lambda: model.perplexity("A"),
    ):
        with pytest.raises(ValueError, match="fake has no tokenizer|need a tokenizer; the model has none"):
            call()
    assert model.info()["tokenizer"] is None and model.scheduler.active == 0


def test_a_name_does_nothing_to_a_terminal(tokenizer):
    assert LanguageModel(FakeDecoder(), tokenizer, "a\x1b[2J\nb é").name == "a\\x1b[2J\\nb é"


def test_wrong_defaults_are_named_at_once(tokenizer):
    with pytest.raises(ValueError, match="^generate: top_p must be > 0 and <= 1; got 7$"):
        LanguageModel(FakeDecoder(), tokenizer, "fake", {"top_p": 7})
    with pytest.raises(ValueError, match="^Scheduler: cache_tokens must be >= 64; got 3$"):
        LanguageModel(FakeDecoder(), tokenizer, cache_tokens=3)
