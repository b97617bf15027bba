"""Which documents calibrate and which evaluate: fixed for every text, so that no run can mix them.

A text without splits of its own is cut by document: in sorted order, the documents within the first 60 % of the
characters calibrate, the rest evaluates. Texts of the hub bring their own splits.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

import datasets

from kvbench.errors import KvbenchError
from kvbench.texts.registry import find
from kvbench.texts.sources import as_dataset, read_hub, read_whole

Split = Literal["calibration", "evaluation"]
CALIBRATION_SHARE = 0.6


def documents(text: str, split: Split) -> datasets.Dataset:
    """Documents of one split, columns ``id`` (unique over all texts) and ``text``, in fixed order.

    Raises:
        KvbenchError: unknown text or split, or a text with fewer than two documents.
        FetchError: the text cannot be fetched.
    """
    if split not in ("calibration", "evaluation"):
        raise KvbenchError(f"unknown split {split!r}; known: calibration, evaluation")
    entry = find(text)
    if entry.source == "hub":
        return read_hub(entry, entry.calibration_file if split == "calibration" else entry.evaluation_file)
    whole = [(name, body) for name, body in read_whole(entry) if body.strip()]
    if len(whole) < 2:
        raise KvbenchError(f"text {text} has {len(whole)} documents; two are needed, to calibrate and to evaluate")
    cut = _cut([len(body) for _, body in whole])
    return as_dataset(whole[:cut] if split == "calibration" else whole[cut:])


def _cut(lengths: list[int]) -> int:
    """How many of the documents, at least one and not all, lie within the calibration share of the characters."""
    within = sum(end <= CALIBRATION_SHARE * sum(lengths) for end in accumulate(lengths))
    return min(max(within, 1), len(lengths) - 1)
