"""Slips in what several verbs take, told at once: torch, which the verbs themselves need, takes seconds to come."""

from __future__ import annotations

from collections.abc import Iterable

from kvbench.compressors.catalogue import refuse_wrong


def refuse_slips(
    *,
    model: str | None = None,
    compressors: Iterable[str] = (),
    text: str | None = None,
    dtype: str | None = None,
) -> None:
    """Refuse names and specs that are wrong. What needs the model, its files or the machine is told later.

    Raises:
        KvbenchError: as the code that uses them.
    """
    from kvbench.models.dtypes import dtype_name
    from kvbench.models.registry import find as find_model
    from kvbench.texts.registry import find as find_text

    refuse_wrong(*compressors)
    if dtype is not None:
        dtype_name(dtype)
    if model is not None:
        find_model(model)
    if text is not None:
        for name in text.split("+"):
            find_text(name)
