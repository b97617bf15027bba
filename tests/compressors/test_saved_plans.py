"""A fitted plan on disk: the same codecs come back, on the model they were fitted for and on no other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from default_specs import ALL_SPECS
from driving import Subject, calibrated, feed, subject, token_ids, worst
from safetensors.torch import load_file, save_file
from torch import Tensor

from kvbench.cache.attach import Plan
from kvbench.compressors import plan_file
from kvbench.compressors.compressor import parse
from kvbench.compressors.methods.saved import PLAN
from kvbench.compressors.plan_file import dump_plan
from kvbench.errors import KvbenchError

FITTED = [spec for spec in ALL_SPECS if not parse(spec).baseline]


@pytest.fixture
def model() -> Subject:
    return subject("llama", torch.float32, hidden=64, heads=4, kv_heads=2, head_dim=32)


def save(plan: Plan, model: Subject, folder: Path, sha256: str = "0" * 64) -> str:
    """The spec that loads the plan again."""
    folder.mkdir(exist_ok=True)
    (folder / PLAN).write_bytes(dump_plan(plan, model.geometry, "some model", sha256))
    return f"saved:path={folder}"


def fitted(spec: str, model: Subject) -> Plan:
    return parse(spec).fit(model.geometry, calibrated(model))


@torch.no_grad()
def logits(plan: Plan, model: Subject) -> Tensor:
    """Of one step after a prompt that fills the body."""
    ids = token_ids(1, 201)
    with model.attach_untested(plan) as attached:
        cache = attached.new_cache()
        feed(model.model, cache, ids, [200])
        return feed(model.model, cache, ids, [1], start=200)


@pytest.mark.parametrize("spec", FITTED)
def test_every_method_comes_back(spec: str, model: Subject, tmp_path: Path) -> None:
    plan = fitted(spec, model)
    again = parse(save(plan, model, tmp_path)).fit(model.geometry)
    assert again.spans == plan.spans and again.frame == plan.frame
    assert again.model_level_bytes() == plan.model_level_bytes(), "a shared basis was stored more than once"
    assert worst(logits(again, model), logits(plan, model)) < 1e-5, (
        "more than other strides of the same numbers explain"
    )


def test_spans_are_those_of_the_fit_unless_the_spec_says_otherwise(model: Subject, tmp_path: Path) -> None:
    spec = save(fitted("kvtc:bits=3,recent=7,sinks=1,block=8", model), model, tmp_path)
    assert str(parse(spec)) == spec and parse(str(parse(spec))) == parse(spec)
    assert parse(spec).spans.recent == 7
    wider = parse(f"{spec},recent=9")
    assert (wider.spans.recent, wider.spans.sinks) == (9, 1) and str(wider) == f"{spec},recent=9"
    assert wider.fit(model.geometry).spans.recent == 9


def test_other_models_are_refused(model: Subject, tmp_path: Path) -> None:
    spec = parse(save(fitted("kvtc:bits=3", model), model, tmp_path, "a" * 64))
    other = subject("llama", torch.float32, hidden=64, heads=4, kv_heads=4, head_dim=16)
    with pytest.raises(KvbenchError, match="was fitted for some model with other layers or another dtype"):
        spec.fit(other.geometry)
    half = subject("llama", torch.bfloat16, hidden=64, heads=4, kv_heads=2, head_dim=32)
    with pytest.raises(KvbenchError, match=r"than this model has \(bfloat16\)"):
        spec.fit(half.geometry)
    spec.saved.check_weights("some model", "a" * 64)
    with pytest.raises(KvbenchError, match="those of tuned are others; run `kvbench fit --model tuned`"):
        spec.saved.check_weights("tuned", "b" * 64)


def test_it_composes_with_nothing_and_needs_a_folder(model: Subject, tmp_path: Path) -> None:
    spec = save(fitted("kvtc:bits=3", model), model, tmp_path)
    with pytest.raises(KvbenchError, match="saved and int both bring a quantizer"):
        parse(f"{spec}+int:bits=4")
    with pytest.raises(
        KvbenchError, match=r"no fitted plan at nowhere/plan\.safetensors; `kvbench fit --save nowhere`"
    ):
        parse("saved:path=nowhere")


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "garbage":
        path.write_bytes(b"\x00" * 64)
    else:
        with plan_file._readable(path) as file:
            names = file.metadata()
        tree = json.loads(names["plan"])
        edit_tree(tree, how)
        names = {} if how == "another kind" else names | {"plan": json.dumps(tree)}
        save_file(load_file(path), path, names)


def edit_tree(tree: dict, how: str) -> None:
    (_, layer), *_ = tree["fields"]["layers"]["dict"]
    if how == "another class":
        layer["class"] = "subprocess:Popen"
    elif how == "no dataclass":
        layer["class"] = "kvbench.errors:KvbenchError"
    elif how == "missing tensor":
        layer["fields"]["codec"]["fields"]["keys"]["fields"]["transform"]["fields"]["mean"]["tensor"] = "t999"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("truncated", "cannot be read"),
        ("garbage", "cannot be read"),
        ("another kind", "is no plan that this kvbench can read"),
        ("another class", "holds a subprocess:Popen, which no installed compressor package brings"),
        ("no dataclass", "which is no dataclass"),
        ("missing tensor", "holds no whole plan"),
    ],
)
def test_damaged_files_are_one_line(model: Subject, tmp_path: Path, how: str, reason: str) -> None:
    spec = save(fitted("kvtc:bits=3", model), model, tmp_path)
    damage(tmp_path / PLAN, how)
    with pytest.raises(KvbenchError, match=reason) as refused:
        parse(spec).fit(model.geometry)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_saved_is_named(model: Subject) -> None:
    @dataclass(frozen=True)
    class Odd:
        callback: object

    plan = fitted("int:bits=4", model)
    odd = Plan(dict.fromkeys(plan.layers, Odd(len)), plan.spans)  # type: ignore[arg-type]
    with pytest.raises(KvbenchError, match="a builtin_function_or_method cannot be saved"):
        dump_plan(odd, model.geometry, "m", "s")
