"""The parts that a workload may have. A new one is a file here, a line in :class:`Parts` and a file of columns.

Suites, trials, records, the runner, code identity, the gate and reports go through this registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import create_model

from kvbench.measure.parts.capacity import CapacityResult, CapacityWorkload
from kvbench.measure.parts.generation import GenerationResult, GenerationWorkload
from kvbench.measure.parts.memory import MemoryResult, MemoryWorkload
from kvbench.measure.parts.needles import NeedlesResult, NeedlesWorkload
from kvbench.measure.parts.part import HasResults, HasSettings, Inputs, PartSettings, WorkloadPart, fields_of
from kvbench.measure.parts.quality import QualityResult, QualityWorkload
from kvbench.measure.parts.speed import SpeedResult, SpeedWorkload
from kvbench.measure.parts.tasks import TasksResult, TasksWorkload

__all__ = ["PARTS", "WITH_INTERVALS", "Inputs", "PartResults", "PartSettings", "PartsOfWorkload"]


class Parts:
    """By the names that they have in suites and records, in the order in which they are measured.

    Tables show them from the last to the first, with columns from ``kvbench/report/columns/<name>.py``.
    """

    quality = WorkloadPart(QualityWorkload, QualityResult, written_as_null=True)
    speed = WorkloadPart(SpeedWorkload, SpeedResult, written_as_null=True)
    memory = WorkloadPart(MemoryWorkload, MemoryResult, written_as_null=True)
    capacity = WorkloadPart(CapacityWorkload, CapacityResult)
    tasks = WorkloadPart(TasksWorkload, TasksResult)
    needles = WorkloadPart(NeedlesWorkload, NeedlesResult)
    generation = WorkloadPart(GenerationWorkload, GenerationResult)


PARTS: dict[str, WorkloadPart[Any, Any]] = {
    name: part for name, part in vars(Parts).items() if isinstance(part, WorkloadPart)
}

WITH_INTERVALS = tuple(name for name, part in PARTS.items() if "interval_method" in part.result.model_fields)
"""Parts whose results have intervals, and name the method that made them."""

if TYPE_CHECKING:

    class PartsOfWorkload(Parts, HasSettings):
        """A field for every part: its settings, None where it is not to be measured."""

    class PartResults(Parts, HasResults):
        """A field for every part: its result, None where it was not measured."""

else:
    PartsOfWorkload = create_model("PartsOfWorkload", __base__=HasSettings, **fields_of(PARTS, "settings"))
    PartResults = create_model("PartResults", __base__=HasResults, **fields_of(PARTS, "result"))
