"""A needle in an essay haystack: does the model still find one sentence through the compressed cache?

The single-needle task of RULER (``niah_single_2``: essay haystack, words → numbers), with the essays at hand and the
model's chat template around it: RULER-style, not score-comparable.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError

_NEEDLE = "One of the special magic numbers for {key} is: {value}."
_QUESTION = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n{context}\nWhat is the special magic number for {key} mentioned in the provided text?"
)
_ANSWER = "The special magic number for {key} mentioned in the provided text is"
_KEYS = ("quiet-harbor", "amber-lantern", "hollow-meadow", "brisk-canyon", "velvet-orchard", "silent-compass")


@dataclass(frozen=True)
class Needle:
    """A prompt that ends right before the answer, and the answer: a seven-digit number."""

    prompt: str
    answer: str

    def found_in(self, completion: str) -> bool:
        """RULER's ``string_match_all`` for one reference."""
        return self.answer in completion


def needle(tokenizer: PreTrainedTokenizerBase, haystack: str, tokens: int, depth: float, seed: int = 0) -> Needle:
    """A needle prompt of at most ``tokens`` tokens, the needle at ``depth`` (0 = start, 1 = end) of ``haystack``.

    Raises:
        KvbenchError: the haystack is too short, or ``tokens`` leave no room for it.
    """
    choose = random.Random(seed)
    key, value = choose.choice(_KEYS), str(choose.randrange(10**6, 10**7))
    sentences = haystack.replace("\n", " ").split(". ")
    low, high = 0, len(sentences)
    while high - low > 1:  # the most sentences that still fit
        middle = (low + high) // 2
        prompt = _prompt(tokenizer, sentences[:middle], depth, key, value)
        low, high = (middle, high) if len(tokenizer(prompt).input_ids) <= tokens else (low, middle)
    if low < 2:
        raise KvbenchError(f"{tokens} tokens leave no room for a haystack; ask for more")
    if high == len(sentences) and len(sentences) < tokens / 100:
        raise KvbenchError(f"the haystack is too short for {tokens} tokens ({len(sentences)} sentences)")
    return Needle(_prompt(tokenizer, sentences[:low], depth, key, value), value)


def _prompt(tokenizer: PreTrainedTokenizerBase, sentences: list[str], depth: float, key: str, value: str) -> str:
    place = round(depth * len(sentences))
    hidden = [*sentences[:place], _NEEDLE.format(key=key, value=value).rstrip("."), *sentences[place:]]
    question = _QUESTION.format(context=". ".join(hidden) + ".", key=key)
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": question}]
        question = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    return question + _ANSWER.format(key=key)
