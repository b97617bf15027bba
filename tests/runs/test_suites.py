from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.measure.parts.memory import MemoryWorkload
from kvbench.measure.parts.quality import QualityWorkload
from kvbench.models.registry import find
from kvbench.runs.suites import expand, load_suite, parse_suite, suite_names
from kvbench.runs.trials import Workload

SMALL = """
name = "s"
models = ["a", "b"]
compressors = ["none", "int:bits=4"]
[[workload]]
name = "w"
[workload.quality]
documents = 3
[[workload]]
name = "only-b"
models = ["b"]
[workload.memory]
"""


def test_expansion_is_the_product_model_by_model():
    w = Workload(name="w", quality=QualityWorkload(documents=3))
    only_b = Workload(name="only-b", memory=MemoryWorkload())
    assert expand(parse_suite(SMALL, "s")) == [
        ("a", "none", w),
        ("a", "int:bits=4", w),
        ("b", "none", w),
        ("b", "int:bits=4", w),
        ("b", "none", only_b),
        ("b", "int:bits=4", only_b),
    ]


def test_a_workload_forgets_the_models_it_was_narrowed_to():
    assert all(type(workload) is Workload for _, _, workload in expand(parse_suite(SMALL, "s")))


def test_a_workload_may_take_only_what_is_calibrated():
    suite = parse_suite(SMALL.replace('name = "w"', 'name = "w"\ncalibrated_only = true'), "s")
    named = [(model, spec, workload.name) for model, spec, workload in expand(suite, lambda spec: spec == "none")]
    assert ("a", "none", "w") in named and ("a", "int:bits=4", "w") not in named
    assert ("b", "int:bits=4", "only-b") in named


@pytest.mark.parametrize("name", ["quick", "standard", "full", "ci", "capacity"])
def test_built_in_suites_parse(name):
    suite = load_suite(name)
    assert suite.name == name
    assert {"none", "hf"} <= set(suite.compressors)
    assert len(expand(suite)) >= len(suite.compressors)
    assert [str(parse(spec)) for spec in suite.compressors] == list(suite.compressors)
    assert all(find(model) for model in suite.models)


def test_names_are_the_built_in_files():
    assert suite_names() == [
        "ablation",
        "accuracy",
        "capacity",
        "ci",
        "domain-matrix",
        "domains",
        "eviction",
        "fidelity",
        "frontier",
        "full",
        "healing",
        "latents",
        "memory-frontier",
        "mla",
        "mla-conversion",
        "needles",
        "pytest",
        "quick",
        "ruler-1k",
        "speed",
        "standard",
        "thinking",
        "times",
        "undecided",
        "wikitext",
    ]


def test_ci_measures_exact_quantities_only():
    assert all(set(workload.parts) == {"memory", "quality"} for _, _, workload in expand(load_suite("ci")))


def test_a_file_is_a_suite(tmp_path):
    (tmp_path / "mine.toml").write_text(SMALL)
    assert load_suite(tmp_path / "mine.toml").name == load_suite(str(tmp_path / "mine.toml")).name == "s"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("models = [", "modles = [", r"top level: 'modles'; did you mean 'models'"),
        ("documents", "dokuments", r"workload.quality: 'dokuments'; did you mean 'documents'"),
        ("[workload.memory]", "[workload.memori]", r"workload: 'memori'; did you mean 'memory'"),
        ("documents = 3", "documents = 0", r"workload.0.quality.documents: .*greater than 0"),
        ('models = ["b"]', 'models = ["bb"]', r"model of workload only-b 'bb'; did you mean 'b'"),
        ('"only-b"', '"w"', "'w' is named twice"),
        ('"b"]\ncompressors', '"a"]\ncompressors', "models: 'a' is named twice"),
        ('compressors = ["none", "int:bits=4"]', "compressors = []", "compressors: .*at least 1"),
        ("[workload.quality]\ndocuments = 3", "", "measures nothing"),
        ('name = "s"', "name = ", "not valid TOML"),
        ("[workload.memory]", '[workload.tasks]\ntasks = ["vtt"]', "unknown task 'vtt'; did you mean 'vt'"),
        ("[workload.memory]", "[workload.tasks]\ntasks = []", "one or more of"),
        ("[workload.memory]", "[workload.tasks]\nsamples = 0", r"tasks.samples: .*greater than 0"),
        ("[workload.memory]", "[workload.tasks]\nmargin = 0", r"tasks.margin: .*greater than 0"),
        (
            "[workload.memory]",
            "[workload.needles]\ndepths = [0.5, 1.5]",
            r"depths.1: .*less than or equal to 1",
        ),
        ("[workload.memory]", "[workload.needles]\nlengths = [512, 512]", "one or more different values"),
        ("[workload.memory]", '[workload.needles]\nkind = "none"', "needles.kind: .*'distractors'"),
    ],
)
def test_mistakes_are_named(old, new, message):
    assert old in SMALL
    with pytest.raises(KvbenchError, match=message) as error:
        parse_suite(SMALL.replace(old, new, 1), "mine.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("quality", "told"),
    [
        ("documents = 19", "scores 19 documents of 1024 tokens, 20 are needed"),
        ("documents = 11\nlength = 4096", "scores 11 documents of 4096 tokens, 12 are needed"),
        ('documents = 50\nsplit = "development"', "scores the development split; set split to 'test'"),
    ],
)
def test_quoted_suites_score_enough_documents_that_nothing_was_tuned_on(quality, told):
    text = SMALL.replace("documents = 3", quality)
    assert not parse_suite(text, "mine.toml").quoted
    with pytest.raises(KvbenchError, match=told) as error:
        parse_suite("quoted = true\n" + text, "mine.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quality", ["documents = 20", "documents = 12\nlength = 4096"])
def test_quoted_suites_may_have_fewer_documents_where_they_are_long(quality):
    assert parse_suite("quoted = true\n" + SMALL.replace("documents = 3", quality), "mine.toml").quoted


def test_unknown_suites_are_named(tmp_path):
    with pytest.raises(KvbenchError, match="did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(KvbenchError, match="cannot read"):
        load_suite(tmp_path / "none.toml")


def test_records_suites_and_gate_do_without_torch():
    modules = "kvbench.runs.store, kvbench.runs.suites, kvbench.gate.gate, kvbench.gate.compare"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
