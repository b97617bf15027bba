"""The Triton kernels agree with plain torch in fp64: on the GPU where there is one, else under Triton's interpreter.

In processes of their own: Triton decides when it is imported whether it compiles or interprets.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
GPU = torch.cuda.is_available()

if importlib.util.find_spec("triton") is None:
    pytest.skip("NOT TESTED: Triton is not installed (pip install triton; Linux only)", allow_module_level=True)


def run(*command: str, folder: Path, interpret: bool) -> subprocess.CompletedProcess[str]:
    settings = {"TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"}
    settings["TRITON_CACHE_DIR"] = str(folder)  # what is compiled here is of no use to anybody later
    return subprocess.run(
        [sys.executable, *command], env=os.environ | settings, cwd=HERE.parent.parent, capture_output=True, text=True
    )


@pytest.mark.parametrize("file", ["triton_cases.py", "triton_rebuilt_cases.py"])
def test_the_kernels_compute_what_they_should(file: str, tmp_path: Path) -> None:
    cases = run("-m", "pytest", "-rs", str(HERE / file), folder=tmp_path, interpret=not GPU)
    print(cases.stdout)
    assert cases.returncode == 0, cases.stdout + cases.stderr


def test_the_kernels_compile(tmp_path: Path) -> None:
    """What the interpreter takes, the compiler need not: it is run too, for Hopper."""
    compiled = run(str(HERE / "triton_compiling.py"), "90", folder=tmp_path, interpret=False)
    assert compiled.returncode == 0, compiled.stdout + compiled.stderr
    assert "attend: " in compiled.stdout and "asynchronous copies: True" in compiled.stdout
