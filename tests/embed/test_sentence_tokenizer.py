"""A folder's tokenizer as transformers reads it: fields of tokenizer_config.json that count before what tokenizer.json says."""

import json
import re

import numpy as np
import pytest
from tiny_encoders import TINY, WORDS, write_json
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fastmixer.embed.sentence_tokenizer import SentenceTokenizer
from fastmixer.text.conventions import Conventions
from fastmixer.text.tokenizer import Tokenizer as TextTokenizer

OWN = ("The", "THE", "cafe", "café", "日", "本", "日本")  # what texts become with one setting or another
CUT = " ".join(["the", "bank", "by", "river", "was"])
TEXT = "The THE café 日本"


@pytest.fixture
def folder(tmp_path):
    """make(settings, **fields): a folder of a BERT with this tokenizer_config.json and fields over tokenizer.json's."""

    def make(settings=None, kind="bert", **fields):
        vocab = {word: i for i, word in enumerate((*WORDS, *OWN))}
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=fields.pop("lowercase", True))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        values = json.loads((tmp_path / "tokenizer.json").read_text())
        write_json(tmp_path / "tokenizer.json", {**values, **fields})
        write_json(tmp_path / "config.json", json.loads((TINY / kind / "config.json").read_text()))
        if settings is not None:
            write_json(tmp_path / "tokenizer_config.json", settings)
        return tmp_path

    return make


def opened(folder, **options):
    return SentenceTokenizer(folder, vocab=96, context=64, **options)


def words_of(tokenizer, text=TEXT):
    return [(*WORDS, *OWN)[i] for i in tokenizer.encode("test", [text]).ids[0][1:-1]]


LOWER, AS_IT_IS = ["the", "the", "cafe", "日", "本"], ["The", "THE", "café", "日", "本"]
SETTINGS = [  # tokenizer_config.json, model, whether tokenizer.json lowers, the words of TEXT
    (None, "bert", True, LOWER),
    (None, "bert", False, LOWER),  # BertTokenizer's default counts
    (None, "mpnet", False, LOWER),
    (None, "modernbert", False, AS_IT_IS),
    (None, "roberta", False, AS_IT_IS),
    ({"do_lower_case": False}, "bert", True, AS_IT_IS),
    ({"do_lower_case": False, "tokenizer_class": "BertTokenizerFast"}, "roberta", True, AS_IT_IS),
    ({"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}, "bert", True, LOWER),
    ({"do_lower_case": True, "tokenizer_class": "TokenizersBackend"}, "bert", False, AS_IT_IS),
    ({"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, "modernbert", True, LOWER),
    ({"strip_accents": False}, "distilbert", True, ["the", "the", "café", "日", "本"]),
    ({"do_lower_case": False, "strip_accents": True}, "bert", True, ["The", "THE", "cafe", "日", "本"]),
    ({"tokenize_chinese_chars": False}, "bert", True, ["the", "the", "cafe", "日本"]),
]


@pytest.mark.parametrize(("settings", "kind", "lowercase", "words"), SETTINGS)
def test_words_are_what_the_fields_say(folder, settings, kind, lowercase, words):
    assert words_of(opened(folder(settings, kind, lowercase=lowercase))) == words


@pytest.mark.parametrize(("settings", "kind", "lowercase", "words"), SETTINGS)
def test_these_words_are_those_of_transformers(folder, settings, kind, lowercase, words):
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here", minversion="5.0")
    oracle = transformers.AutoTokenizer.from_pretrained(folder(settings, kind, lowercase=lowercase))
    ids = oracle(TEXT).input_ids
    if kind != "roberta" or settings is not None:  # whose class makes a tokenizer of its own kind of this one
        assert [(*WORDS, *OWN)[i] for i in ids[1:-1]] == words


def test_lowering_spares_special_tokens(folder):
    place = folder(kind="modernbert", lowercase=False)
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.add_special_tokens(["[SEP]"])
    tokenizer.save(str(place / "tokenizer.json"))
    assert words_of(opened(place, lower_case=True), "THE [SEP] Bank") == ["the", "[SEP]", "bank"]


TRUNCATION = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    ("settings", "truncation", "words"),
    [
        ({}, None, ["the", "bank", "by"]),
        ({"truncation_side": "left"}, None, ["by", "river", "was"]),
        ({}, TRUNCATION, ["by", "river", "was"]),
        ({"truncation_side": "right"}, TRUNCATION, ["the", "bank", "by"]),
    ],
)
def test_texts_are_cut_on_the_side_that_the_files_say(folder, settings, truncation, words):
    place = folder(settings, truncation=truncation)
    assert words_of(opened(place, max_length=5), CUT) == words
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here", minversion="5.0")
    oracle = transformers.AutoTokenizer.from_pretrained(place)
    assert [WORDS[i] for i in oracle(CUT, truncation=True, max_length=5).input_ids[1:-1]] == words


@pytest.mark.parametrize(
    ("settings", "kind", "has_types"),
    [
        (None, "bert", True),
        ({"model_input_names": ["input_ids", "attention_mask"]}, "bert", False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "bert", False),
        (
            {"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids", "token_type_ids"]},
            "bert",
            True,
        ),
        ({"tokenizer_class": "BertTokenizerFast"}, "distilbert", True),
        (None, "mpnet", False),
        ({}, "modernbert", False),
    ],
)
def test_types_tell_a_pair_apart_where_the_class_has_them(folder, settings, kind, has_types):
    place = folder(settings, kind)
    (types,) = opened(place).encode("test", [("the bank", "river")]).types
    np.testing.assert_array_equal(types, [0, 0, 0, 0, 1, 1] if has_types else [0] * 6)
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here", minversion="5.0")
    found = transformers.AutoTokenizer.from_pretrained(place)("the bank", "river")
    assert ("token_type_ids" in found) is has_types


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"do_lower_case": None}, None),
        ({"do_lower_case": 1}, "do_lower_case must be true or false; got 1"),
        ({"strip_accents": "no"}, "strip_accents must be true or false; got 'no'"),
        ({"tokenize_chinese_chars": 0}, "tokenize_chinese_chars must be true or false; got 0"),
        ({"truncation_side": "middle"}, "truncation_side must be one of right, left; got 'middle'"),
        ({"model_input_names": "input_ids"}, "model_input_names must be a list of names; got 'input_ids'"),
    ],
)
def test_fields_that_are_wrong_are_named(folder, settings, match):
    place = folder(settings)
    if match is None:
        opened(place)
        return
    with pytest.raises(ValueError, match=f"^{re.escape(str(place / 'tokenizer_config.json'))}: {re.escape(match)}$"):
        opened(place)


@pytest.mark.parametrize("single", [["$A", "[SEP]"], ["[CLS]", "$A", "[SEP]"], ["$A"], None])
@pytest.mark.parametrize("adds_begin", [False, True])
def test_a_language_models_tokenizer_keeps_what_its_file_adds(folder, single, adds_begin):
    inner = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    if single is None:
        inner.post_processor = processors.ByteLevel()
    else:
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = TextTokenizer(inner, Conventions((3,), begin_id=2, adds_begin=adds_begin))
    (ids,) = SentenceTokenizer.of(tokenizer, 64).encode("test", ["the"]).ids
    begun = ["[CLS]", "$A"] if adds_begin else ["$A"]
    expected = begun if single in (["$A"], None) else single
    assert [WORDS[i] for i in ids] == ["the" if piece == "$A" else piece for piece in expected]
