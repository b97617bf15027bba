"""Lists on the command line."""

from __future__ import annotations

import pytest

from kvbench.errors import KvbenchError
from kvbench.projection.arguments import batches_of, contexts_of, count_of, names_of, specs_of


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("4k..32k", [4096, 8192, 16384, 32768]),
        ("4k..1m", [4096, 8192, 16384, 32768, 65536, 131072, 163840]),  # ends at the model's
        ("3k..10k", [3072, 6144, 10240]),
        ("1000,4k,1000", [1000, 4096]),
        ("160k", [163840]),
    ],
)
def test_contexts(text: str, lengths: list[int]):
    assert contexts_of(text, 163840, "deepseek-v3") == lengths


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1m", "context 1,048,576 is beyond the 163,840 tokens of deepseek-v3"),
        ("200k..1m", "is beyond the 163,840"),
        ("0", "is no whole number above 0"),
        ("8k..4k", "ends before it starts"),
        ("4k..", "is no whole number above 0"),
        ("4.5k", "is no whole number above 0"),
        ("", "is no whole number above 0"),
    ],
)
def test_contexts_that_are_refused(text: str, told: str):
    with pytest.raises(KvbenchError, match=told):
        contexts_of(text, 163840, "deepseek-v3")


def test_batches():
    assert batches_of("1, 1k,max") == [1, 1024, None]
    with pytest.raises(KvbenchError, match="batch '0' is no whole number above 0"):
        batches_of("0")
    assert count_of("2M", "context") == 2 << 20


def test_commas_separate_specs_and_settings():
    assert specs_of(["mla,none", "kvtc:bits=3,recent=0,mla"]) == ["mla", "none", "kvtc:bits=3,recent=0"]
    assert specs_of(["pca:rank=0.5,frame=after+int:bits=8,group=16,snapkv:budget=0.25+int:bits=8"]) == [
        "pca:rank=0.5,frame=after+int:bits=8,group=16",
        "snapkv:budget=0.25+int:bits=8",
    ]
    assert specs_of([]) == []
    assert names_of(["h100,h20", "h100"]) == ["h100", "h20"]
