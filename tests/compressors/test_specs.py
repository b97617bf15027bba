"""Spec strings: the canonical form parses back to an equal compressor, and errors say what exists."""

from __future__ import annotations

import re

import pytest
from default_specs import ALL_SPECS
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.cache.spans import Spans
from kvbench.compressors.catalogue import sketch
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.methods.kvtc import Kvtc
from kvbench.errors import KvbenchError

share = st.floats(1e-9, 1.0)
bits = st.sampled_from([2, 3, 4, 8])
ALLOCATIONS = ("fisher", "sensitivity", "energy", "uniform")


def optional(**keys: st.SearchStrategy) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional=keys).map(
        lambda values: {key: str(value) for key, value in values.items()}
    )


def part(name: str, required: dict[str, st.SearchStrategy], **keys: st.SearchStrategy) -> st.SearchStrategy:
    """(name, settings) with the required keys and some of the optional ones."""
    needed = st.fixed_dictionaries(required).map(lambda values: {key: str(value) for key, value in values.items()})
    return st.tuples(st.just(name), st.builds(lambda one, two: one | two, needed, optional(**keys)))


SELECTORS = st.one_of(
    part("snapkv", {"budget": share}, window=st.integers(1, 64), kernel=st.sampled_from([1, 3, 5])),
    part("knorm", {"budget": share}),
)
TRANSFORMS = st.one_of(
    part(
        "pca",
        {"rank": share},
        heads=st.sampled_from(["joint", "each"]),
        frame=st.sampled_from(["before", "after", "bands"]),
    ),
    part("pca", {"energy": share}),
    part("palu", {"rank": share}, group=st.integers(1, 9), allocate=st.sampled_from(ALLOCATIONS)),
)
QUANTIZERS = st.one_of(
    part("int", {"bits": bits}, group=st.integers(1, 300), side=st.sampled_from(["both", "keys", "values"])),
    part("kivi", {"bits": bits}, group=st.integers(1, 300)),
)
BOTH = part("kvtc", {"bits": st.floats(1e-3, 8)}, shift=st.floats(-1e30, 1e30), allocate=st.sampled_from(ALLOCATIONS))
SPANS = optional(
    sinks=st.integers(0, 99),
    recent=st.integers(0, 9999),
    block=st.integers(1, 999),
    exact=st.sampled_from(["float16", "bfloat16"]),
)


@st.composite
def specs(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A valid spec with its parts and keys in any order and any spacing, and the spans it sets."""
    coding = st.one_of(
        TRANSFORMS.map(lambda one: [one]), QUANTIZERS.map(lambda one: [one]), BOTH.map(lambda one: [one])
    )
    parts = draw(st.one_of(coding, st.tuples(TRANSFORMS, QUANTIZERS).map(list)))
    if draw(st.booleans()):
        parts = [*parts, draw(SELECTORS)]
    parts, spans = draw(st.permutations(parts)), draw(SPANS)
    place, texts = draw(st.integers(0, len(parts) - 1)), []
    for index, (name, keys) in enumerate(parts):
        items = draw(st.permutations(list((keys | (spans if index == place else {})).items())))
        space = draw(st.sampled_from(["", " "]))
        written = [f"{space}{key}{space}={space}{value.replace('e+', 'e')}{space}" for key, value in items]
        texts.append(f"{space}{name}:" + ",".join(written))
    return "+".join(texts), spans


@given(specs())
@settings(deadline=None, max_examples=100)
def test_the_canonical_form_gives_an_equal_compressor(drawn: tuple[str, dict[str, str]]) -> None:
    spec, spans = drawn
    compressor = parse(spec)
    assert parse(str(compressor)) == compressor
    assert str(parse(str(compressor))) == str(compressor)
    assert " " not in str(compressor)
    assert {name: str(getattr(compressor.spans, name)) for name in spans} == spans


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_every_default_spec_is_canonical_up_to_order(spec: str) -> None:
    assert parse(str(parse(spec))) == parse(spec)


@pytest.mark.parametrize(
    ("spec", "canonical"),
    [
        ("none", "none"),
        ("none:dtype=model", "none"),
        ("none:dtype=float16", "none:dtype=float16"),
        ("kvtc:recent=0,bits=3", "kvtc:bits=3,recent=0"),
        ("kvtc:bits=3.0,shift=1", "kvtc:bits=3"),
        ("identity:sinks=0", "identity:sinks=0"),
        ("int:bits=4+pca:rank=0.50", "pca:rank=0.5+int:bits=4"),
        ("int:bits=8,recent=32+snapkv:budget=.25", "snapkv:budget=0.25,recent=32+int:bits=8"),
        ("kivi:bits=2,group=32,sinks=4,recent=64,block=32", "kivi:bits=2"),
        ("kivi:bits=2,exact=fp16", "kivi:bits=2,exact=float16"),
        ("pca:rank=0.5+int:exact=bf16,bits=4", "pca:rank=0.5,exact=bfloat16+int:bits=4"),
        ("kivi:bits=2,exact=model", "kivi:bits=2"),
        ("int:bits=4+hadamard+pca:rank=0.5", "pca:rank=0.5+hadamard+int:bits=4"),
        ("pca:rank=0.123456789", "pca:rank=0.123456789"),
        ("kvtc:bits=3,shift=1e20", "kvtc:bits=3,shift=1e20"),
    ],
)
def test_canonical_forms(spec: str, canonical: str) -> None:
    """One content, one name: trials are found by it."""
    assert str(parse(spec)) == canonical


ERRORS = {
    "": "empty compressor spec; known: .*pca",
    "pcaa:rank=1": "unknown compressor 'pcaa'; did you mean 'pca'\\? known: .*kivi.*palu",
    "pca:rank=0.5+": "unknown compressor ''; known: .*kivi",
    "pca:rnk=0.5": "unknown key of compressor 'pca': 'rnk'; did you mean 'rank'\\? known: block, energy, exact, ",
    "pca": "give either rank or energy",
    "pca:rank=0.5,energy=0.9": "give either rank or energy",
    "pca:rank=2": "rank=2 must be in \\(0, 1\\]",
    "pca:rank=0": "must be in \\(0, 1\\]",
    "pca:rank=nan": "pca:rank='nan' is not a number",
    "kvtc:bits=inf": "kvtc:bits='inf' is not a number",
    "kvtc:bits=9": "bits=9 must be in \\(0, 8\\]",
    "kvtc:bits=3,shift=nan": "kvtc:shift='nan' is not a number",
    "pca:rank=half": "pca:rank='half' is not a number",
    "pca:rank=0.5,heads=all": "unknown value for pca:heads: 'all'; known: each, joint",
    "int": "'int' needs bits, as in int:bits=",
    "int:bits": "cannot read 'bits' in compressor 'int:bits'; write name:key=value",
    "int:bits=": "cannot read 'bits='",
    "int:=4": "cannot read '=4'",
    "int:bits=4.5": "int:bits='4.5' is not a whole number",
    "int:bits=5": "bits=5 is not one of 2, 3, 4, 8",
    "int:bits=4,group=0": "group=0 must be at least 1",
    "int:bits=4,bits=8": "sets bits twice",
    "pca:rank=0.5,recent=8+int:bits=4,recent=9": "sets recent twice",
    "kvtc:bits=3+int:bits=4": "both bring a quantizer; keep one",
    "pca:rank=0.5+palu:rank=0.5": "both bring a transform",
    "hadamard+turboquant:bits=3": "both bring a rotation",
    "kvtc:bits=3+hadamard": "both bring a rotation",
    "knorm:budget=0.5+snapkv:budget=0.5": "both bring a selector",
    "none+int:bits=4": "none is a baseline: it takes no other part and no spans",
    "int:bits=4+hf": "hf is a baseline",
    "none:recent=3": "none is a baseline",
    "int:bits=4,sinks=-1": "sinks and recent must be at least 0, block at least 1",
    "int:bits=4,block=0": "block at least 1",
    "int:bits=4,exact=float8": "unknown value for int:exact: 'float8'",
    "none:exact=float16": "none is a baseline",
    "none:dtype=float8": "unknown value for none:dtype: 'float8'.*known: bfloat16, float16, model",
    "int:bits=4,recent=few": "int:recent='few' is not a whole number",
    "palu:rank=0.5,group=0": "group=0 must be at least 1",
    "knorm:budget=0": "budget=0 must be in \\(0, 1\\]",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_errors_are_one_line_that_says_what_exists(spec: str) -> None:
    with pytest.raises(KvbenchError) as caught:
        parse(spec)
    message = str(caught.value)
    assert re.search(ERRORS[spec], message), message
    assert "\n" not in message
    with pytest.raises(KvbenchError) as at_once:
        sketch(spec)
    assert str(at_once.value) == message, "without torch it is told in other words"


def test_defaults_and_what_a_part_says_of_itself() -> None:
    compressor = parse("kvtc:bits=3")
    assert compressor == Compressor((Kvtc(3.0),), Spans())
    assert compressor.needs_calibration and compressor.baseline is None
    assert parse("hf").baseline == "hf" and not parse("hf").needs_calibration
    assert parse("pca:rank=1+int:bits=2").needs_calibration
    assert Kvtc.settings() == [
        ("bits", "float", "required"),
        ("shift", "float", "1"),
        ("allocate", "fisher|sensitivity|energy|uniform", "uniform"),
        ("coder", "fixed|blocks|entropy", "fixed"),
        ("layers", "int", "1"),
        ("frame", "after|before|bands", "before"),
    ]
