"""The processes that peaks are measured in: each loads a model, a fitted plan and token ids, and measures one cache.

Nothing is fitted, tokenized or tested here. All are forks of one process that has imported what they need, which takes
seconds, and has done nothing else. Started by :mod:`kvbench.measure.memory_probe`.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.compressors.compressor import parse
from kvbench.compressors.plan_file import dump_plan, open_plan
from kvbench.errors import KvbenchError
from kvbench.hardware.allocator import refuse_huge_pages
from kvbench.hardware.worker import serve
from kvbench.kernels.choice import warm_up
from kvbench.kernels.reading import Reading
from kvbench.measure.arm_factory import ArmFactory
from kvbench.measure.arms import Arm
from kvbench.measure.memory import measure_memory
from kvbench.measure.parts.memory import MemoryResult
from kvbench.models.loading import load

REQUEST, PLAN, PROMPT = "request.json", "plan.safetensors", "prompt.safetensors"
RESULT, ERRORS = "result.json", "errors.txt"


@dataclass(frozen=True)
class ProbeRequest:
    """What to measure. The plan, unless the cache is one of transformers' own, and the prompt lie beside it."""

    model: str
    compressor: str
    dtype: str
    device: str
    threads: int
    attention: str
    steps: int
    chunk: int | None = None


def pack(request: ProbeRequest, arm: Arm, ids: Tensor, folder: Path) -> None:
    """Write ``request``, ``arm``'s plan and the prompt's ``ids`` (batch, tokens) into ``folder``.

    Raises:
        KvbenchError: a part of the plan cannot be saved.
    """
    if arm.plan is not None:
        (folder / PLAN).write_bytes(dump_plan(arm.plan, arm.geometry, arm.name, ""))
    save_file({"ids": ids.cpu().contiguous()}, folder / PROMPT)
    (folder / REQUEST).write_text(json.dumps(asdict(request)))


def measure(folder: Path) -> MemoryResult:
    """Load what :func:`pack` has written into ``folder``, and measure it. Raises as :func:`measure_memory` does."""
    request = ProbeRequest(**json.loads((folder / REQUEST).read_text()))
    torch.set_num_threads(request.threads)
    loaded = load(request.model, getattr(torch, request.dtype), request.device)
    _copy_weights(loaded.model)
    factory = ArmFactory.of(loaded)
    warm_up(loaded.model.device)  # a compiler's memory is not the cache's
    stock = parse(request.compressor).stock
    plan = None if stock is not None else open_plan(folder / PLAN).plan(factory.geometry)
    arm = factory.ready(request.compressor, plan, stock, Reading.parse(request.attention))
    ids = load_file(folder / PROMPT)["ids"].to(loaded.model.device)
    return measure_memory(arm, ids, request.steps, request.chunk)


def _copy_weights(model: PreTrainedModel) -> None:
    """Copy weights that are pages of a mapped file: the system may drop those at any time, and the peak with them."""
    if model.device.type == "cpu":
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def main() -> None:
    """Measure in every folder that is named on standard input."""
    refuse_huge_pages()
    serve(_run)


def _run(folder: Path) -> int:
    """Write what was measured into ``folder``, or what went wrong; the exit status."""
    try:
        (folder / RESULT).write_text(measure(folder).model_dump_json())
    except KvbenchError as problem:
        (folder / ERRORS).write_text(str(problem))
        return problem.exit_code
    except BaseException:
        (folder / ERRORS).write_text(traceback.format_exc())
        return 1
    return 0
