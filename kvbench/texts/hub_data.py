"""Data sets of the hub, at the commits that results are compared at; from local copies where there are some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets

from kvbench.storage.data_dir import local_copy

PINNED = {
    "openai/gsm8k": "e53f048856ff4f594e959d75785d2c2d37b678ee",
    "rajpurkar/squad": "7b6d24c440a36b6815f21b70d25016731768db1f",
    "hotpotqa/hotpot_qa": "1908d6afbbead072334abe2965f91bd2709910ab",
    "Xnhyacinth/LongBench": "2e9ade51ebf45d98942056c0716234f9d5d257d5",
}
"""Commits of data sets for tasks. What else lm-evaluation-harness reads is the newest there is."""


def located(repo: str, name: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Arguments of ``datasets.load_dataset`` for a data set of the hub: of a local copy, or at a commit.

    A copy without the hub's README says nothing of its configurations; ``name`` is then a folder in it.
    """
    copy = local_copy(repo)
    if copy is None:
        pinned = revision or PINNED.get(repo)
        return {"path": repo, "name": name} | ({"revision": pinned} if pinned else {})
    if name and not (copy / "README.md").exists() and (copy / name).is_dir():
        return {"path": str(copy), "data_dir": name}
    return {"path": str(copy), "name": name}


@contextmanager
def pinned_loading() -> Iterator[None]:
    """``datasets.load_dataset``, as other packages call it, reads local copies and pinned commits."""
    load = datasets.load_dataset

    def located_load(path: str, name: str | None = None, **options: Any) -> Any:
        if isinstance(options.get("features"), dict):  # as YAML has them, which datasets does not read
            options["features"] = datasets.Features(
                {column: _column(told) for column, told in options["features"].items()}
            )
        return load(**(located(path, name, options.pop("revision", None)) | options))

    datasets.load_dataset = located_load  # type: ignore[assignment]
    try:
        yield
    finally:
        datasets.load_dataset = load


def _column(told: Any) -> Any:
    """A column of ``{dtype: string, sequence: true}``; of anything else the same."""
    if not isinstance(told, dict) or "dtype" not in told:
        return told
    value = datasets.Value(told["dtype"])
    return datasets.List(value) if told.get("sequence") else value
