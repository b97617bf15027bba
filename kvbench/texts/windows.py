"""Token windows of a text: what calibration passes read and what perplexity is measured on.

Calibration windows are taken from the start of the calibration split, evaluation windows from the end of the evaluation
split. Documents are joined by a blank line, so a window may hold the end of one and the start of the next, but never
two splits. A tokenizer that begins every text with a special token gets it at the start of every window.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.texts.splits import Split, documents

SEPARATOR = "\n\n"
MARGIN = 64
"""Tokens read beyond those needed: those next to a cut would depend on where it is."""
CHARACTERS_PER_TOKEN = 4
"""First guess of how much to read; a wrong one only costs a second try."""


@dataclass(frozen=True)
class Windows:
    """Token windows of one split, and what they are made of."""

    text: str
    split: Split
    ids: Tensor
    """``(count, length)`` int64."""
    document_ids: tuple[str, ...]
    """Documents that any window overlaps."""
    sha256: str
    """Of the ids."""


def windows(
    text: str, split: Split, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int = 0
) -> Windows:
    """Cut ``count`` windows of ``length`` tokens from a split.

    Args:
        text: registry name or path; ``"essays+pydoc"`` alternates the windows of both.
        split: ``"calibration"`` reads from its start, ``"evaluation"`` from its end.
        tokenizer: of the model that will read the windows.
        length: tokens in a window, with the special token that may begin it.
        count: windows.
        seed: which block of ``count`` windows: 0 is the first, 1 the next, so different seeds share no token.

    Raises:
        KvbenchError: unknown text, or a text too short; the message says how many tokens there are.
    """
    if length < 2 or count < 1 or seed < 0:
        raise KvbenchError(f"windows need length >= 2, count >= 1, seed >= 0; got {length}, {count}, {seed}")
    texts = text.split("+") if "+" in text else [text]
    shares = [len(range(i, count, len(texts))) for i in range(len(texts))]
    pairs = [(name, share) for name, share in zip(texts, shares, strict=True) if share]
    cuts = [_cut(name, split, tokenizer, length, share, seed) for name, share in pairs]
    ids = torch.stack([cuts[i % len(texts)][0][i // len(texts)] for i in range(count)])
    names = tuple(name for _, used in cuts for name in used)
    return Windows(text, split, ids, names, hashlib.sha256(ids.numpy().tobytes()).hexdigest())


def check_disjoint(calibration: Windows, evaluation: Windows) -> None:
    """Refuse a pair of windows that share a document.

    Raises:
        KvbenchError: they do; the message names one.
    """
    shared = sorted({*calibration.document_ids} & {*evaluation.document_ids})
    if shared:
        raise KvbenchError(
            f"calibration ({calibration.text}) and evaluation ({evaluation.text}) share {len(shared)} documents, "
            f"{shared[0]} among them; take calibration windows from the calibration split"
        )


def _cut(
    text: str, split: Split, tokenizer: PreTrainedTokenizerBase, length: int, count: int, seed: int
) -> tuple[Tensor, list[str]]:
    """Windows ``(count, length)`` of one text, and the ids of the documents they overlap."""
    prefix = _prefix(tokenizer)
    body = length - len(prefix)
    needed = body * count * (seed + 1)
    ids, owners = _read(text, split, tokenizer, needed)
    if len(ids) < needed:
        raise KvbenchError(
            f"text {text} has {len(ids)} tokens in its {split} split, {needed} are needed "
            f"({count} windows of {body}, block {seed}); lower the count, the length or the seed"
        )
    first = body * count * seed if split == "calibration" else len(ids) - needed
    span = slice(first, first + body * count)
    block = torch.tensor(ids[span]).view(count, body)
    starts = torch.tensor(prefix, dtype=torch.int64).expand(count, -1)
    return torch.cat([starts, block], dim=1), list(dict.fromkeys(owners[span]))


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer puts before every text, if it does."""
    ids = tokenizer("a").input_ids
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _read(text: str, split: Split, tokenizer: PreTrainedTokenizerBase, needed: int) -> tuple[list[int], list[str]]:
    """Token ids from the start (calibration) or up to the end (evaluation) of a split, and each token's document.

    Reads no more documents than ``needed`` tokens take, so that a huge data set is not tokenized whole.
    """
    rows = documents(text, split)
    characters = CHARACTERS_PER_TOKEN * (needed + MARGIN)
    while True:
        taken = _rows_for(rows, characters, split)
        chosen = range(taken) if split == "calibration" else range(len(rows) - taken, len(rows))
        ids, owners = _tokenize(rows.select(chosen), tokenizer)
        if taken == len(rows) or len(ids) >= needed + MARGIN:
            return ids, owners
        characters *= 2


def _rows_for(rows: Dataset, characters: int, split: Split) -> int:
    """How many documents, from the split's own end, hold that many characters."""
    order = range(len(rows)) if split == "calibration" else range(len(rows) - 1, -1, -1)
    for taken, index in enumerate(order, start=1):
        characters -= len(rows[index]["text"])
        if characters <= 0:
            return taken
    return len(rows)


def _tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[str]]:
    """Token ids of the joined documents, and the id of the document that each token begins in."""
    names, texts = list(rows["id"]), list(rows["text"])
    starts = [0, *accumulate(len(text) + len(SEPARATOR) for text in texts)]
    encoded = tokenizer(SEPARATOR.join(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    owners = [names[bisect_right(starts, first) - 1] for first, _ in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), owners
