"""From prompts to text: sequences that share a decoder's steps and its cache, sampled and streamed as they asked.

options.py: how to write, and what came of it; sampler.py: a token from logits; speculative.py: guesses; pages.py: who holds
which page; memory.py: how many there can be; sequence.py: one prompt on its way; scheduler.py: steps for all of them;
text_so_far.py, stream.py: text as it comes; language_model.py: the face.
"""

from fastmixer.generate.language_model import LanguageModel
from fastmixer.generate.options import Generation, Options, TokenLogprob
from fastmixer.generate.scheduler import Scheduler
from fastmixer.generate.stream import AsyncTextStream, TextStream

__all__ = ["AsyncTextStream", "Generation", "LanguageModel", "Options", "Scheduler", "TextStream", "TokenLogprob"]
