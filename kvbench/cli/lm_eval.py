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
from kvbench.cli.early import refuse_slips
from kvbench.cli.options import DEFAULT_MODEL, DataDir, Device, Dtype, Json, Model, Whole
from kvbench.errors import EXIT_OK, KvbenchError

if TYPE_CHECKING:
    from kvbench.measure.arms import Arm
    from kvbench.measure.bench import ModelBench, Report
    from kvbench.measure.harness_samples import HarnessRun
    from kvbench.report.verdicts import TaskVerdict


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Samples:
    """Which tasks, and how they are put."""

    tasks: Annotated[str, Parameter(help="Tasks of the harness, separated by commas.")]
    include_path: Annotated[Path | None, Parameter(help="Folder with tasks of your own (.yaml).")] = None
    limit: Annotated[Whole | None, Parameter(help="Samples of each task; default: all.")] = None
    num_fewshot: Annotated[Whole | None, Parameter(help="Solved examples before each; default: the task's.")] = None
    chat: Annotated[bool, Parameter(help="Wrap contexts in the model's chat template.")] = False

    def names(self) -> list[str]:
        """The tasks.

        Raises:
            KvbenchError: none is named, a count is too small, or there is no such folder.
        """
        for name, count, least in (("limit", self.limit, 1), ("num-fewshot", self.num_fewshot, 0)):
            if count is not None and count < least:
                raise KvbenchError(f"--{name} {count} is too few; give {least} or more")
        if self.include_path is not None and not self.include_path.is_dir():
            raise KvbenchError(f"--include-path {self.include_path} is no folder; give one with the tasks' .yaml files")
        names = [name.strip() for name in self.tasks.split(",") if name.strip()]
        if not names:
            raise KvbenchError("--tasks names no task; give one or more, separated by commas")
        return names


def lm_eval(
    samples: Samples,
    *,
    compressor: Annotated[list[str], Parameter(help="Specs of compressors; repeatable.")],
    margin: Annotated[
        float | None, Parameter(help="Loss of score, 0…1, below which a compressor is unharmed; default: 0.05.")
    ] = None,
    data_dir: DataDir = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json_: Json = False,
) -> int:
    """Run tasks of lm-evaluation-harness with and without compression.

    All of a context but its last token is compressed before a continuation is scored or an answer generated; the same
    through the uncompressed cache stands beside. Needs the extra: pip install "kvbench[lm-eval]". The harness has
    LongBench (longbench_*), LongBench v2 (longbench2_*), InfiniteBench (infinitebench_*), GSM8K (gsm8k) and thousands
    more.

    Example: kvbench lm-eval --tasks hellaswag --limit 100 --compressor int:bits=4 --compressor ftc:bits=3
    """
    from kvbench.measure.parts.tasks import MARGIN
    from kvbench.storage.data_dir import use_data_dir

    names, margin = samples.names(), MARGIN if margin is None else margin
    if not 0 < margin <= 1:
        raise KvbenchError(f"--margin {margin:g} is no loss of score; give a number above 0, at most 1")
    refuse_slips(model=model, compressors=compressor, dtype=dtype)
    use_data_dir(data_dir)
    from kvbench.compressors.compressor import parse
    from kvbench.measure.bench import CalibrationSource, ModelBench
    from kvbench.runs.progress import counted

    parsed = [parse(spec) for spec in compressor]
    manager = _manager(names, samples.include_path)
    runs: dict[str, HarnessRun] = {}
    with counted(err, "calibrating") as report:
        bench = ModelBench(model, dtype, device, report)
        if samples.chat and not bench.loaded.tokenizer.chat_template:
            raise KvbenchError(f"{model} has no chat template; leave --chat out")
        arms = [bench.none(), *(bench.arm(each, CalibrationSource("essays", 8, 1024)) for each in parsed)]
        for arm in {arm.name: arm for arm in arms}.values():
            runs[arm.name] = _evaluate(bench, arm, report, names, manager, samples)
    compared = _compared(runs, margin)
    if json_:
        print(json.dumps({name: _as_json(run, compared[name]) for name, run in runs.items()}, default=str))
    else:
        out.print(results_table(runs, compared))
    return EXIT_OK


Compared = dict[tuple[str, str], "TaskVerdict"]
"""Verdicts by task and metric."""


def _compared(runs: Mapping[str, HarnessRun], margin: float) -> dict[str, Compared]:
    """By compressor; metrics that are no shares of right answers have no verdict, and neither has the first run."""
    from kvbench.measure.harness_samples import paired
    from kvbench.report.verdicts import judged

    first, *others = runs
    compared: dict[str, Compared] = {first: {}}
    for name in others:
        metrics = paired(runs[first], runs[name])
        compared[name] = {
            (verdict.task.task, metric): verdict
            for metric, tasks in metrics.items()
            for verdict in judged(tasks, margin).tasks
        }
    return compared


def _as_json(run: HarnessRun, compared: Compared) -> dict[str, Any]:
    """The harness's own results; of each verdict its interval, and the samples that were right and are no more."""
    verdicts: dict[str, dict[str, Any]] = {}
    for (task, metric), each in compared.items():
        verdicts.setdefault(task, {})[metric] = {
            "verdict": each.verdict,
            "change": each.difference.mean,
            "interval": [each.difference.low, each.difference.high],
            "broken": [answer.sample for answer in each.task.answers if answer.score < answer.baseline_score == 1],
        }
    return {"results": run.results, "verdicts": verdicts}


def results_table(runs: Mapping[str, HarnessRun], compared: Mapping[str, Compared]) -> Table:
    """A row a task and metric, a column a compressor; behind each its difference to the first, and the verdict."""
    table = Table(title=None, box=None, pad_edge=False)
    for title in ("task", "metric", *runs):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right")
    first, *others = runs
    for task, metrics in runs[first].results.items():
        for metric, value in metrics.items():
            if not isinstance(value, float) or "stderr" in metric:
                continue
            error = metrics.get(_stderr(metric))
            spread = f" ± {error:.4f}" if isinstance(error, float) else ""
            row = []
            for other in others:
                score, verdict = runs[other].results[task][metric], compared[other].get((task, metric))
                told = f", {verdict.verdict}" if verdict else ""
                row.append(f"{score:.4f} ({score - value:+.4f}{told})")
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


def _evaluate(
    bench: ModelBench, arm: Arm, report: Report, names: list[str], manager: Any, samples: Samples
) -> HarnessRun:
    """Scores of one arm; what goes wrong in a task is said in one line."""
    from lm_eval import simple_evaluate

    from kvbench.measure.harness import CompressedLM
    from kvbench.measure.harness_samples import HarnessRun
    from kvbench.texts.hub_data import pinned_loading

    model = CompressedLM(bench, arm, lambda what, done, total: report(f"{what} through {arm.name}", done, total))
    try:
        with pinned_loading():
            whole = simple_evaluate(
                model,
                tasks=names,
                task_manager=manager,
                log_samples=True,
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
    return HarnessRun.of(whole)
