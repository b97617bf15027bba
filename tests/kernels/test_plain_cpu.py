"""The CPU kernels on processors with fewer instructions than the newest."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm
import pytest

AVX = ("avx", "fma", "f16c")
AVX2 = (*AVX, "avx2", "bmi", "bmi2")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


class Processor(NamedTuple):
    """What to compile for; whether it has VNNI, and how many columns are looked up in the same table."""

    name: str
    features: tuple[str, ...]
    vnni: bool
    sharing: int


PROCESSORS = {
    "no AVX2": Processor("ivybridge", AVX, False, 0),  # the code of processors other than x86
    "AVX2": Processor("haswell", AVX2, False, 4),
    "AVX512": Processor("skylake-avx512", AVX512, False, 4),
    "AVX512 and VNNI": Processor("cascadelake", (*AVX512, "avx512vnni"), True, 4),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="what is denied are x86 instructions")
@pytest.mark.timeout(900)  # every kernel is compiled
@pytest.mark.parametrize("which", PROCESSORS)
def test_the_kernels_need_no_more_than(which: str, tmp_path: Path) -> None:
    name, features, vnni, sharing = PROCESSORS[which]
    missing = [feature for feature in features if not llvm.get_host_cpu_features().get(feature)]
    if missing:
        pytest.skip(f"this processor cannot run them: it has no {', '.join(missing)}")
    if llvm.get_host_cpu_name() == name:
        pytest.skip("all other tests run on this processor")
    target = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features)}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("plain_cpu.py")), str(int(vnni)), str(sharing)],
        env=os.environ | target | {"KVBENCH_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
