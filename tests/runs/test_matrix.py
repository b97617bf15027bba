"""Suite files with axes: which cells come out, and what is refused."""

from pathlib import Path

import pytest

from kvbench.errors import KvbenchError
from kvbench.runs.suites import expand, load_suite, parse_suite

SWEEP = """
name = "s"
models = ["a", "b"]
compressors = ["none", "pca:rank={rank}+int:bits={bits}"]
[matrix]
rank = [0.25, 0.5]
bits = [4, 8]
tokens = [512, 1024]
[defaults.speed]
steps = 4
rounds = 16
[[workload]]
name = "tokens-{tokens}"
[workload.speed]
prompt = "{tokens}"
[profiles.smoke.matrix]
tokens = [512]
"""


def cells(text, profile=None):
    return [(model, spec, workload.name) for model, spec, workload in expand(parse_suite(text, "s", profile))]


def test_every_value_meets_every_other():
    suite = parse_suite(SWEEP, "s")
    assert suite.compressors == (
        "none",
        *(f"pca:rank={rank}+int:bits={bits}" for rank in (0.25, 0.5) for bits in (4, 8)),
    )
    assert [workload.name for workload in suite.workload] == ["tokens-512", "tokens-1024"]
    assert len(cells(SWEEP)) == 2 * 5 * 2


def test_a_value_alone_keeps_its_type_and_defaults_fill_in():
    speed = parse_suite(SWEEP, "s").workload[1].speed
    assert (speed.prompt, speed.steps, speed.rounds) == (1024, 4, 16)
    own = parse_suite(SWEEP.replace('prompt = "{tokens}"', 'prompt = "{tokens}"\nsteps = 8'), "s")
    assert own.workload[0].speed.steps == 8


def test_a_profile_replaces_values():
    assert {name for _, _, name in cells(SWEEP, "smoke")} == {"tokens-512"}


@pytest.mark.parametrize(
    ("table", "gone"),
    [
        ("rank = 0.25", 2 * 2 * 2),
        ("rank = 0.25\ntokens = 1024", 2 * 2),
        ("tokens = 1024\nbits = [4, 8]", 2 * 4),
        ('model = "a"', 10),
        ('model = "a"\nrank = 0.5\nbits = 8\ntokens = 512', 1),
    ],
)
def test_cells_that_have_all_values_of_a_table_are_left_out(table, gone):
    left = cells(f"{SWEEP}\n[[exclude]]\n{table}\n")
    assert len(left) == 20 - gone and set(left) < set(cells(SWEEP))


def test_compressor_and_workload_have_one_value_of_a_shared_axis():
    text = SWEEP.replace("bits={bits}", "bits={bits},recent={tokens}")
    for _, spec, workload in cells(text):
        assert spec == "none" or f"recent={workload.removeprefix('tokens-')}" in spec


def test_names_without_the_values_get_them():
    names = {name for _, _, name in cells(SWEEP.replace('"tokens-{tokens}"', '"w"'))}
    assert names == {"w tokens=512", "w tokens=1024"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{rank}", "{rnak}", "unknown axis 'rnak'; did you mean 'rank'"),
        ("bits = [4, 8]", "bits = [4, 8]\nspare = [1]", "axis 'spare' of the matrix is used nowhere"),
        ("bits = [4, 8]", "bits = []", "axis 'bits' of the matrix must be a list"),
        ("bits = [4, 8]", "bits = [4, 4]", "axis 'bits' of the matrix must be a list of different"),
        ("bits = [4, 8]", "bits = 4", "axis 'bits' of the matrix must be a list"),
        ("[profiles.smoke.matrix]\ntokens = [512]", "[[exclude]]\nrnk = 1", "unknown axis in exclude: 'rnk'; did you"),
        (
            "[profiles.smoke.matrix]\ntokens = [512]",
            '[[exclude]]\nmodel = ["a", "b"]',
            "every cell is excluded",
        ),
        ("[profiles.smoke.matrix]\ntokens = [512]", "[[exclude]]", "exclude must be tables with a value in each"),
        ("[defaults.speed]", "[defaults.sped]", "unknown table of no workload in defaults: 'sped'; did you mean 'spee"),
        ("[matrix]", "[matirx]", "unknown key in suite s, top level: 'matirx'; did you mean 'matrix'"),
        ('compressors = ["none", ', "compressors = [1, ", "compressors: a list of texts must be given"),
        ("steps = 4", "stps = 4", "unknown key in suite s, workload.speed: 'stps'; did you mean 'steps'"),
        ("tokens = [512, 1024]", f"tokens = {list(range(1000))}", "has 10,000 cells: 2 models × 5 compressors × 1,000"),
    ],
)
def test_refused_in_one_line(old, new, message):
    assert old in SWEEP
    with pytest.raises(KvbenchError) as refusal:
        parse_suite(SWEEP.replace(old, new), "s")
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_million_cells_are_counted_and_not_made():
    axes = "\n".join(f"a{i} = {list(range(10))}" for i in range(12))
    text = SWEEP.replace("[matrix]", f"[matrix]\n{axes}").replace(
        "bits={bits}", "bits={bits},x=" + "-".join(f"{{a{i}}}" for i in range(12))
    )
    with pytest.raises(KvbenchError, match=r"the matrix has 16,000,000,000,004 cells.*--yes"):
        parse_suite(text, "s")


def test_an_unknown_profile_is_named():
    with pytest.raises(KvbenchError, match="unknown profile 'smok'; did you mean 'smoke'"):
        parse_suite(SWEEP, "s", "smok")
    with pytest.raises(KvbenchError, match="unknown profile 'smoke'"):
        load_suite("quick", "smoke")


def test_the_readmes_example_is_a_suite():
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8").partition("```toml\nname = ")[2]
    example = "name = " + text.partition("```")[0]
    assert len(cells(example)) == 2 * 5 - 2 and len(cells(example, "smoke")) == 5
