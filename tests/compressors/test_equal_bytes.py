"""Equal bytes: what is solved takes the bits that were requested, or is as near to them as the method comes."""

from __future__ import annotations

import pytest
import torch
from driving import subject
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.compressors.compressor import parse
from kvbench.compressors.equal_bytes import Solver, reaches
from kvbench.compressors.open_method import OpenMethod
from kvbench.errors import KvbenchError

WIDE = {"layers": 2, "hidden": 96, "heads": 6, "kv_heads": 3, "head_dim": 32}
TOKENS = 3072
METHODS = ("int", "kivi:group=32", "streaming", "knorm+int:bits=8", "fp8", "hadamard+int", "int:bits=4,recent=32")


def solver(exact: str = "model") -> Solver:
    geometry = subject("llama", torch.float32, **WIDE).geometry
    return Solver(geometry, None, TOKENS, {} if exact == "model" else {"exact": exact})


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(METHODS), st.floats(1, 14), st.sampled_from(["model", "float16"]))
def test_the_target_is_taken_or_the_smallest_setting_is_above_it(method: str, target: float, exact: str) -> None:
    one = solver(exact)
    nearest = one.nearest(method, target)
    assert nearest.spans.exact == exact
    reached = one.bits(nearest)
    if not reaches(reached, target):
        open_method = OpenMethod.of(method)
        settings = [open_method.at(value, {"recent": 0, "block": 8, "exact": exact}) for value in open_method.choices]
        assert reached > target, "whatever is left over is given to the window"
        assert reached <= min([one.bits(setting) for setting in settings], default=reached)
        with pytest.raises(KvbenchError, match="the nearest is"):
            one.solve(method, target)
    else:
        assert one.solve(method, target) == nearest


def test_16_bit_spans_leave_room_for_methods_that_had_no_row_at_their_bits() -> None:
    """At 1,024 fp32 tokens a block of 32 and 4 sinks are 1.1 bits of all: kivi at 2 bits, 3 with scales, had none."""
    geometry = subject("llama", torch.float32, **WIDE).geometry
    short, long = Solver(geometry, None, 1024), Solver(geometry, None, 3072, {"exact": "float16"})
    smallest = "kivi:bits=2,group=32"
    assert short.bits(short.nearest(smallest, 3.2)) > 4
    assert long.bits(long.nearest(smallest, 3.2)) == pytest.approx(3.2, rel=0.02)


def test_a_method_states_what_it_keeps_and_everything_else_is_alike() -> None:
    one = solver("float16")
    assert one.nearest("int:bits=4,exact=bfloat16", 6).spans.exact == "bfloat16"
    assert str(one.nearest("kivi:group=32", 1)) == "kivi:bits=2,recent=0,block=8,exact=float16"


@pytest.mark.parametrize(
    ("method", "knob", "value", "spec"),
    [
        ("kvtc:recent=0", "bits", 2.5, "kvtc:bits=2.5,recent=0"),
        ("pca+int:bits=4", "rank", 0.25, "pca:rank=0.25+int:bits=4"),
        ("int:group=32", "bits", 3, "int:bits=3,group=32"),
        ("snapkv+int:bits=8", "budget", 0.5, "snapkv:budget=0.5+int:bits=8"),
        ("int+pca:rank=0.5", "bits", 2, "pca:rank=0.5+int:bits=2"),
    ],
)
def test_an_open_setting_is_found_and_set(method: str, knob: str, value: float, spec: str) -> None:
    opened = OpenMethod.of(method)
    assert opened.knob == knob
    assert opened.at(value) == parse(spec)


def test_nothing_is_open_where_a_method_is_complete() -> None:
    for method in ("pca:energy=0.9", "streaming", "int:bits=4", "fp8"):
        assert OpenMethod.of(method).knob is None
        assert OpenMethod.of(method).at() == parse(method)
