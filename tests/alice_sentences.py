"""Real sentences: those of Alice in Wonderland, as fastmixer carries it."""

import re
from importlib.resources import files


def sentences(count):
    """The first sentences of 5 to 60 words, in the text's order; lines are joined, nothing else is changed."""
    text = (files("fastmixer") / "assets" / "alice29.txt").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", text)
    found = [sentence for sentence in re.split(r"(?<=[.!?])['\"]? ", text) if 5 <= len(sentence.split()) <= 60]
    assert len(found) >= count
    return found[:count]
