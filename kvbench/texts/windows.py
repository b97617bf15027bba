"""Token windows of a text: what calibration passes read and what quality is measured on.

A window of the test or the development split is the first tokens of a document of its own, so windows are as
independent as documents are. Calibration windows are cut from the joined documents of their split: what matters there
is how much is read. A tokenizer that begins every text with a special token gets it at the start of every window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.texts.cutting import Cut, cut_documents, cut_joined, cut_test_file, cut_texts
from kvbench.texts.splits import Split


@dataclass(frozen=True)
class Windows:
    """Token windows of one split, and what they are made of."""

    text: str
    split: Split
    ids: Tensor
    """``(count, length)`` int64."""
    document_ids: tuple[str, ...]
    """test, development: the document of each window, in their order; calibration: all that any window overlaps."""
    sha256: str
    """Of the ids."""


def windows(text: str, split: Split, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Windows:
    """Cut ``count`` windows of ``length`` tokens from a split; the windows of a smaller count begin a larger one's.

    Args:
        text: registry name or path; ``"essays+pydoc"`` alternates the windows of both.
        split: ``"calibration"`` is read joined from its start; of the others, window i is the start of the i-th
            document, in order of falling length, that has ``length`` tokens.
        tokenizer: of the model that will read the windows.
        length: tokens in a window, with the special token that may begin it.
        count: windows.

    Raises:
        KvbenchError: unknown text, or too few tokens or documents in it; the message says how many there are.
    """
    if length < 2 or count < 1:
        raise KvbenchError(f"windows need length >= 2, count >= 1; got {length}, {count}")
    texts = text.split("+") if "+" in text else [text]
    if len({*texts}) < len(texts):
        raise KvbenchError(f"text {text} names one text twice: its windows would be there twice")
    cut = cut_joined if split == "calibration" else cut_documents
    shares = [len(range(i, count, len(texts))) for i in range(len(texts))]
    cuts = [cut(name, split, tokenizer, length, share) for name, share in zip(texts, shares, strict=True) if share]
    ids = torch.stack([cuts[i % len(texts)].ids[i // len(texts)] for i in range(count)])
    return Windows(text, split, ids, _names(cuts, split, count), hashlib.sha256(ids.numpy().tobytes()).hexdigest())


def joined_windows(text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Windows:
    """``count`` windows of ``length`` tokens cut one after the other from the joined test rows: what published
    perplexities are measured on. They are not independent of each other.

    Raises:
        KvbenchError: unknown text, or too few tokens in it.
    """
    if length < 2 or count < 1:
        raise KvbenchError(f"windows need length >= 2, count >= 1; got {length}, {count}")
    cut = cut_test_file(text, tokenizer, length, count)
    digest = hashlib.sha256(cut.ids.numpy().tobytes()).hexdigest()
    return Windows(text, "test", cut.ids, cut.document_ids, digest)


def windows_of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, most: int) -> Tensor:
    """Token ids (count, length) of ``texts``, joined by a blank line and cut into up to ``most`` windows; one shorter
    window where there are fewer than ``length`` tokens.

    Raises:
        KvbenchError: no text, or nothing in it.
    """
    if not texts or not all(isinstance(each, str) for each in texts):
        raise KvbenchError("texts must be one or more strings")
    return cut_texts(list(texts), tokenizer, length, most)


def check_disjoint(calibration: Windows, scored: Windows) -> None:
    """Refuse a pair of windows that share a document.

    Raises:
        KvbenchError: they do; the message names one.
    """
    shared = sorted({*calibration.document_ids} & {*scored.document_ids})
    if shared:
        raise KvbenchError(
            f"calibration ({calibration.text}) and {scored.split} ({scored.text}) share {len(shared)} documents, "
            f"{shared[0]} among them; take calibration windows from the calibration split"
        )


def _names(cuts: list[Cut], split: Split, count: int) -> tuple[str, ...]:
    if split == "calibration":
        return tuple(name for cut in cuts for name in cut.document_ids)
    return tuple(cuts[i % len(cuts)].document_ids[i // len(cuts)] for i in range(count))
