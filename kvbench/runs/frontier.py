"""Equal-bytes suites: methods and a byte target in, a suite of solved specs out."""

from __future__ import annotations

from kvbench.compressors.equal_bytes import all_methods
from kvbench.errors import KvbenchError
from kvbench.runs.resolve import calibration_source
from kvbench.runs.runner import Runner
from kvbench.runs.suites import Suite


def solve_suite(runner: Runner, suite: Suite, methods: str, at: str) -> tuple[Suite, list[str]]:
    """``suite`` with ``methods`` solved for the targets of ``at`` ("bits=2,3,4"), and why some are left out.

    The length that bytes are counted at is the memory workload's prompt; the suite's own compressors (baselines) stay.

    Raises:
        KvbenchError: an unreadable target, a suite with several models or workloads, or nothing that can be solved.
    """
    targets = _targets(at)
    if len(suite.models) != 1 or len(suite.workload) != 1 or suite.workload[0].memory is None:
        raise KvbenchError("--at needs a suite with one model and one workload that has a memory part")
    workload = suite.workload[0]
    assert workload.memory is not None
    bench = runner.bench_for(suite.models[0], suite.dtype)
    solver = bench.solver(calibration_source(workload.plain()), workload.memory.prompt)
    solved, unreachable = [], []
    wanted = list(all_methods()) if methods == "all" else [name.strip() for name in methods.split(",") if name.strip()]
    for index, method in enumerate(wanted):
        runner.listener.stage(f"solving {method}", index, len(wanted))
        for target in targets:
            try:
                solved.append(str(solver.solve(method, target)))
            except KvbenchError as error:
                unreachable.append(str(error))
    if not solved:
        raise KvbenchError(f"no method reaches {at}: {unreachable[0] if unreachable else 'no methods given'}")
    specs = dict.fromkeys([*suite.compressors, *solved])
    return suite.narrowed(compressors=list(specs)), unreachable


def _targets(at: str) -> list[float]:
    name, equals, values = at.partition("=")
    try:
        targets = [float(value) for value in values.split(",")]
    except ValueError:
        targets = []
    if name.strip() != "bits" or not equals or not targets or any(not 0 < target <= 64 for target in targets):
        raise KvbenchError(f"cannot read --at {at!r}; write bits=3 or bits=2,3,4 (bits per K or V element, all bytes)")
    return targets
