"""Options that are wrong are refused before any work begins, by name."""

import math

import numpy as np
import pytest

from fastmixer.generate.options import Options, bias_arrays, make_options, with_stop_ids


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"max_new_tokens": 0}, ValueError, "generate: max_new_tokens must be >= 1; got 0"),
        ({"max_new_tokens": 1.5}, TypeError, "generate: max_new_tokens must be an integer; got float"),
        ({"temperature": -1}, ValueError, "generate: temperature must be >= 0; got -1"),
        ({"temperature": math.nan}, ValueError, "generate: temperature must be >= 0; got nan"),
        ({"top_k": -1}, ValueError, "generate: top_k must be >= 0; got -1"),
        ({"top_p": 0}, ValueError, "generate: top_p must be > 0 and <= 1; got 0"),
        ({"min_p": 1.1}, ValueError, "generate: min_p must be >= 0 and <= 1; got 1.1"),
        ({"repetition_penalty": 0}, ValueError, "generate: repetition_penalty must be >= 1e-06 and <= 1000000.0; got 0"),
        ({"repetition_penalty": 1e38}, ValueError, "generate: repetition_penalty must be .*; got 1e[+]38"),
        ({"repetition_penalty": 1e-45}, ValueError, "generate: repetition_penalty must be .*; got 1e-45"),
        ({"presence_penalty": math.inf}, ValueError, r"generate: presence_penalty must be >= -1e\+30 and <= 1e\+30; got inf"),
        ({"frequency_penalty": -1e39}, ValueError, "generate: frequency_penalty must be .*; got -1e[+]39"),
        ({"frequency_penalty": "1"}, TypeError, "generate: frequency_penalty must be a number; got str"),
        ({"logit_bias": [1]}, TypeError, "generate: logit_bias must be a dict; got list"),
        ({"logit_bias": {1.5: 1}}, TypeError, "generate: a token of logit_bias must be an integer; got float"),
        ({"logit_bias": {-1: 1}}, ValueError, "generate: a token of logit_bias must be >= 0; got -1"),
        ({"logit_bias": {1: math.inf}}, ValueError, r"generate: logit_bias of 1 must be >= -1e\+30 and <= 1e\+30; got inf"),
        ({"logit_bias": {"a": 1e39}}, ValueError, "generate: logit_bias of 'a' must be .*; got 1e[+]39"),
        ({"seed": -1}, ValueError, "generate: seed must be >= 0; got -1"),
        ({"seed": "a"}, TypeError, "generate: seed must be an integer; got str"),
        ({"stop": ""}, ValueError, "generate: stop must be strings that are not empty; got ''"),
        ({"stop": ["a", ""]}, ValueError, r"generate: stop must be strings that are not empty; got \['a', ''\]"),
        ({"stop": ["a", 1.5]}, TypeError, "generate: a stop token must be an integer; got float"),
        ({"stop": 1.5}, TypeError, "generate: stop must be strings or token ids; got float"),
        ({"stop": b"ab"}, TypeError, "generate: stop must be strings or token ids; got bytes"),
        ({"stop": {"a": 1}}, TypeError, "generate: stop must be strings or token ids; got dict"),
        ({"stop": -2}, ValueError, "generate: a stop token must be >= 0; got -2"),
        ({"ignore_eos": 1}, TypeError, "generate: ignore_eos must be True or False; got 1"),
        ({"deterministic": None}, TypeError, "generate: deterministic must be True or False; got None"),
        ({"logprobs": 21}, ValueError, "generate: logprobs must be <= 20; got 21"),
        ({"logprobs": -1}, ValueError, "generate: logprobs must be >= 0; got -1"),
        ({"n": 0}, ValueError, "generate: n must be >= 1; got 0"),
        ({"n": 2000}, ValueError, "generate: n must be <= 1024; got 2000"),
        ({"speculative": -1}, ValueError, "generate: speculative must be >= 0; got -1"),
        (
            {"temprature": 1},
            TypeError,
            "generate: there is no option 'temprature'; there are max_new_tokens, temperature, ",
        ),
    ],
)
def test_wrong_options(given, error, text):
    with pytest.raises(error, match=f"^{text}"):
        make_options({}, given)


def test_what_is_given_goes_before_the_defaults():
    options = make_options({"temperature": 0.5, "top_k": 3}, {"top_k": 4})
    assert (options.temperature, options.top_k, options.top_p) == (0.5, 4, 1.0)


def test_stops_are_strings_and_ids():
    assert Options().stops == () and Options(stop="a").stops == ("a",) and Options(stop=3).stop_ids == {3}
    mixed = Options(stop=["a", 7, "bc"])
    assert mixed.stop_texts == ("a", "bc") and mixed.stop_ids == {7}
    assert Options(stop=np.int64(3)).stop_ids == Options(stop=[np.int32(3)]).stop_ids == {3}
    several = Options(stop={"a", 7})
    assert several.stop_texts == ("a",) and several.stop_ids == {7}


def test_the_text_of_a_special_token_stands_for_its_id(tokenizer):
    end = tokenizer.end_id
    found = with_stop_ids(Options(stop=["<|endoftext|>", "a", 5]), tokenizer, 320)
    assert found.stop_ids == {end, 5} and found.stop_texts == ("<|endoftext|>", "a")
    plain = Options(stop=["a", 5])
    assert with_stop_ids(plain, tokenizer, 320) is plain is with_stop_ids(plain, None, 320)
    text = (
        r"^generate: stop '<\|endoftext\|>\\n' holds the special token '<\|endoftext\|>' among other text, but special tokens "
        "never come as text together with others; give that token alone$"
    )
    with pytest.raises(ValueError, match=text):
        with_stop_ids(Options(stop="<|endoftext|>\n"), tokenizer, 320)
    with pytest.raises(ValueError, match=r"^generate: stop names token 320, but ids are 0\.\.319$"):
        with_stop_ids(Options(stop=320), tokenizer, 320)


def test_a_special_token_that_the_model_has_no_row_for_stops_as_letters(tokenizer):
    """Gemma 3's <image_soft_token>, say."""
    for stop in ("<|endoftext|>", "<|endoftext|>\n"):
        plain = Options(stop=stop)
        assert with_stop_ids(plain, tokenizer, tokenizer.end_id) is plain


def test_biases_by_id_and_by_text(tokenizer):
    the = int(tokenizer.encode("e")[0])
    ids, values = bias_arrays(Options(logit_bias={5: 1.5, "e": -math.inf, np.int64(6): 2}), tokenizer, 320)
    assert ids.tolist() == [5, the, 6] and values.tolist() == [1.5, -math.inf, 2] and values.dtype == np.float32
    special = bias_arrays(Options(logit_bias={"<|endoftext|>": 1}), tokenizer, 320)[0]
    assert special.tolist() == [tokenizer.end_id]


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (320, "generate: logit_bias names token 320, but ids are 0..319"),
        ("xqzw", r"generate: logit_bias names 'xqzw', which is \d tokens; it must be one"),
        ("", "generate: logit_bias names '', which is 0 tokens; it must be one"),
    ],
)
def test_unknown_tokens_of_a_bias(tokenizer, token, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        bias_arrays(Options(logit_bias={token: 1}), tokenizer, 320)


def test_a_bias_that_leaves_nothing(tokenizer):
    bias = dict.fromkeys(range(320), -math.inf)
    with pytest.raises(ValueError, match=r"^generate: logit_bias rules out every token, 0\.\.319; one must be left$"):
        bias_arrays(Options(logit_bias=bias), tokenizer, 320)
    assert len(bias_arrays(Options(logit_bias={**bias, 7: -1e30}), tokenizer, 320)[0]) == 320


def test_text_in_a_bias_needs_a_tokenizer():
    with pytest.raises(ValueError, match="^generate: logit_bias names 'a', but the model has no tokenizer; give ids$"):
        bias_arrays(Options(logit_bias={"a": 1}), None, 320)
