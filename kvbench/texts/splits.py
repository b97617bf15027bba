"""Which documents calibrate, which are tuned on and which are reported: fixed for every text, so no run can mix them.

A text without splits of its own is dealt by document: in order of falling length the documents go to the splits of
``PATTERN`` in turn, so that the test split gets three of five and every split has long and short ones. Hub texts keep
the files they are published in; one that has no file for development gives every fourth test document to it.
"""

from __future__ import annotations

from typing import Literal, get_args

import datasets

from kvbench.errors import KvbenchError
from kvbench.texts.registry import TextEntry, find
from kvbench.texts.sources import as_dataset, read_hub, read_rows, read_whole

Split = Literal["calibration", "development", "test"]
"""Fits and statistics read calibration, searches and tuning studies development, reported figures test."""

PATTERN: tuple[Split, ...] = ("test", "test", "calibration", "test", "development")
TEST_FILE_PATTERN: tuple[Split, ...] = ("test", "test", "test", "development")
"""How a hub text's test file is dealt where no file is for development."""


def documents(text: str, split: Split) -> datasets.Dataset:
    """Documents of one split, columns ``id`` (unique over all texts) and ``text``.

    Those that calibrate come in their text's order, the others in order of falling length (ties by id), so that the
    first few are the ones that are long enough for any window.

    Raises:
        KvbenchError: unknown text or split, or a text with too few documents for the split.
        FetchError: the text cannot be fetched.
    """
    if split not in get_args(Split):
        raise KvbenchError(f"unknown split {split!r}; known: {', '.join(get_args(Split))}")
    entry = find(text)
    if entry.source == "hub":
        return _published(entry, split)
    rows = _distinct(as_dataset(read_whole(entry)))
    needed = 1 + max(PATTERN.index("test"), PATTERN.index("calibration"), PATTERN.index(split))
    if len(rows) < needed:
        raise KvbenchError(
            f"text {text} has {len(rows)} documents; {needed} are needed for a {split} split beside the others"
        )
    return _dealt(rows, split, PATTERN)


def joined_test(text: str) -> tuple[datasets.Dataset, str]:
    """What published perplexities are measured on: all rows of the test file, columns ``id`` and ``text``, and what
    joins them. Of texts without files of their own it is the documents of the test split.

    Raises:
        KvbenchError: as :func:`documents`.
    """
    entry = find(text)
    if entry.source == "hub":
        return read_rows(entry, entry.test_file), entry.joined_by
    return documents(text, "test"), entry.joined_by


def _published(entry: TextEntry, split: Split) -> datasets.Dataset:
    """A split of a hub text, from the file that is for it."""
    if split == "calibration":
        return read_hub(entry, entry.calibration_file)
    if split == "development" and entry.development_file:
        return _dealt(_distinct(read_hub(entry, entry.development_file)), split, (split,))
    pattern: tuple[Split, ...] = ("test",) if entry.development_file else TEST_FILE_PATTERN
    return _dealt(_distinct(read_hub(entry, entry.test_file)), split, pattern)


def _distinct(rows: datasets.Dataset) -> datasets.Dataset:
    """Without empty documents and repeated ones: a document under two names could land in two splits."""
    first = {body: index for index, body in reversed([*enumerate(rows["text"])]) if body.strip()}
    return rows.select(sorted(first.values()))


def _dealt(rows: datasets.Dataset, split: Split, pattern: tuple[Split, ...]) -> datasets.Dataset:
    """The rows that ``pattern``, repeated, deals to ``split``."""
    names, lengths = list(rows["id"]), [len(body) for body in rows["text"]]
    falling = sorted(range(len(rows)), key=lambda index: (-lengths[index], names[index]))
    chosen = [index for place, index in enumerate(falling) if pattern[place % len(pattern)] == split]
    return rows.select(sorted(chosen) if split == "calibration" else chosen)
