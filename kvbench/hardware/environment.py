"""Where a trial ran: software versions, processor, memory, load, commit. Cheap enough to record with every trial.

Everything is read from files and package metadata; the only process started is one ``git status`` in a checkout.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "tokenizers",
    "gguf",
    "numpy",
    "scipy",
    "numba",
    "triton",
)
"""Distributions whose version can change a number. Those not installed are left out of the record."""

VECTOR_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vbmi": "VBMI",
    "avx512_vnni": "VNNI",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "sve": "SVE",
}
"""Flags of ``/proc/cpuinfo`` that decide which kernels run and how fast."""

CHECKOUT = Path(__file__).parents[2]

GIT_TIMEOUT = 5.0
"""Seconds to wait for git on a slow disk before the commit is recorded as unknown."""


def provenance(device: str, started: datetime) -> dict[str, Any]:
    """The fields of a record's provenance for a trial on ``device`` (``cpu``, ``cuda``, ``cuda:1``) that ends now.

    ``started`` is the trial's beginning, with a time zone. Sizes are bytes; None means that it could not be found out.
    The host is named by a hash, so that records of one machine can be told apart from another's and no more.
    """
    import torch

    name, memory = _device(device)
    commit, dirty = git_state(CHECKOUT)
    return {
        "kvbench": kvbench_version(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "torch_build": _torch_build(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_total": psutil.virtual_memory().total,
        "load_average": psutil.getloadavg(),
        "git_sha": commit,
        "git_dirty": dirty,
        "device_name": name,
        "device_memory": memory,
        "hostname_hash": hashlib.sha256(platform.node().encode()).hexdigest()[:12],
        "started": started,
        "finished": datetime.now(UTC),
    }


def look_up_once() -> None:
    """Look up what :func:`provenance` remembers of this process and hands on to its forks: commit and versions."""
    git_state(CHECKOUT)
    kvbench_version()
    package_versions()


@cache
def kvbench_version() -> str:
    """Version of the installed kvbench, or ``source`` when it runs from a checkout that was never installed."""
    return _version("kvbench") or "source"


@cache
def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of those of the packages that are installed, from metadata alone: nothing is imported."""
    versions = {name: _version(name) for name in names}
    return {name: version for name, version in versions.items() if version}


def cpu_model() -> str:
    """The processor's marketing name where the system tells it, else its architecture, and its vector instructions.

    They belong to it: clouds sell processors of several generations, whose kernels differ, under one name.
    """
    info = _cpu_info()
    name = info.get("model name") or platform.processor() or platform.machine()
    flags = (info.get("flags") or info.get("Features") or "").split()
    vectors = [instructions for flag, instructions in VECTOR_INSTRUCTIONS.items() if flag in flags]
    return f"{name} ({', '.join(vectors)})" if vectors else name


def _cpu_info() -> dict[str, str]:
    """What Linux tells about the processor's last core; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def usable_cores() -> int:
    """Logical cores that this process may run on, which a container or ``taskset`` can make fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def governor() -> str | None:
    """The first core's frequency governor (``performance``, ``powersave``); None where the system hides it."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


@cache
def git_state(checkout: Path) -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it; (None, None) where ``checkout`` is not the root of one.

    The root is required so that an installed kvbench never reports the repository that its environment lies in.
    """
    if not (checkout / ".git").exists():
        return None, None
    command = ["git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=GIT_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):  # git missing, slow, or refusing another user's folder
        return None, None
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), None)
    return commit, any(not line.startswith("#") for line in lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device(device: str) -> tuple[str, int | None]:
    """Name and memory of ``device``. A CPU's memory is the machine's and already recorded, hence None."""
    import torch

    if not device.startswith("cuda"):
        return cpu_model(), None
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.total_memory


def _torch_build() -> str:
    """What decides torch's kernels: version, vector instructions, CUDA, BLAS and OpenMP."""
    import torch

    parts = {
        torch.backends.cpu.get_cpu_capability(): True,
        f"CUDA {torch.version.cuda}": torch.version.cuda,
        "MKL": torch.backends.mkl.is_available(),
        "oneDNN": torch.backends.mkldnn.is_available(),
        "OpenMP": torch.backends.openmp.is_available(),
    }
    return " ".join([torch.__version__, *(part for part, present in parts.items() if present)])
