"""Equal-bytes suites: methods and a byte target in, a suite of solved specs out."""

from __future__ import annotations

from collections.abc import Mapping

from kvbench.compressors.compressor import parse
from kvbench.compressors.equal_bytes import all_methods
from kvbench.compressors.open_method import OpenMethod
from kvbench.errors import KvbenchError
from kvbench.measure.bench import CalibrationSource, ModelBench
from kvbench.runs.code_identity import packages, solving_sha256
from kvbench.runs.resolve import inputs_of
from kvbench.runs.runner import Runner
from kvbench.runs.suites import Suite, SuiteWorkload
from kvbench.runs.targets import bit_targets
from kvbench.storage.kept import kept


def solve_suite(runner: Runner, suite: Suite, methods: str, at: str) -> tuple[Suite, list[str]]:
    """``suite`` with ``methods`` solved for the targets of ``at`` ("bits=2,3,4"), and why some are left out.

    The length that bytes are counted at is the prompt of the first workload with a memory part, and methods are
    calibrated as there; the suite's own compressors (baselines) stay. Every solved spec stores its exact spans as the
    suite's ``exact`` says. A method that cannot take a target is there at its nearest size: ``solved_for`` says for
    which targets each spec stands. Left out is what no size can be solved for.

    Raises:
        KvbenchError: an unreadable target, a suite with several models or no memory part, or nothing that can be
            solved.
    """
    targets = bit_targets(at)
    workload = _sized(suite)
    assert workload.memory is not None
    bench = runner.bench_for(suite.models[0], suite.dtype)
    spans = {} if suite.exact == "model" else {"exact": suite.exact}
    solve = _KeptSolver(bench, inputs_of(workload).calibration, workload.memory.prompt, spans)
    solved: dict[str, tuple[float, ...]] = {}
    left_out = []
    wanted = list(all_methods()) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    for index, method in enumerate(wanted):
        runner.listener.stage(f"solving {method}", index, len(wanted))
        try:
            for target in targets:
                spec = solve.nearest(method, target)
                solved[spec] = (*solved.get(spec, ()), target)
        except KvbenchError as error:
            left_out.append(str(error))
    if not solved:
        raise KvbenchError(f"no method reaches {at}: {left_out[0] if left_out else 'no methods given'}")
    listed = [str(parse(spec)) for spec in suite.compressors]
    return suite.narrowed(compressors=list(dict.fromkeys([*listed, *solved])), solved_for=solved), left_out


class _KeptSolver:
    """A solver whose solutions are kept: a run that is resumed need not fit every method a dozen times again."""

    def __init__(self, bench: ModelBench, source: CalibrationSource, tokens: int, spans: Mapping[str, str]) -> None:
        self._solver = bench.solver(source, tokens, spans)
        statistics = bench.statistics_folder(source).name  # names the weights and the calibration windows, too
        self._depends_on = [statistics, bench.dtype, tokens, dict(spans)]

    def nearest(self, method: str, target: float) -> str:
        """:meth:`Solver.nearest` as a spec."""
        example = OpenMethod.of(method).example()
        versions = packages(example, "cpu")
        key = ["solved", solving_sha256(example), versions, *self._depends_on, method, target]
        return kept(key, lambda: ({}, {"spec": str(self._solver.nearest(method, target))}))[1]["spec"]


def _sized(suite: Suite) -> SuiteWorkload:
    """The workload that bytes are solved at."""
    sized = [workload for workload in suite.workload if workload.memory is not None]
    if len(suite.models) != 1 or not sized:
        raise KvbenchError("--at needs a suite with one model and a workload that has a memory part")
    return sized[0]
