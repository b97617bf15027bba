"""Which edits measure a trial anew: those of code that it runs, and no others."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from driving import subject

from kvbench.compressors import names
from kvbench.compressors.compressor import parse
from kvbench.compressors.methods.saved import PLAN
from kvbench.compressors.names import ENTRY_POINTS
from kvbench.compressors.plan_file import dump_plan
from kvbench.runs.code_identity import ROOT, code_sha256, code_text, packages

TRIALS = (
    "none quality cpu",
    "int:bits=4 quality cpu",
    "int:bits=4 speed cpu",
    "int:bits=4 memory cpu",
    "int:bits=4 quality cuda",
    "kivi:bits=2 quality cpu",
    "snapkv:budget=0.5 quality cpu",
    "ftc:bits=3 quality cuda",
    "int:bits=4 tasks cpu",
    "int:bits=4 needles cpu",
)
ANSWERS = ("tasks cpu", "needles cpu")
"""Parts that let the model answer."""
ALL, NONE = "", "no trial"
EDITS = {
    "kernels/reference.py": ALL,
    "kernels/cpu/coded_kernel.py": "cpu",
    "kernels/cpu/llvm/vectors.py": "cpu",
    "kernels/triton/coded_kernel.py": "cuda",
    "kernels/triton/unpack_plan.py": "cuda",
    "cache/body.py": ALL,
    "calibration/statistics.py": ALL,
    "compressors/compressor.py": ALL,
    "compressors/equal_bytes.py": NONE,
    "compressors/methods/none.py": ALL,
    "compressors/methods/kivi.py": "kivi",
    "compressors/methods/ftc.py": "ftc",
    "compressors/methods/palu.py": NONE,
    "conformance/kit.py": NONE,
    "conversion/convert.py": NONE,
    "healing/heal.py": NONE,
    "gate/verdicts.py": NONE,
    "hardware/bandwidth.py": "speed",
    "hardware/environment.py": NONE,
    "measure/bench.py": ALL,
    "measure/prompt.py": ALL,
    "measure/speed.py": "speed",
    "measure/memory_probe.py": "memory",
    "measure/arm_factory.py": ALL,
    "measure/parts/quality.py": "quality",
    "measure/parts/speed.py": "speed",
    "measure/parts/memory.py": "memory",
    "measure/parts/__init__.py": NONE,
    "measure/doctor.py": NONE,
    "measure/results.py": NONE,
    "hooks/interception.py": ALL,
    "models/random_models.py": ALL,
    "codecs/packing.py": ALL,
    "codecs/quantizers/codebook.py": ALL,
    "report/page.py": NONE,
    "report/columns/speed.py": NONE,
    "runs/runner.py": NONE,
    "runs/measuring.py": ALL,
    "runs/store.py": NONE,
    "selectors/base.py": ALL,
    "selectors/attention.py": "snapkv",
    "projection/step_time.py": NONE,
    "storage/files.py": NONE,
    "storage/digests.py": ALL,
    "storage/fetching.py": ALL,
    "storage/kept.py": ALL,
    "texts/splits.py": ALL,
    "codecs/transforms/linear.py": ALL,
    "tasks/scoring.py": ANSWERS,
    "tasks/ruler/needles.py": ANSWERS,
    "tasks/ruler/tracing.py": "tasks cpu",
    "measure/tasks.py": ANSWERS,
    "measure/parts/tasks.py": "tasks cpu",
    "measure/parts/needles.py": "needles cpu",
    "measure/paired_scores.py": NONE,
    "report/verdicts.py": NONE,
    "cli/main.py": NONE,
    "errors.py": NONE,
}
"""File to a word, or some, of which one stands in the names of the trials that it moves."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of kvbench's source, to edit."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "kvbench", folder / "kvbench", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(root: Path) -> dict[str, str]:
    return identities(root)


@pytest.fixture
def edit(root: Path) -> Iterator[Callable[[str, Callable[[str], str]], dict[str, str]]]:
    """Change a file's text; gives the trials' identities, and the file its text back afterwards."""
    texts: dict[Path, str] = {}

    def change(name: str, how: Callable[[str], str]) -> dict[str, str]:
        path = root / "kvbench" / name
        text = texts.setdefault(path, path.read_text() if path.exists() else "")
        assert how(text) != text
        path.write_text(how(text))
        return identities(root)

    yield change
    for path, text in texts.items():
        path.write_text(text)


def identities(root: Path) -> dict[str, str]:
    return {name: identity(name, root) for name in TRIALS}


def identity(name: str, root: Path = ROOT) -> str:
    spec, part, device = name.split()
    return code_sha256(parse(spec), (part,), device, root)


@pytest.mark.parametrize(("file", "moved"), EDITS.items())
def test_a_changed_line_moves_the_trials_that_run_it(file, moved, edit, before):
    after = edit(file, lambda text: text + "\nADDED = 1\n")
    assert {name for name in TRIALS if after[name] != before[name]} == {name for name in TRIALS if _in(moved, name)}


def _in(words: str | tuple[str, ...], name: str) -> bool:
    return any(word in name for word in ((words,) if isinstance(words, str) else words))


def test_every_package_has_an_edit():
    package = ROOT / "kvbench"
    folders = {path.parent.relative_to(package) for path in package.rglob("__init__.py")}
    assert folders == {Path(file).parent for file in EDITS}


def test_the_reverse_divergence_moves_every_trial_that_measures_quality(edit, before):
    forward, reverse = "p.exp() * (p - q - 1) + q.exp()", "q.exp() * (q - p - 1) + p.exp()"
    after = edit("measure/divergence.py", lambda text: text.replace(forward, reverse))
    assert all(after[name] != before[name] for name in TRIALS if "quality" in name)


def test_what_a_new_module_brings_is_followed(edit, before):
    edit("measure/quality.py", lambda text: text + "\nfrom kvbench.codecs.transforms.novel import one\n")
    first = edit("codecs/transforms/novel.py", lambda _: "one = 1\n")
    second = edit("codecs/transforms/novel.py", lambda text: text + "one = 2\n")
    quality = "int:bits=4 quality cpu"
    assert len({before[quality], first[quality], second[quality]}) == 3


@pytest.mark.parametrize("file", ["measure/quality.py", "kernels/reference.py", "compressors/methods/kivi.py"])
def test_comments_docstrings_and_layout_move_none(file, edit, before):
    def reworded(text: str) -> str:
        words = ast.get_docstring(ast.parse(text), clean=False)
        assert words
        return "# A comment.\n\n" + text.replace(words, "Other words.", 1) + '\n\n"""Of nothing."""\n'

    assert edit(file, reworded) == before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 'None'", "x = None"),
        ("f(a, b)", "f(a, *b)"),
        ("f(a)(b)", "f(a, b)"),
        ("if a:\n    b\n    c", "if a:\n    b\nc"),
        ("x: int = 1", "x = 1"),
        ("p * (p - q)", "q * (q - p)"),
        ("return", "return 1"),
        ("{**a}", "{None: a}"),
    ],
)
def test_what_means_something_else_reads_otherwise(one, other):
    assert code_text(ast.parse(one)) != code_text(ast.parse(other))


def test_a_plan_is_identified_by_its_content_and_by_the_codecs_it_holds(tmp_path, edit, root):
    model = subject("llama", torch.float32)

    def save(spec: str) -> str:
        plan = parse(spec).fit(model.geometry)
        (tmp_path / PLAN).write_bytes(dump_plan(plan, model.geometry, "some model", "0" * 64))
        return f"saved:path={tmp_path} quality cpu"

    name = save("hadamard+int:bits=4")
    before = identity(name, root)
    assert identity(name, root) == before
    edit("codecs/quantizers/integer.py", lambda text: text + "\nADDED = 1\n")
    edited = identity(name, root)
    assert len({before, edited, identity(save("hadamard+int:bits=8"), root)}) == 3


def test_a_part_of_another_package_is_read_with_what_it_imports(tmp_path, monkeypatch):
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "__init__.py").write_text("")
    (tmp_path / "others" / "sizes.py").write_text("SIZE = 1\n")
    part = (Path(__file__).parents[1] / "plugin" / "kvbench_halves.py").read_text()
    (tmp_path / "others" / "halves.py").write_text(part + "\nfrom .sizes import SIZE\n")
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("halves", "others.halves:Halves", ENTRY_POINTS)
    monkeypatch.setattr(names, "plugins", lambda: {"halves": point})
    name = "halves quality cpu"
    before = identity(name)
    (tmp_path / "others" / "sizes.py").write_text("SIZE = 1  # one\n")
    assert identity(name) == before
    (tmp_path / "others" / "sizes.py").write_text("SIZE = 2\n")
    assert identity(name) != before


def test_versions_of_packages_are_part_of_a_trial():
    assert {"torch", "transformers", "numpy", "numba"} <= set(packages(parse("none"), "cpu"))
    assert "triton" not in packages(parse("none"), "cpu")


def test_every_process_finds_the_same():
    command = "import sys; sys.path[:0] = sys.argv[1:]; import test_code_identity as t; print(t.identity(t.TRIALS[1]))"
    process = subprocess.run(
        [sys.executable, "-c", command, str(Path(__file__).parent), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.strip() == identity(TRIALS[1])
