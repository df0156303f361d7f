"""The strings that tokenizers are compared on: the same ones wherever, whenever. random.Random(seed) is fixed by Python."""

import random
import unicodedata

SEED = 20261123
COUNT = 10_000
BLOCK = 100  # strings that one stored hash covers

_RANGES = {
    "ascii": [(0x20, 0x7E)],
    "digits": [(0x30, 0x39)],
    "latin": [(0xA1, 0x17F), (0x41, 0x5A), (0x61, 0x7A)],
    "greek and cyrillic": [(0x391, 0x3A1), (0x3A3, 0x3C9), (0x410, 0x44F)],
    "other scripts": [(0x5D0, 0x5EA), (0x627, 0x64A), (0x915, 0x939), (0x93E, 0x94D), (0xE01, 0xE2E), (0x10D0, 0x10F0)],
    "cjk": [(0x4E00, 0x9FA5), (0x3041, 0x3096), (0x30A1, 0x30FA), (0xAC00, 0xD7A3), (0x3001, 0x3002)],
    "emoji": [(0x1F600, 0x1F64F), (0x1F300, 0x1F320), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D), (0xFE0F, 0xFE0F)],
    "marks": [(0x300, 0x345), (0x61, 0x66)],
    "numbers": [(0x660, 0x669), (0xB2, 0xB3), (0xBC, 0xBE), (0x2160, 0x216B), (0xFF10, 0xFF19)],
    "signs": [(0x2010, 0x2027), (0x20A0, 0x20AC), (0x2190, 0x21FF), (0x2200, 0x22FF), (0xA1, 0xBF)],
    "control": [(0x01, 0x08), (0x0E, 0x1F), (0x7F, 0x9F)],
    "letter numbers and titles": [(0x1C4, 0x1CC), (0x1F1, 0x1F3), (0x2B0, 0x2B8), (0x1D400, 0x1D433)],
}
# SmolLM2's vocabulary has no piece at all for these: transformers drops them before it merges, llama.cpp afterwards.
SMOLLM2_LACKS = "\x04\x06\x13\x14\x16\x1d"

_SPACES = " \t\n\r\x0b\x0c\xa0\u2003\u3000\u2028\x85"
_WORDS = (
    "the The don't I'LL we've HTMLParser camelCase snake_case naïve Straße x2 3.14 1,234,567 https://a.b/c?d=e&f=1 "
    "a@b.org def __init__(self): return {'k': [0x1F]} // /* */ <|x|> </p> $5.00 50% #tag ... ?! -- ~/.bashrc C++ !!"
).split(" ")


def random_strings(count=COUNT, seed=SEED):
    """count strings of up to some 60 characters: words, runs of spaces, and characters of every kind."""
    source = random.Random(seed)
    return ["".join(_part(source) for _ in range(source.randint(1, 6))) for _ in range(count)]


def for_cutting(name, texts):
    """texts as llama.cpp and the patterns that a model was trained with agree on them (tokenizer.ggml.pre is `name`).

    llama.cpp composes no characters; where a mark stands before a capital it cuts Tekken's words otherwise, which shows where
    a whole word is a piece that no merge makes; DeepSeek LLM's pattern for spaces at the end it applies to the wide one too.
    """
    if name in ("mpt", "command-r", "qwen2", "qwen35"):
        return [unicodedata.normalize("NFC", text) for text in texts]
    if name == "tekken":
        return [text.replace("HTMLParser", "") for text in texts]
    return without("\u3000", texts) if name == "deepseek-llm" else texts


def without(characters, texts):
    """texts with none of some characters."""
    return [text.translate(dict.fromkeys(map(ord, characters))) for text in texts]


def _part(source):
    kind = source.random()
    if kind < 0.25:
        return source.choice(_WORDS) + source.choice(["", " ", "  ", "\n"])
    if kind < 0.4:
        return "".join(
            source.choice(_SPACES if source.random() < 0.3 else " \n\t") for _ in range(source.randint(1, 5))
        )
    if kind < 0.45:
        return source.choice("aA1 .\n-=") * source.randint(1, 20)
    ranges = source.choice(list(_RANGES.values()))
    return "".join(chr(source.randint(*source.choice(ranges))) for _ in range(source.randint(1, 10)))
