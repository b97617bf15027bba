"""The CPU kernels on processors without AVX512."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="what is denied are x86 instructions")
def test_the_kernels_need_no_more_than_avx2(tmp_path: Path) -> None:
    features = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+bmi,+bmi2"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("plain_cpu.py"))],
        env=os.environ | features | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
