import subprocess
from datetime import UTC, datetime

import pytest

from kvbench.hardware import environment
from kvbench.hardware.environment import git_state, look_up_once, package_versions, provenance, usable_cores
from kvbench.runs.records import Provenance

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _fresh_commit():
    git_state.cache_clear()
    yield
    git_state.cache_clear()


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_provenance_fills_the_record():
    fields = provenance("cpu", STARTED)
    record = Provenance(**fields)
    assert set(fields) == set(Provenance.model_fields)
    assert record.started == STARTED < record.finished
    assert record.device_name == record.cpu
    assert record.packages["torch"] in record.torch_build
    assert record.cores >= 1 and record.memory_total > 2**28


def test_what_was_looked_up_once_starts_no_process_for_a_record(monkeypatch):
    look_up_once()
    monkeypatch.setattr(environment.subprocess, "run", None)
    monkeypatch.setattr(environment.metadata, "version", None)
    assert Provenance(**provenance("cpu", STARTED)).kvbench


def test_the_host_is_not_named(monkeypatch):
    monkeypatch.setattr(environment.platform, "node", lambda: "very-secret-host")
    fields = provenance("cpu", STARTED)
    assert "very-secret-host" not in str(fields)
    monkeypatch.setattr(environment.platform, "node", lambda: "other-host")
    assert provenance("cpu", STARTED)["hostname_hash"] != fields["hostname_hash"]


def test_only_installed_packages_are_listed():
    versions = package_versions()
    assert {"torch", "transformers", "numpy"} <= set(versions)
    assert all(versions.values())


@pytest.mark.parametrize(
    ("info", "model"),
    [
        ({"model name": "AMD EPYC", "flags": "fpu avx avx2 sse"}, "AMD EPYC (AVX2)"),
        (
            {"model name": "AMD EPYC", "flags": "avx2 avx512f avx512_vbmi avx512_vnni"},
            "AMD EPYC (AVX2, AVX-512, VBMI, VNNI)",
        ),
        ({"Features": "fp asimd sve"}, "aarch64 (NEON, SVE)"),
        ({}, "aarch64"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_vector_instructions(monkeypatch, info, model):
    monkeypatch.setattr(environment, "_cpu_info", lambda: info)
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    assert environment.cpu_model() == model


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert usable_cores() == 2


def test_git_state_tells_commit_and_changes(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40 and dirty is False

    git_state.cache_clear()
    (tmp_path / "code.py").write_text("a = 2\n")
    assert git_state(tmp_path) == (commit, True)


def test_a_folder_inside_another_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") == (None, None)


def test_missing_git_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == (None, None)
