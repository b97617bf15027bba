"""A decode step's attention in one call: its parts wait until all are known, and the last thread merges them.

Every call wakes torch's threads, and every tensor that goes from one call to the next is made by Python: together they
took longer than the attention of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kvbench.kernels.cpu.jobs import step_job
from kvbench.kernels.cpu.launch import share
from kvbench.kernels.cpu.records import CODED_JOB, MergeJob, MergePart, StepJob, pack, place
from kvbench.kernels.reference import Part, Partial, merge

_NEXT, _CHUNK = (place(CODED_JOB, name) for name in ("next_unit", "chunk"))  # every job begins with its claims


@dataclass(frozen=True)
class Work:
    """``units`` of ``rows`` query heads, ``width`` numbers each; ``splits`` units share a context.

    ``size`` is in bytes, as multiplied.
    """

    units: int
    splits: int
    rows: int
    width: int
    size: int

    @property
    def numbers(self) -> int:
        """Outputs and log-sum-exps."""
        return self.units * self.rows * (self.width + 1)


@dataclass(eq=False)
class Pending:
    """A part that is computed together with others by :func:`merge_parts`, or alone when its numbers are read.

    ``kind`` and ``job`` are those of a :class:`~kvbench.kernels.cpu.records.StepJob`; outputs go to the address at
    ``output_place`` in it, log-sum-exps to the next one. ``shape`` (batch, …) is that of the log-sum-exps. ``alive``
    is what else the job has addresses of.
    """

    kind: int
    job: Any
    output_place: int
    work: Work
    shape: tuple[int, ...]
    by: str
    alive: object = None
    _computed: Partial | None = field(default=None, init=False)

    @property
    def output(self) -> Tensor:
        """(shape, width)."""
        return self.computed.output

    @property
    def lse(self) -> Tensor:
        """Of ``shape``."""
        return self.computed.lse

    @property
    def computed(self) -> Partial:
        """In numbers."""
        if self._computed is None:
            self._computed = _run([self], [])
        return self._computed


def merge_parts(parts: Sequence[Part]) -> Partial:
    """:func:`kvbench.kernels.reference.merge` of parts on the CPU; those that are pending run side by side."""
    pending = [part for part in parts if isinstance(part, Pending)]
    others = [part for part in parts if not isinstance(part, Pending)]
    if not all(_plain(tensor) for part in others for tensor in (part.output, part.lse)):
        return merge(parts)
    return merge(others) if len(others) == len(parts) == 1 else _run(pending, others)


def _plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()


def _run(pending: Sequence[Pending], others: Sequence[Part]) -> Partial:
    """What is ``pending``, merged with the ``others``, contiguous and in fp32."""
    shape = pending[0].shape if pending else others[0].lse.shape
    width = pending[0].work.width if pending else others[0].output.shape[-1]
    output, lse = torch.empty(*shape, width), torch.empty(shape)
    merged_at = output.data_ptr(), lse.data_ptr()
    if len(pending) == 1 and not others and pending[0].work.splits == 1:
        _share(pending, [merged_at], 0)
        return Partial(output, lse)
    scratch = torch.empty(sum(part.work.numbers for part in pending))
    places, at = [], scratch.data_ptr()
    parts: list[MergePart] = []
    for part in pending:
        work = part.work
        step, first_lse = 4 * work.rows, at + 4 * work.units * work.rows * width
        places.append((at, first_lse))
        parts += [
            MergePart(at + split * step * width, first_lse + split * step, work.rows, work.splits)
            for split in range(work.splits)
        ]
        at += 4 * work.numbers
    parts += [MergePart(part.output.data_ptr(), part.lse.data_ptr(), 1, 1) for part in others]
    merging = pack(MergeJob(prod(shape), width, len(parts), *merged_at), *parts)
    _share(pending, places, merging.ctypes.data)
    return Partial(output, lse)


def _share(pending: Sequence[Pending], places: Sequence[tuple[int, int]], merge_address: int) -> None:
    """Run the jobs of ``pending``, whose outputs and log-sum-exps go to ``places``, and the merge at an address."""
    threads, jobs = torch.get_num_threads(), []
    for part, (output, lse) in zip(pending, places, strict=True):
        part.job[_NEXT], part.job[_CHUNK] = 0, -(-part.work.units // threads)
        part.job[part.output_place], part.job[part.output_place + 1] = output, lse
        jobs += [part.kind, part.job.ctypes.data]
    units = sum(part.work.units for part in pending)
    job = np.array([*StepJob(0, units, len(pending), merge_address), *jobs], np.int64)
    share(step_job, job.ctypes.data, units, sum(part.work.size for part in pending))
