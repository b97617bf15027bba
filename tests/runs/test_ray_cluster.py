"""Trials on a Ray cluster: the same records as on one machine, also when a node is lost in the middle.

``pytest tests/runs/test_ray_cluster.py --ray-trials 40 --timeout 3600`` compares as many.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from kept_kernels import cache_with_kernels
from tiny_suite import SUITE

from kvbench.errors import KvbenchError
from kvbench.measure.parts.speed import SpeedWorkload
from kvbench.runs import ray_cluster as module
from kvbench.runs.ray_cluster import RayCluster
from kvbench.runs.runner import Runner
from kvbench.runs.store import RunStore
from kvbench.runs.suites import parse_suite
from kvbench.runs.trials import Workload

SWEEP = SUITE.replace('"none"', '"none", "int:bits={b},sinks={s}"')


class Listener:
    """Hears of every end; loses a node after so many."""

    def __init__(self, lose_a_node=lambda: None, after=0):
        self.ended_ids, self.lose_a_node, self.after = [], lose_a_node, after

    def ended(self, record):
        self.ended_ids.append(record.id)
        if len(self.ended_ids) == self.after:
            self.lose_a_node()

    def __getattr__(self, name):
        return lambda *_: None


def test_a_lost_node_costs_no_trial_and_counts_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("KVBENCH_CACHE", cache_with_kernels(tmp_path / "cache"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    trials = request.config.getoption("--ray-trials")
    suite = parse_suite(f"{SWEEP}\n[matrix]\nb = [2, 4]\ns = {list(range(1, trials // 2 + 1))}\n", "s")
    alone = Runner(RunStore(tmp_path / "alone"), Listener(), threads=1).run(suite)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        listener = Listener(lambda: cluster.remove_node(second, allow_graceful=False), after=trials // 2)
        executor = RayCluster(cluster.address)
        there = Runner(RunStore(tmp_path / "ray"), listener, threads=1, executor=executor).run(suite)
    finally:
        cluster.shutdown()
    assert [record.status for record in there] == ["ok"] * (trials // 2 * 2 + 1), [record.failure for record in there]
    assert sorted(listener.ended_ids) == sorted(record.id for record in alone)
    origin = {"provenance", "checksum"}
    assert [record.model_dump(exclude=origin) for record in there] == [
        record.model_dump(exclude=origin) for record in alone
    ]


NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}, {"memory": 1.0}]


def test_timed_trials_have_a_node_for_themselves(make_trial):
    timed = make_trial(threads=2, workload=Workload(name="w", speed=SpeedWorkload()))
    quiet = make_trial(threads=2, workload=Workload(name="w", memory=make_trial().workload.memory))
    assert module._needs(quiet, NODES) == {"CPU": 2.0}
    assert module._needs(timed, NODES) == {"CPU": 4.0}
    assert module._needs(timed.model_copy(update={"threads": 6}), NODES) == {"CPU": 8.0}
    assert module._needs(quiet.model_copy(update={"device": "cuda"}), NODES) == {"CPU": 2.0, "GPU": 1.0}


def test_what_no_node_can_hold_is_refused(make_trial):
    with pytest.raises(KvbenchError, match=r"no node of the Ray cluster has 9 CPUs, which .* needs; set --threads"):
        module._needs(make_trial(threads=9), NODES)


def test_addresses_where_nobody_answers(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(
            KvbenchError, match=f"nobody answers at the Ray address 127.0.0.1:{port} .*ray start --head"
        ):
            module._refuse_silence(f"127.0.0.1:{port}")
    for wrong in ("nonsense", "host:port", "host:99999"):
        with pytest.raises(KvbenchError, match=r"is not host:port|nobody answers"):
            module._refuse_silence(wrong)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KvbenchError, match="pip install 'kvbench\\[ray\\]'"):
        next(RayCluster().run([], Listener()))
