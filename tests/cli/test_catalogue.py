"""What is written down of the compressors is what their classes say, and a spec is judged by it as by them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from catalogued import catalogue_text
from default_specs import ALL_SPECS
from fp64 import one_thread

from kvbench.compressors import registry
from kvbench.compressors.catalogue import FILE, catalogue, refuse_wrong_keys, sketch
from kvbench.compressors.compressor import parse
from kvbench.compressors.names import BUILT_IN
from kvbench.compressors.rules import as_text
from kvbench.errors import KvbenchError

__all__ = ["one_thread"]

VALUES = {
    "int": ("-1", "0", "1", "2", "3", "4", "5", "7", "8", "9", "64", "65", "128", "136", "1000"),
    "float": ("-0.5", "0", "0.25", "0.5", "1", "1.5", "2", "3", "8", "8.5", "100"),
    "bool": ("true", "false"),
    "str": ("text",),
}
"""Some of every kind, on both sides of every bound."""


def test_the_file_is_what_the_classes_say() -> None:
    assert FILE.read_text("utf-8") == catalogue_text(), "a compressor has changed: run `make catalogue`"


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_outline_is_read_back_as_it_was(name: str) -> None:
    assert catalogue()[name].outline == registry.find(name).outline()


def verdict(judge: object, spec: str) -> str:
    """The canonical spec that ``judge`` makes of ``spec``, or why it refuses it."""
    try:
        return str(judge(spec))  # type: ignore[operator]
    except KvbenchError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_value_is_judged_alike(name: str) -> None:
    """Each setting of each part takes every value in turn, the others as in its example."""
    entry = catalogue()[name]
    _, _, written = entry.example.partition(":")
    given = dict(item.split("=") for item in filter(None, written.split(",")))
    seen = set()
    for setting in entry.outline.settings:
        for value in VALUES.get(setting.kind, setting.kind.split("|")):
            settings = given | {setting.key: value}
            spec = f"{name}:" + ",".join(f"{key}={text}" for key, text in settings.items())
            assert verdict(sketch, spec) == verdict(parse, spec)
            seen.add(verdict(sketch, spec).startswith("refused"))
    assert not entry.outline.rules or True in seen, "no value broke a rule"


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_a_sketch_is_the_compressors_canonical_form(spec: str) -> None:
    drawn, compressor = sketch(spec), parse(spec)
    assert drawn is not None and str(drawn) == str(compressor)
    names = [outline.name for outline, _ in drawn.parts]
    assert names == [part.name for part in compressor.parts]
    for (_, values), part in zip(drawn.parts, compressor.parts, strict=True):
        assert values == vars(part)


def test_what_others_bring_is_left_to_their_code() -> None:
    assert sketch("saved:path=somewhere") is None
    assert sketch("int:bits=4") is not None


def test_a_method_need_not_be_complete() -> None:
    refuse_wrong_keys("pca+int:bits=4")
    with pytest.raises(KvbenchError, match="unknown key of compressor 'pca': 'rnk'"):
        refuse_wrong_keys("pca:rnk=1")


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (1.0, "1"), (0.123456789, "0.123456789"), (1e20, "1e20")])
def test_values_as_specs_write_them(value: object, text: str) -> None:
    assert as_text(value) == text


SLIPS = """
show int:bits=5
show pca
show kvtc:bits=3,recent=0
show pca:rank=0.5+hadamard+int:bits=4
show pca:rank=2
show none+int:bits=4
show ftc --model nowhere
run --compressor int:bits=5
run --compressor int:bits=4 --model nowhere
run --model random:lama
run --model random:llama?layers=0
run --dtype int8
sweep quick --compressor kvtc:bits=9
generate hello --compressor int:bits=5
generate hello --model nowhere
generate hello --dtype int8
fit --method pca:rnk=1 --target bits=3
fit --method kvtc --target bits=3 --text nowhere
calibrate --text nowhere
convert --compressor mla:latent=24,rope_dims=7 --out somewhere
validate kivi:bits=5
lm-eval --tasks some --compressor int:bits=5
project --model llama-3.1-8b --compressor int:bits=5
compare nowhere nowhere
gate nowhere --baseline nowhere
gate-times --base nowhere
history nowhere
leaderboard nowhere
merge nowhere --out somewhere
records nowhere
report nowhere
trial nowhere id
ls runs nowhere
"""


def test_slips_are_told_and_specs_explained_without_torch() -> None:
    script = f"""
import sys
from kvbench.cli.main import _exit_code
for line in {SLIPS!r}.strip().splitlines():
    print("code:", _exit_code(line.split()), line, "torch" in sys.modules or "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("code:")]
    late = [" ".join(words[2:-1]) for words in told if words[-1] == "True"]
    assert late == [], done.stderr
    explained = [" ".join(words[2:-1]) for words in told if words[1] == "0"]
    assert explained == ["show pca", "show kvtc:bits=3,recent=0", "show pca:rank=0.5+hadamard+int:bits=4"]
    assert "Traceback" not in done.stderr
