"""Local copies of the hub's data sets."""

from __future__ import annotations

import os
from pathlib import Path

from kvbench.errors import KvbenchError

DATA_DIR = "KVBENCH_DATA_DIR"
"""Environment variable: a folder with local copies, each under its name on the hub (``openai/gsm8k``)."""


def use_data_dir(folder: Path | None) -> None:
    """Look for local copies in ``folder`` from now on, in this process and those that it starts; None changes nothing.

    Raises:
        KvbenchError: it is no folder.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise KvbenchError(f"--data-dir {folder} is no folder; give one with local copies, such as openai/gsm8k/…")
    os.environ[DATA_DIR] = str(folder.resolve())


def local_copy(repo: str) -> Path | None:
    """The folder of a data set; None where there is none."""
    folder = os.environ.get(DATA_DIR)
    return Path(folder, repo) if folder and Path(folder, repo).is_dir() else None
