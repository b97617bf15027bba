"""Lists as the command line writes them: contexts, batches, compressors. Read without torch: slips cost no time."""

from __future__ import annotations

import re

from kvbench.errors import KvbenchError

MOST = "max"
"""In place of a batch: the largest that fits."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_COUNT = re.compile(r"([0-9]+)([km]?)", re.IGNORECASE)


def count_of(text: str, what: str) -> int:
    """A whole number above 0, in units of 1024 (k) or 1024² (m).

    >>> count_of("4k", "context"), count_of("1M", "context")
    (4096, 1048576)
    """
    match = _COUNT.fullmatch(text.strip())
    count = 0 if match is None else int(match[1]) * _UNITS[match[2].lower()]
    if count < 1:
        raise KvbenchError(f"{what} {text.strip()!r} is no whole number above 0; write 8192, 8k or 1m")
    return count


def contexts_of(text: str, longest: int, model: str) -> list[int]:
    """Lengths in ascending order: single ones, and ranges that double from their start to their end.

    A range ends at the ``longest`` context of the ``model`` at the latest; what lies beyond by itself is refused.

    >>> contexts_of("1k,4k..16k", 131072, "a model")
    [1024, 4096, 8192, 16384]
    """
    lengths: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        start = count_of(first, "context")
        end = count_of(last, "context") if dots else start
        if end < start:
            raise KvbenchError(f"context {part!r} ends before it starts")
        if start > longest:
            raise KvbenchError(f"context {start:,} is beyond the {longest:,} tokens of {model}")
        while start <= min(end, longest):
            lengths.add(start)
            start *= 2
        if dots:
            lengths.add(min(end, longest))
    return sorted(lengths)


def batches_of(text: str) -> list[int | None]:
    """Numbers of rows; None for the largest that fits.

    >>> batches_of("1,64,max")
    [1, 64, None]
    """
    return [None if part.strip() == MOST else count_of(part, "batch") for part in text.split(",")]


def names_of(texts: list[str]) -> list[str]:
    """Names without commas, each once, in their order."""
    return list(dict.fromkeys(name for text in texts for part in text.split(",") if (name := part.strip())))


def specs_of(texts: list[str]) -> list[str]:
    """Compressor specs out of texts that may hold several: a comma before ``key=value`` belongs to the spec before it.

    >>> specs_of(["mla,none,kvtc:bits=3,recent=0", "pca:rank=0.5+int:bits=4,group=64,fp8"])
    ['mla', 'none', 'kvtc:bits=3,recent=0', 'pca:rank=0.5+int:bits=4,group=64', 'fp8']
    """
    specs: list[str] = []
    for text in texts:
        for index, part in enumerate(filter(None, text.split(","))):
            name = re.split(r"[:=+]", part, maxsplit=1)
            if index and len(name) > 1 and part[len(name[0])] == "=":
                specs[-1] += f",{part}"
            else:
                specs.append(part.strip())
    return list(dict.fromkeys(specs))
