"""Users' own models through kvbench: attached, misused, saved, compiled; what cannot be done is refused in words."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from threading import Thread

import pytest
import torch
from driving import subject, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import kvbench
from kvbench.cache.cache import CompressedCache
from kvbench.errors import KvbenchError
from kvbench.hooks.implementation import IMPLEMENTATION
from kvbench.models.random_models import build, byte_tokenizer

INT4 = "int:bits=4,recent=0,block=8"


@pytest.fixture
def model() -> PreTrainedModel:
    return build("llama", torch.float32, 0, layers=2)


@torch.no_grad()
def filled(model: PreTrainedModel, attached: object, tokens: int = 60) -> CompressedCache:
    cache = attached.new_cache()  # type: ignore[attr-defined]
    model(token_ids(2, tokens), past_key_values=cache)
    return cache


@torch.no_grad()
def step(model: PreTrainedModel, cache: CompressedCache, tokens: int = 1) -> torch.Tensor:
    return model(token_ids(2, tokens, seed=9), past_key_values=cache).logits


README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for the hub: the names that it loads are those of a random model and its tokenizer."""
    example = README.read_text("utf-8").partition("## In Python\n\n```python\n")[2].partition("```")[0]
    assert "AutoModelForCausalLM.from_pretrained(name)" in example
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda name: build("llama", layers=2))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name: byte_tokenizer())
    exec(example, {})
    assert "payload=" in capsys.readouterr().out
    assert (tmp_path / "prompt.cache").stat().st_size > 0


# ---- any model, any calibration ----------------------------------------------------------------------------------


def test_a_plain_model_is_compressed(model: PreTrainedModel) -> None:
    with kvbench.compress(model, INT4) as attached:
        assert filled(model, attached).nbytes().payload > 0


@pytest.mark.parametrize("spec", ["ftc:bits=3", "kvtc:bits=3,allocate=sensitivity"])
def test_calibration_reads_texts_or_token_ids(model: PreTrainedModel, spec: str) -> None:
    texts = ["Some words to read. " * 30, "And others, which differ a little from them. " * 30]
    for calibration, tokenizer in [(token_ids(4, 96), None), (texts, byte_tokenizer())]:
        with kvbench.compress(model, spec, calibration, tokenizer=tokenizer) as attached:
            assert filled(model, attached, 200).nbytes().payload > 0


@pytest.mark.parametrize(
    ("calibration", "tokenizer", "message"),
    [
        ("essays", None, "pass tokenizer=…, or token ids"),
        (["a text"], None, "pass tokenizer=…, or token ids"),
        ([], byte_tokenizer(), "one or more strings"),
        ([""], byte_tokenizer(), "hold no token"),
        ([3], byte_tokenizer(), "one or more strings"),
        (torch.zeros(3, dtype=torch.long), None, r"integers \(windows, tokens\); got int64 of shape \(3,\)"),
        (torch.zeros(3, 40), None, r"integers \(windows, tokens\); got float32"),
        (torch.zeros(2, 3, dtype=torch.long), None, "must be longer than"),
    ],
)
def test_what_cannot_calibrate_is_refused(
    model: PreTrainedModel, calibration: object, tokenizer: object, message: str
) -> None:
    with (
        pytest.raises(KvbenchError, match=message),
        kvbench.compress(model, "ftc:bits=3", calibration, tokenizer=tokenizer),  # type: ignore[arg-type]
    ):
        pass


def test_no_model_is_refused() -> None:
    with pytest.raises(KvbenchError, match="takes a decoder of transformers"), kvbench.compress("gpt2", INT4):  # type: ignore[arg-type]
        pass


def test_a_model_without_a_head_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(KvbenchError, match="AutoModelForCausalLM"), kvbench.compress(model.model, INT4):
        pass


# ---- the context of an attached model ----------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_attention_inside_the_context_is_refused(model: PreTrainedModel, implementation: str) -> None:
    before = model.config._attn_implementation
    with kvbench.compress(model, INT4) as attached:
        cache = filled(model, attached)
        model.set_attn_implementation(implementation)
        with pytest.raises(KvbenchError, match=f"attention was set to '{implementation}'"):
            step(model, cache)
    assert model.config._attn_implementation == before


def test_contexts_close_in_any_order(model: PreTrainedModel) -> None:
    before, ids = model.config._attn_implementation, token_ids(2, 20)
    expected = model(ids).logits
    first, second = kvbench.compress(model, INT4), kvbench.compress(model, "int:bits=8,recent=0,block=8")
    first.__enter__()
    attached = second.__enter__()
    alone = step(model, filled(model, attached))
    first.__exit__(None, None, None)
    assert model.config._attn_implementation == IMPLEMENTATION
    assert torch.equal(step(model, filled(model, attached)), alone)
    second.__exit__(None, None, None)
    assert model.config._attn_implementation == before
    assert torch.equal(model(ids).logits, expected)


def test_a_compiled_model_runs(model: PreTrainedModel) -> None:
    for spec in ("none", INT4, "kvtc:bits=4,recent=0,block=8"):
        with kvbench.compress(model, spec, token_ids(4, 96)) as attached, torch.no_grad():
            forward = torch.compile(model.forward, backend="eager")
            compiled, plain = attached.new_cache(), attached.new_cache()
            for piece in token_ids(1, 40).split([32, *[1] * 8], 1):
                expected = model(piece, past_key_values=plain).logits
                assert torch.equal(forward(piece, past_key_values=compiled).logits, expected)


def test_masks_that_add_a_bias_are_refused(model: PreTrainedModel) -> None:
    ids, lowest = token_ids(1, 20), torch.finfo(torch.float32).min
    mask = torch.zeros(1, 1, 20, 20).masked_fill(~torch.ones(20, 20, dtype=torch.bool).tril(), lowest)
    with kvbench.compress(model, "none") as attached, torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        assert torch.allclose(
            model(ids, attention_mask=mask, past_key_values=attached.new_cache()).logits, expected, atol=1e-5
        )
        mask[..., 3] -= 1.5
        with pytest.raises(KvbenchError, match="adds a bias to scores"):
            model(ids, attention_mask=mask, past_key_values=attached.new_cache())


# ---- what a cache cannot do --------------------------------------------------------------------------------------


def test_a_cache_says_what_it_cannot_do(model: PreTrainedModel) -> None:
    with kvbench.compress(model, INT4) as attached:
        cache = filled(model, attached)
        assert cache.is_initialized and not attached.new_cache().is_initialized
        with pytest.raises(KvbenchError, match=r"copy\.deepcopy or kvbench\.save_cache"):
            pickle.dumps(cache)
        with pytest.raises(KvbenchError, match="negative number of tokens to remove, not 5"):
            cache.crop(5)
        for move in (cache.layers[0].offload, cache.layers[0].prefetch):
            with pytest.raises(KvbenchError, match="not offloaded"):
                move()
        with pytest.raises(KvbenchError, match="no attention weights"):
            model(token_ids(2, 1), past_key_values=cache, output_attentions=True)
        with pytest.raises(KvbenchError, match="keeps no gradients"):
            model(token_ids(2, 1), past_key_values=copy.deepcopy(cache))
        model.to(torch.bfloat16)
        with pytest.raises(KvbenchError, match=r"holds tokens of a model in torch\.float32"):
            step(model, cache)


def test_dropout_is_refused(model: PreTrainedModel) -> None:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    with kvbench.compress(model, INT4) as attached:
        model.train()
        with pytest.raises(KvbenchError, match=r"call model\.eval"):
            filled(model, attached)


def test_caches_that_evict_are_not_croppable(model: PreTrainedModel) -> None:
    for spec, croppable in [(INT4, True), ("snapkv:budget=0.5", False)]:
        with kvbench.compress(model, spec) as attached:
            assert attached.new_cache().is_croppable == croppable


# ---- saved caches ------------------------------------------------------------------------------------------------

SAVED = [
    "none",
    INT4,
    "kivi:bits=2,group=8,recent=8,block=8",
    "ftc:bits=4,recent=0,block=8",
    "ftc:bits=4,frame=bands,recent=0,block=8",
    "eigen:rank=0.5,recent=0,block=8",
    "xkv:rank=0.5,layers=2,recent=8,block=8",
    "snapkv:budget=0.5,recent=8,block=8+int:bits=8",
]


@pytest.mark.parametrize("spec", SAVED)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_saved_cache_goes_on_as_the_one_in_memory(
    model: PreTrainedModel, spec: str, padding: int, tmp_path: Path
) -> None:
    ids, mask = token_ids(2, 60), torch.ones(2, 90, dtype=torch.long)
    mask[1, :padding] = 0

    @torch.no_grad()
    def fed(cache: CompressedCache, start: int, stop: int) -> torch.Tensor:
        pieces = torch.cat([ids, token_ids(2, 30, seed=5)], 1)[:, start:stop]
        return model(pieces, past_key_values=cache, attention_mask=mask[:, :stop]).logits

    with kvbench.compress(model, spec, token_ids(4, 96)) as attached:
        cache = attached.new_cache()
        fed(cache, 0, 60)
        kvbench.save_cache(cache, tmp_path / "cache")
        expected = [fed(cache, at, at + 1) for at in range(60, 90)]
    fresh = copy.deepcopy(model)
    with kvbench.compress(fresh, spec, token_ids(4, 96)) as attached:
        model = fresh
        loaded = kvbench.load_cache(tmp_path / "cache", attached)
        actual = [fed(loaded, at, at + 1) for at in range(60, 90)]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_saved_cache_goes_only_where_it_belongs(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with kvbench.compress(model, INT4) as attached:
        with pytest.raises(KvbenchError, match="empty"):
            kvbench.save_cache(attached.new_cache(), path)
        with pytest.raises(KvbenchError, match="no saved cache"):
            kvbench.load_cache(path, attached)
        kvbench.save_cache(filled(model, attached), path)
        whole = path.read_bytes()
        for damage, message in [(whole[:-9], "cannot be read"), (whole[:-9] + b"123456789", "damaged")]:
            path.write_bytes(damage)
            with pytest.raises(KvbenchError, match=message):
                kvbench.load_cache(path, attached)
        path.write_bytes(whole)
    with (
        kvbench.compress(model, "int:bits=8,recent=0,block=8") as attached,
        pytest.raises(KvbenchError, match="another compressor"),
    ):
        kvbench.load_cache(path, attached)
    other = build("llama", torch.float32, 1, layers=2)
    with kvbench.compress(other, INT4) as attached, pytest.raises(KvbenchError, match="another model"):
        kvbench.load_cache(path, attached)


# ---- positions ---------------------------------------------------------------------------------------------------


def test_positions_that_are_turned_in_several_ways_are_refused() -> None:
    one = subject("llama", torch.float32)
    with kvbench.compress(one.model, "identity:frame=before") as attached, torch.no_grad():
        one.model(token_ids(1, 20), past_key_values=attached.new_cache())
        rotary = one.model.model.rotary_emb
        inverse = rotary.inv_freq.clone()
        try:
            rotary.inv_freq.mul_(0.7)
            with pytest.raises(KvbenchError, match="turns keys of one position in several ways"):
                one.model(token_ids(1, 20), past_key_values=attached.new_cache())
        finally:
            rotary.inv_freq.copy_(inverse)


def test_threads_share_the_table_of_rotations(model: PreTrainedModel) -> None:
    with kvbench.compress(model, "kvtc:bits=4,recent=0,block=8", token_ids(4, 96)) as attached:
        expected = [step(model, filled(model, attached, length)) for length in (40, 90)]
    for _ in range(5):
        with kvbench.compress(model, "kvtc:bits=4,recent=0,block=8", token_ids(4, 96)) as attached:
            made: dict[int, torch.Tensor] = {}

            def run(place: int, length: int) -> None:
                made[place] = step(model, filled(model, attached, length))  # noqa: B023

            threads = [Thread(target=run, args=(place, length)) for place, length in enumerate((40, 90, 40, 90))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(torch.allclose(made[place], expected[place % 2], atol=1e-5) for place in range(4))
