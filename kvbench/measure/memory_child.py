"""The process that peaks are measured in: it loads a model, a fitted plan and token ids, and measures one cache.

Nothing is fitted, tokenized or tested here. Started by :mod:`kvbench.measure.memory_probe`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.attention.kernels import warm_up
from kvbench.attention.reading import Reading
from kvbench.compressors.compressor import parse
from kvbench.compressors.plan_file import dump_plan, open_plan
from kvbench.errors import KvbenchError
from kvbench.hardware.allocator import refuse_huge_pages
from kvbench.measure.arms import Arm
from kvbench.measure.memory import as_plain, measure_memory
from kvbench.models.geometry import probe_geometry
from kvbench.models.loading import load

PLAN, PROMPT = "plan.safetensors", "prompt.safetensors"


@dataclass(frozen=True)
class Request:
    """What to measure; the plan, unless the cache is one of transformers' own, and the prompt lie in ``folder``.

    ``chunk`` tokens of the prompt are prefilled at a time, all of them with None.
    """

    folder: str
    model: str
    compressor: str
    dtype: str
    device: str
    threads: int
    attention: str
    steps: int
    chunk: int | None = None


def pack(arm: Arm, ids: Tensor, folder: Path) -> None:
    """Write ``arm``'s plan and the prompt's ``ids`` (batch, tokens) into ``folder``.

    Raises:
        KvbenchError: a part of the plan cannot be saved.
    """
    if arm.plan is not None:
        (folder / PLAN).write_bytes(dump_plan(arm.plan, arm.geometry, arm.name, ""))
    save_file({"ids": ids.cpu().contiguous()}, folder / PROMPT)


def measure(request: Request) -> dict[str, Any]:
    """Plain values of :class:`kvbench.measure.memory.Memory`."""
    torch.set_num_threads(request.threads)
    folder = Path(request.folder)
    loaded = load(request.model, getattr(torch, request.dtype), request.device)
    _take_in(loaded.model)
    geometry = probe_geometry(loaded.model)
    warm_up(loaded.model.device)  # a compiler's memory is not the cache's
    stock = parse(request.compressor).stock
    plan = None if stock is not None else open_plan(folder / PLAN).plan(geometry)
    arm = Arm.of(request.compressor, loaded.model, geometry, plan, stock, Reading.parse(request.attention))
    ids = load_file(folder / PROMPT)["ids"].to(loaded.model.device)
    return as_plain(measure_memory(arm, ids, request.steps, request.chunk))


def _take_in(model: PreTrainedModel) -> None:
    """Copy weights that are pages of a mapped file: the system may drop those at any time, and the peak with them."""
    if model.device.type == "cpu":
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def main(text: str) -> None:
    """Print one line of JSON for the :class:`Request` in ``text``; bad input ends the process with its line."""
    refuse_huge_pages()
    try:
        print(json.dumps(measure(Request(**json.loads(text)))), flush=True)
    except KvbenchError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
