"""The thirteen tasks of RULER by name, generated from the authors' specification.

Source: Hsieh et al. 2024 (arXiv 2404.06654) and the settings in their repository (``scripts/synthetic.yaml``). What
differs: essays are those at hand; without SQuAD and HotpotQA (:mod:`kvbench.tasks.ruler.published`) the two ``qa``
tasks ask about invented towns, and are RULER-style; every context is filled up to its length, where RULER takes the
same haystack for all samples of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvbench.errors import unknown
from kvbench.tasks.names import RULER
from kvbench.tasks.ruler.aggregation import CommonWords, FrequentWords
from kvbench.tasks.ruler.needles import Needles
from kvbench.tasks.ruler.questions import Corpus, InventedTowns, QuestionAnswering
from kvbench.tasks.ruler.tracing import VariableTracking
from kvbench.tasks.sample import Task

INVENTED: Mapping[str, Corpus] = {"qa_1": InventedTowns(), "qa_2": InventedTowns(hops=2)}
"""What is asked without published questions: one fact, and two."""


def ruler_task(name: str, length: int, essay: Sequence[str], corpora: Mapping[str, Corpus] = INVENTED) -> Task:
    """The task ``name`` for contexts of ``length`` tokens.

    ``essay``: words of the essays that needles are hidden in. ``corpora``: what ``qa_1`` and ``qa_2`` ask about.

    Raises:
        KvbenchError: no such task.
    """
    tasks: dict[str, Task] = {
        "niah_single_1": Needles("noise"),
        "niah_single_2": Needles("essay", essay),
        "niah_single_3": Needles("essay", essay, value_kind="uuids"),
        "niah_multikey_1": Needles("essay", essay, keys=4),
        "niah_multikey_2": Needles("needle"),
        "niah_multikey_3": Needles("needle", key_kind="uuids", value_kind="uuids"),
        "niah_multivalue": Needles("essay", essay, values=4),
        "niah_multiquery": Needles("essay", essay, keys=4, queried=4),
        "vt": VariableTracking(),
        "cwe": CommonWords(length),
        "fwe": FrequentWords(length),
        **{each: QuestionAnswering(corpus) for each, corpus in corpora.items()},
    }
    if name not in tasks:
        raise unknown("task", name, RULER)
    return tasks[name]
