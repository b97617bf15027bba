"""RULER's metrics: an answer is right as far as the references stand in it, whatever stands around them.

Source: Hsieh et al. 2024 (arXiv 2404.06654), ``scripts/eval/synthetic/constants.py`` of the authors' code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")

Metric = Callable[[str, Sequence[str]], float]


def match_all(answer: str, references: Sequence[str]) -> float:
    """The share of ``references`` in ``answer``, 0…1; case does not count."""
    return sum(_contains(answer, reference) for reference in references) / len(references)


def match_any(answer: str, references: Sequence[str]) -> float:
    """1 if any of ``references`` is in ``answer``, else 0: they are spellings of the same."""
    return float(any(_contains(answer, reference) for reference in references))


def _contains(answer: str, reference: str) -> bool:
    return reference.lower() in _CONTROL.sub("\n", answer).strip().lower()


METRICS: dict[str, Metric] = {"all": match_all, "any": match_any}
"""By the names that tasks use: RULER's ``string_match_all`` and ``string_match_part``."""
