"""Greedy answers to a batch, each until it is done."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers import Cache

from kvbench.errors import KvbenchError
from kvbench.measure.arms import Arm
from kvbench.models.loading import LoadedModel


def last_tokens(loaded: LoadedModel) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model's own generation stops at."""
    config = loaded.model.generation_config
    tokens = None if config is None else config.eos_token_id
    given = [*(tokens if isinstance(tokens, list) else [tokens]), loaded.tokenizer.eos_token_id]
    return {token for token in given if token is not None}


def greedy(
    arm: Arm, cache: Cache, ids: Tensor, most: int, last: set[int], enough: Callable[[int, list[int]], bool]
) -> list[list[int]]:
    """At most ``most`` tokens after ``ids`` (rows, tokens), row by row, without the one of ``last`` at its end.

    A row is done as soon as ``enough`` says so of its index and tokens; all go on until all are done.

    Raises:
        KvbenchError: the model's logits are not finite.
    """
    answers: list[list[int]] = [[] for _ in ids]
    open_rows = set(range(len(ids)))
    for _ in range(most):
        logits = arm.forward(ids, cache, logits_to_keep=1)[:, -1]
        if not bool(logits.isfinite().all()):
            raise KvbenchError(f"{arm.name}: the model's logits are not finite; check its weights and dtype")
        new = logits.argmax(-1)
        for row in sorted(open_rows):
            token = int(new[row])
            if token not in last:
                answers[row].append(token)
            if token in last or enough(row, answers[row]):
                open_rows.discard(row)
        if not open_rows:
            break
        ids = new[:, None]
    return answers
