"""Slips: few, small, and the same for the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvbench.texts.perturbed import perturbed

WORDS = st.lists(st.text("abcdefgh,.", min_size=4, max_size=9), min_size=1, max_size=60)


@given(words=WORDS, share=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_the_wanted_share_of_words_has_a_slip(words: list[str], share: float, seed: int) -> None:
    text = " ".join(words)
    moved = perturbed(text, share, seed).split(" ")
    assert len(moved) == len(words)
    slips = [(before, after) for before, after in zip(words, moved, strict=True) if before != after]
    assert len(slips) <= max(1, round(share * len(words))), "swapping two equal letters is no slip"
    assert all(abs(len(before) - len(after)) <= 1 for before, after in slips)
    assert perturbed(text, share, seed) == " ".join(moved)


def test_a_text_without_words_stays_as_it_is() -> None:
    assert perturbed("  ", 0.5, 0) == "  "
