"""``kvbench lm-eval``: tasks of lm-evaluation-harness through compressed caches."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from kvbench.cli.console import err, out
from kvbench.cli.options import DEFAULT_MODEL, Device, Dtype, Json, Model
from kvbench.errors import EXIT_OK, KvbenchError

if TYPE_CHECKING:
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench, Report


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Samples:
    """Which tasks, and how they are put."""

    tasks: Annotated[str, Parameter(help="Tasks of the harness, separated by commas.")]
    include_path: Annotated[Path | None, Parameter(help="Folder with tasks of your own (.yaml).")] = None
    limit: Annotated[int | None, Parameter(help="Samples of each task; default: all.")] = None
    num_fewshot: Annotated[int | None, Parameter(help="Solved examples before each; default: the task's.")] = None
    chat: Annotated[bool, Parameter(help="Wrap contexts in the model's chat template.")] = False

    def check(self) -> None:
        """Raises KvbenchError for counts that are too small."""
        for name, count, least in (("limit", self.limit, 1), ("num-fewshot", self.num_fewshot, 0)):
            if count is not None and count < least:
                raise KvbenchError(f"--{name} {count} is too few; give {least} or more")


Results = dict[str, dict[str, Any]]
"""Task → metric → value, as the harness names them."""


def lm_eval(
    samples: Samples,
    *,
    compressor: Annotated[list[str], Parameter(help="Specs of compressors; repeatable.")],
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Run tasks of lm-evaluation-harness with and without compression.

    All of a context but its last token is compressed before a continuation is scored or an answer generated; the same
    through the uncompressed cache stands beside. Needs the extra: pip install "kvbench[lm-eval]".

    Example: kvbench lm-eval --tasks hellaswag --limit 100 --compressor int:bits=4 --compressor ftc:bits=3
    """
    from kvbench.compressors.compressor import parse
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.runs.progress import counted

    samples.check()
    parsed = [parse(spec) for spec in compressor]
    names = [name.strip() for name in samples.tasks.split(",") if name.strip()]
    if not names:
        raise KvbenchError("--tasks names no task; give one or more, separated by commas")
    manager = _manager(names, samples.include_path)
    results: dict[str, Results] = {}
    with counted(err, "calibrating") as report:
        bench = ModelBench(model, dtype, device, report)
        if samples.chat and not bench.loaded.tokenizer.chat_template:
            raise KvbenchError(f"{model} has no chat template; leave --chat out")
        arms = [bench.none(), *(bench.arm(each, CalibrationSource("essays", 8, 1024)) for each in parsed)]
        for arm in {arm.name: arm for arm in arms}.values():
            results[arm.name] = _evaluate(bench, arm, report, names, manager, samples)
    if json_:
        print(json.dumps(results, default=str))
    else:
        out.print(results_table(results))
    return EXIT_OK


def results_table(results: Mapping[str, Results]) -> Table:
    """A row a task and metric, a column a compressor; behind each its difference to the first."""
    table = Table(title=None, box=None, pad_edge=False)
    for title in ("task", "metric", *results):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right")
    first, *others = results.values()
    for task, metrics in first.items():
        for metric, value in metrics.items():
            if not isinstance(value, float) or "stderr" in metric:
                continue
            error = metrics.get(_stderr(metric))
            spread = f" ± {error:.4f}" if isinstance(error, float) else ""
            row = [f"{other[task][metric]:.4f} ({other[task][metric] - value:+.4f})" for other in others]
            table.add_row(task, metric.removesuffix(",none"), f"{value:.4f}{spread}", *row)
    return table


def _stderr(metric: str) -> str:
    name, comma, filtered = metric.partition(",")
    return f"{name}_stderr{comma}{filtered}"


def _manager(names: list[str], include_path: Path | None) -> Any:
    """What finds the tasks ``names``; the harness's thousands are read, for ten seconds, only where they are needed."""
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise KvbenchError('lm-evaluation-harness is missing; pip install "kvbench[lm-eval]"') from error
    folder = None if include_path is None else str(include_path)
    if include_path is not None and not include_path.is_dir():
        raise KvbenchError(f"--include-path {include_path} is no folder; give one with the tasks' .yaml files")
    if folder is not None:
        alone = TaskManager(include_path=folder, include_defaults=False)
        if {*names} <= {*alone.all_tasks}:
            return alone
    manager = TaskManager(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"near are {', '.join(close)}" if close else "lm-eval ls tasks lists them"
            raise KvbenchError(f"unknown task {name!r}; {hint}; tasks of your own need --include-path")
    return manager


def _evaluate(bench: ModelBench, arm: Arm, report: Report, names: list[str], manager: Any, samples: Samples) -> Results:
    """Scores of one arm; what goes wrong in a task is said in one line."""
    from lm_eval import simple_evaluate

    from kvbench.measure.harness import CompressedLM

    try:
        whole = simple_evaluate(
            CompressedLM(bench, arm, lambda what, done, total: report(f"{what} through {arm.name}", done, total)),
            tasks=names,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=1000,
            limit=samples.limit,
            num_fewshot=samples.num_fewshot,
            apply_chat_template=samples.chat,
        )
    except KvbenchError:
        raise
    except Exception as error:  # tasks run code and read files of anyone's
        told = " ".join(str(error).split()) or type(error).__name__
        raise KvbenchError(f"lm-eval could not run {', '.join(names)} with {arm.name}: {told[:300]}") from error
    assert whole is not None
    return {task: dict(metrics) for task, metrics in whole["results"].items()}
