"""What the gate's suite gives the decode kernels to read: every kind at least once, on its random models."""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from driving import calibrated, subject, token_ids

from kvbench.codecs.kernel_view import Coded
from kvbench.compressors.compressor import parse
from kvbench.kernels.choice import kernels_for
from kvbench.kernels.cpu.column_layout import column_layout
from kvbench.kernels.cpu.work_split import splits_for
from kvbench.kernels.reference import Part, Partial
from kvbench.measure.arms import Arm
from kvbench.measure.prompt import exact_prompt
from kvbench.runs.suites import load_suite

PROMPT = 112
"""Enough for one block of the default spans to have left the window."""
KINDS = {
    "exact tensors",
    "exact tensors in two spans",
    "parts to merge",
    "bytes as they lie",
    "nibbles as they lie",
    "mixed widths",
    "level tables of few bits",
    "level tables of 8 bits",
    "levels of two bytes",
    "scale and zero",
    "scale per channel group",
    "scale per channel and block of tokens",
    "into a basis and back",
    "no basis",
    "keys that are rebuilt",
    "keys in bands",
}


def kinds_of(side: Coded) -> set[str]:
    layout = column_layout(side)
    kinds = {
        "bytes as they lie": layout.direct and not layout.nibbles,
        "nibbles as they lie": layout.nibbles,
        "mixed widths": len(set(side.widths)) > 1,
        "level tables of few bits": layout.looked_up and max(side.widths) <= 6,
        "level tables of 8 bits": layout.looked_up and max(side.widths) == 8,
        "levels of two bytes": layout.looked_up and layout.columns > -(-len(side.widths) // 16) * 16,
        "scale and zero": side.zero is not None,
        "scale per channel group": side.scale is not None and side.scale.shape[-1] > 1,
        "scale per channel and block of tokens": side.blocks is not None,
    }
    return {name for name, holds in kinds.items() if holds}


def test_two_threads_share_a_sequence_in_one_workload():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (long,) = (own for own in load_suite("ci").workload if own.name == "long")
        assert long.models is not None and long.quality is not None
        heads = int(dict(part.split("=") for part in long.models[0].partition("?")[2].split(","))["kv_heads"])
        assert splits_for(heads, long.quality.prefix - 100) == 2
    finally:
        torch.set_num_threads(before)


def test_the_suite_runs_every_kind_of_reading(monkeypatch: pytest.MonkeyPatch):
    kernels = kernels_for(torch.device("cpu"))
    if kernels is None:
        pytest.skip("no decode kernels on this machine")
    seen: Counter[str] = Counter()

    def prepare(shape: object, keys: Coded | None, values: Coded, tokens: int, scaling: float, *rest: Any) -> Any:
        bases, rebuilt = (*rest, *((None, None), None)[len(rest) :])
        for side in (keys, values):
            seen.update(set() if side is None else kinds_of(side))
        seen.update({"into a basis and back" if any(bases) else "no basis"})
        if rebuilt is not None:
            seen.update({"keys in bands" if rebuilt.block else "keys that are rebuilt"})
        return kernels.prepare(shape, keys, values, tokens, scaling, *rest)

    def exact(*rest: object) -> Part:
        seen.update({"exact tensors in two spans" if rest[-1] is not None else "exact tensors"})
        return kernels.exact(*rest)

    def merge(parts: list[Part]) -> Partial:
        seen.update({"parts to merge"} if len(parts) > 1 else ())
        return kernels.merge(parts)

    watched = dataclasses.replace(kernels, prepare=prepare, exact=exact, merge=merge)
    monkeypatch.setattr("kvbench.kernels.decode.kernels_for", lambda device: watched)
    ids = token_ids(1, PROMPT + 1)
    suite = load_suite("ci")
    for name in [own for own in suite.models if own.startswith("random:") and "?" not in own]:
        one = subject(name.removeprefix("random:"), torch.float32)
        for spec in suite.compressors:
            parsed = parse(spec)
            if parsed.stock is None:
                plan = parsed.fit(one.geometry, partial(calibrated, one))
                arm = Arm.of(spec, one.model, one.geometry, plan)
                with torch.no_grad(), arm.entered():
                    cache = arm.fill(exact_prompt(one.model, one.geometry, ids[:, :PROMPT]))
                    arm.forward(ids[:, PROMPT:], cache)
    assert not KINDS - set(seen), f"nothing in the suite makes the kernels read: {sorted(KINDS - set(seen))}"
