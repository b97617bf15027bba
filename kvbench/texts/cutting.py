"""Cutting token windows out of one text: the starts of documents, or pieces of documents joined by a blank line.

Both tokenize no more than they need, so that a huge data set is not tokenized whole.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kvbench.errors import KvbenchError
from kvbench.texts.splits import Split, documents, joined_test

SEPARATOR = "\n\n"
MARGIN = 64
"""Tokens read beyond those needed: those next to a cut would depend on where it is."""
CHARACTERS_PER_TOKEN = 4
"""First guess of how much to read; a wrong one only costs a second try."""
TOKENS_PER_CHARACTER = 4
"""At most: a tokenizer of bytes needs that many for the rarest characters."""


@dataclass(frozen=True)
class Cut:
    """Windows of one text."""

    ids: Tensor
    """``(count, length)`` int64."""
    document_ids: tuple[str, ...]
    """One a window from :func:`cut_documents`; all that the windows overlap from :func:`cut_joined`."""


def cut_documents(text: str, split: Split, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Cut:
    """The first ``length`` tokens of the first ``count`` documents that have so many.

    Raises:
        KvbenchError: there are fewer such documents.
    """
    prefix = _prefix(tokenizer)
    body = length - len(prefix)
    windows: list[list[int]] = []
    names: list[str] = []
    for row in documents(text, split):
        if len(windows) == count or TOKENS_PER_CHARACTER * len(row["text"]) < body:
            break  # documents come in order of falling length
        ids = _first(row["text"], tokenizer, body)
        if len(ids) == body:
            windows.append([*prefix, *ids])
            names.append(row["id"])
    if len(windows) < count:
        raise KvbenchError(
            f"text {text} has {len(windows)} documents of at least {length} tokens in its {split} split, {count} are "
            "needed, one for each window; ask for fewer or shorter ones, or alternate texts (essays+docstrings)"
        )
    return Cut(torch.tensor(windows), tuple(names))


def cut_joined(text: str, split: Split, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Cut:
    """Windows from the start of the split's joined documents; one may hold the end of a document and the next's start.

    Raises:
        KvbenchError: the split has fewer tokens.
    """
    return _cut_rows(text, f"{split} split", (documents(text, split), SEPARATOR), tokenizer, length, count)


def cut_test_file(text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> Cut:
    """Windows from the start of the joined test rows, the way published perplexities are measured.

    Raises:
        KvbenchError: there are fewer tokens.
    """
    return _cut_rows(text, "test rows", joined_test(text), tokenizer, length, count)


def cut_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int, most: int) -> Tensor:
    """Up to ``most`` windows (count, ``length``) from the start of joined texts; fewer tokens make one shorter window.

    Raises:
        KvbenchError: there is no token.
    """
    prefix = _prefix(tokenizer)
    body = length - len(prefix)
    ids, _ = _tokenize([""] * len(texts), texts, SEPARATOR, tokenizer)
    if not ids:
        raise KvbenchError("the texts hold no token")
    body = min(body, len(ids))
    count = min(len(ids) // body, most)
    return _with_prefix(prefix, torch.tensor(ids[: body * count]).view(count, body))


def _cut_rows(
    text: str,
    part: str,
    rows: tuple[datasets.Dataset, str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
) -> Cut:
    """``count`` windows of ``length`` tokens from the start of rows, given with what joins them."""
    prefix = _prefix(tokenizer)
    body = length - len(prefix)
    ids, owners = _read(*rows, tokenizer, body * count)
    if len(ids) < body * count:
        raise KvbenchError(
            f"text {text} has {len(ids)} tokens in its {part}, {body * count} are needed ({count} windows of {body}); "
            "lower the count or the length"
        )
    block = torch.tensor(ids[: body * count]).view(count, body)
    return Cut(_with_prefix(prefix, block), tuple(dict.fromkeys(owners[: body * count])))


def _with_prefix(prefix: list[int], block: Tensor) -> Tensor:
    """``block`` (count, tokens) behind the tokens that begin every window."""
    return torch.cat([torch.tensor(prefix, dtype=torch.int64).expand(len(block), -1), block], dim=1)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that the tokenizer puts before every text, if it does."""
    ids = tokenizer("a").input_ids
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def _first(text: str, tokenizer: PreTrainedTokenizerBase, needed: int) -> list[int]:
    """The first ``needed`` token ids of a document, or all if it has fewer."""
    characters = CHARACTERS_PER_TOKEN * (needed + MARGIN)
    while True:
        ids = tokenizer(text[:characters], add_special_tokens=False, verbose=False)["input_ids"]
        if characters >= len(text) or len(ids) >= needed + MARGIN:
            return list(ids[:needed])
        characters *= 2


def _read(
    rows: datasets.Dataset, separator: str, tokenizer: PreTrainedTokenizerBase, needed: int
) -> tuple[list[int], list[str]]:
    """Token ids from the start of the joined rows, and the id of the row that each token is of."""
    characters = CHARACTERS_PER_TOKEN * (needed + MARGIN)
    while True:
        stops = list(accumulate(len(body) for body in rows["text"]))
        taken = min(bisect_right(stops, characters) + 1, len(rows))
        ids, owners = _tokenize(rows["id"][:taken], rows["text"][:taken], separator, tokenizer)
        if taken == len(rows) or len(ids) >= needed + MARGIN:
            return ids, owners
        characters *= 2


def _tokenize(
    names: list[str], texts: list[str], separator: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[str]]:
    """Token ids of the joined texts, and the name of the one that each token begins in."""
    starts = [0, *accumulate(len(text) + len(separator) for text in texts)]
    encoded = tokenizer(separator.join(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    owners = [names[bisect_right(starts, first) - 1] for first, _ in encoded["offset_mapping"]]
    return list(encoded["input_ids"]), owners
