"""How text is cut before byte-level pieces are merged, by the name a GGUF file gives it (tokenizer.ggml.pre).

Every name is one that llama.cpp's converter writes; the patterns are those of the tokenizer.json files the models were
trained with. They are applied one after another, each cutting what the one before left: its matches and what lies between.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cutting:
    """patterns: regular expressions, in order; ignore_merges: a whole word of the vocabulary is taken at once;
    adds_begin: what a file that does not say means; nfc: text is first composed (Unicode NFC)."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_begin: bool = False
    nfc: bool = False


_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _SPACES  # signs with the lines that end after them, then spaces
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_LLAMA3 = f"{_CONTRACTION}|{_WORD}|\\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = f"{_CONTRACTION}|{_WORD}|\\p{{N}}|{_TAIL}"
# Words whose capitals come first: "HTMLParser" is cut before "Parser".
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = [r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+", r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"]
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
_TEKKEN = "|".join([*_CASED, r"\p{N}", _CASED_TAIL])
_O200K = "|".join([*(word + _CONTRACTION + "?" for word in _CASED), r"\p{N}{1,3}", _CASED_TAIL])
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|" + _SPACES
)
# DeepSeek LLM lists letters that have a case: code points, hexadecimal.
_DEEPSEEK_LETTERS = """
    41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1
    3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a
    1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4
    1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128
    212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d
    a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f
    104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943
"""
_DEEPSEEK_SIGNS = r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+"
_CJK = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


def _deepseek_words() -> str:
    ranges = [part.split("-") for part in _DEEPSEEK_LETTERS.split()]
    return r"\s?[" + "".join("-".join(rf"\x{{{point}}}" for point in points) for points in ranges) + "]+"


_PLAIN = Cutting((_GPT2,))
_DIGITS = Cutting((r"\p{N}", _GPT2))
_LIKE_LLAMA3 = Cutting((_LLAMA3,), ignore_merges=True, adds_begin=True)

CUTTINGS: dict[str, Cutting] = {
    "default": Cutting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "trillion", "exaone4", "gigachat", "mellum"), _PLAIN),
    **dict.fromkeys(("mpt", "olmo"), Cutting((_GPT2,), nfc=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "command-r": Cutting((r"\p{N}", _GPT2), nfc=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LIKE_LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Cutting((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Cutting((_QWEN2,), nfc=True)),
    **dict.fromkeys(("hunyuan", "megrez", "stablelm2"), Cutting((_QWEN2,))),
    "qwen35": Cutting(
        (_QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),), nfc=True
    ),
    "deepseek-llm": Cutting(("[\r\n]", _deepseek_words(), _DEEPSEEK_SIGNS, r"\s+$", _CJK, r"\p{N}+")),
    "deepseek-coder": Cutting(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        Cutting((r"\p{N}{1,3}", r"[\x{4e00}-\x{9fa5}\x{3040}-\x{30ff}]+", _DEEPSEEK3)),
    ),
    "falcon": Cutting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "tekken": Cutting((_TEKKEN,), ignore_merges=True, adds_begin=True),
    **dict.fromkeys(("gpt-4o", "o200k", "llama4", "kanana2"), Cutting((_O200K,))),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), Cutting((_BLOOM,))),
    "viking": Cutting((_BLOOM, r"\p{N}")),
}


def pre_tokenizer(cutting: Cutting) -> Any:
    """The `tokenizers` pre-tokenizer that cuts so and writes bytes as letters."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cutting.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
