"""Static caches: step for step what the growing cache computes, in one graph that never changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from default_specs import CODED_SPECS, COMBINED_SPECS, DEFAULT_SPECS
from driving import (
    ALL_FAMILIES,
    FRAMES,
    calibrated,
    feed,
    in_frame,
    left_padding,
    position_ids,
    subject,
    token_ids,
    worst,
)
from torch import Tensor

from kvbench.cache.attach import CompressedModel, LayerPlan, Plan
from kvbench.cache.cache import reachable_tensors
from kvbench.cache.compiled import CompiledDecode, compiled_decode, static_cache
from kvbench.cache.spans import Spans
from kvbench.cache.static import StaticCompressedLayer
from kvbench.codecs import stored
from kvbench.codecs.codec import Codec, SideCodec
from kvbench.codecs.frame import Frame
from kvbench.codecs.quantizers.integer import IntegerQuantizer
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.kernels.reading import Reading

EXACT = 1e-10
PROMPT, TOKENS = 21, 60
SPANS = Spans(sinks=2, recent=4, block=8)
IMPOSSIBLE = {
    "a selector": ("streaming", "snapkv", "tova", "knorm", "expected-attention", "random"),
    "fitted to the prompt": ("shadowkv", "svdq"),
    "several layers": ("xkv", "kvtc:bits=4,layers=2"),
    "entropy codes": ("ftc:bits=4,coder=entropy", "kvtc:bits=4,coder=entropy"),
}
REFUSED = tuple(name for names in IMPOSSIBLE.values() for name in names)
ADMITTED = [
    spec for spec in (*DEFAULT_SPECS.values(), *COMBINED_SPECS, *CODED_SPECS) if not spec.startswith((*REFUSED, "hf"))
]
frames = pytest.mark.parametrize("frame", FRAMES)


def int_plan(family: str, frame: Frame, spans: Spans = SPANS) -> Plan:
    quantizer = IntegerQuantizer(4, 8)
    layers = {}
    for layer in subject(family).geometry.compressible:
        keys = SideCodec(layer.kv_heads, layer.head_dim, None, quantizer)
        values = SideCodec(layer.kv_heads, layer.value_dim, None, quantizer)
        layers[layer.layer] = LayerPlan(Codec(keys, values, *in_frame(layer, frame)))
    return Plan(layers, spans)


def spec_plan(spec: str) -> Plan:
    one, compressor = subject("llama"), parse(spec)
    fitted = compressor.fit(one.geometry, lambda: calibrated(one))
    return Plan(fitted.layers, SPANS)


def steps(decode: CompiledDecode, ids: Tensor, start: int = PROMPT) -> Tensor:
    """Logits (batch, 1 + steps, vocabulary) from the prompt's last token on."""
    return torch.stack([decode.logits, *(decode(ids[:, at : at + 1]) for at in range(start, ids.shape[1]))], 1)


def growing(compressed: CompressedModel, ids: Tensor, start: int = PROMPT) -> Tensor:
    """The same through an ordinary cache."""
    chunks = [start, *[1] * (ids.shape[1] - start)]
    return feed(compressed.model, compressed.new_cache(), ids, chunks)[:, start - 1 :]


def encoded(decode: CompiledDecode) -> list[int]:
    return [layer.encoded for layer in decode.cache.layers if isinstance(layer, StaticCompressedLayer)]


# ---- the same numbers ------------------------------------------------------------------------------------------------


@frames
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_steps_equal_the_growing_caches(family: str, frame: Frame, fp64: None) -> None:
    one, ids = subject(family), token_ids(2, TOKENS)
    with one.attach_untested(int_plan(family, frame)) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], TOKENS, backend=None)
        first = encoded(decode)
        assert worst(steps(decode, ids), growing(compressed, ids)) < EXACT
        assert all(after - before >= 24 for before, after in zip(first, encoded(decode), strict=True))


@pytest.mark.parametrize("spec", ADMITTED)
def test_every_compressor_that_torch_can_decode(spec: str, fp64: None) -> None:
    one, ids = subject("llama"), token_ids(2, 110)
    with one.attach_untested(spec_plan(spec)) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], 120, backend=None)
        assert worst(steps(decode, ids), growing(compressed, ids)) < EXACT


@pytest.mark.parametrize("read", ["absorb", "reconstruct"])
def test_both_ways_to_read(read: str, fp64: None) -> None:
    one, ids = subject("llama"), token_ids(2, TOKENS)
    plan = spec_plan("pca:rank=0.5,heads=each,frame=after")
    with CompressedModel(one.model, plan, one.geometry, Reading(read=read)) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], TOKENS, backend=None)
        assert worst(steps(decode, ids), growing(compressed, ids)) < EXACT


@frames
@pytest.mark.parametrize("spans", [Spans(0, 0, 8), Spans(0, 4, 8), Spans(3, 0, 8), Spans(4, 100, 8)])
@pytest.mark.parametrize("prompt", [1, 2, 14, 22])
def test_any_spans_and_prompts(prompt: int, spans: Spans, frame: Frame, fp64: None) -> None:
    one, ids = subject("llama"), token_ids(2, 40)
    with one.attach_untested(int_plan("llama", frame, spans)) as compressed:
        decode = compiled_decode(compressed, ids[:, :prompt], 40, backend=None)
        assert worst(steps(decode, ids, prompt), growing(compressed, ids, prompt)) < EXACT


@frames
def test_many_tiles_most_of_them_empty(frame: Frame, fp64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "TILE", 16)
    one, ids = subject("gpt_neox"), token_ids(2, TOKENS)
    with one.attach_untested(int_plan("gpt_neox", frame)) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], 200, backend=None)
        assert worst(steps(decode, ids), growing(compressed, ids)) < EXACT


@pytest.mark.parametrize("removed", [1, 5, 13, 30])
def test_made_from_a_cropped_cache(removed: int, fp64: None) -> None:
    one, ids = subject("llama"), token_ids(2, TOKENS)
    left = 40 - removed
    with one.attach_untested(int_plan("llama", "before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [40])
        cache.crop(-removed)
        decode = CompiledDecode(one.model, static_cache(compressed, cache, TOKENS), ids)
        logits = torch.stack([decode(ids[:, at : at + 1]) for at in range(left, TOKENS)], 1)
        assert worst(logits, feed(one.model, cache, ids, [1] * (TOKENS - left), start=left)) < EXACT


def test_control_one_token_too_many_is_seen(fp64: None) -> None:
    """A body mask that lets a single empty entry in."""
    one, ids = subject("llama"), token_ids(2, TOKENS)
    with one.attach_untested(int_plan("llama", "after")) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], TOKENS, backend=None)
        for layer in decode.cache.layers:
            layer.start.add_(1)
        assert worst(steps(decode, ids), growing(compressed, ids)) > 1e4 * EXACT


# ---- one graph -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_recompilation() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def one_graph(family: str, plan: Plan, backend: str, tolerance: float) -> None:
    """Steps over more than two blocks, compiled, against the growing cache."""
    one, ids = subject(family), token_ids(2, TOKENS)
    with one.attach_untested(plan) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], TOKENS, backend)
        first = encoded(decode)
        logits = steps(decode, ids)
        assert worst(logits, growing(compressed, ids)) < tolerance
        assert all(after - before > 2 * SPANS.block for before, after in zip(first, encoded(decode), strict=True))
    counted = torch._dynamo.utils.counters
    assert counted["stats"]["unique_graphs"] == 1
    assert not counted["graph_break"]


@frames
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "opt", "minicpm3"])
def test_compiles_without_a_break_or_a_second_graph(
    family: str, frame: Frame, no_grad: None, no_recompilation: None
) -> None:
    one_graph(family, int_plan(family, frame), "eager", 1e-6)


@pytest.mark.parametrize("spec", ["kvtc:bits=4", "turboquant:bits=4", "fp8", "pca:rank=0.5,heads=each,frame=after"])
def test_codecs_in_the_graph(spec: str, no_grad: None, no_recompilation: None) -> None:
    one_graph("llama", spec_plan(spec), "eager", 1e-6)


def test_without_side_effects_that_a_compiler_would_miss(no_grad: None, no_recompilation: None) -> None:
    """``aot_eager`` makes the graph functional, so every write into a buffer must come out again."""
    one_graph("llama", int_plan("llama", "before"), "aot_eager", 1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="NOT TESTED with inductor: it needs a C++ compiler")
def test_inductor(no_grad: None, no_recompilation: None) -> None:
    one_graph("llama", int_plan("llama", "after"), "inductor", 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: capturing a step as a CUDA graph needs CUDA")
@frames
def test_captured_as_a_cuda_graph(frame: Frame, no_grad: None) -> None:
    """Capture refuses whatever reads a number back from the device, and replays know nothing but addresses."""
    from kvbench.hooks.geometry import probe_geometry
    from kvbench.models.random_models import build

    model = build("llama", torch.float32, 0, layers=2).cuda()
    ids = token_ids(2, TOKENS).cuda()
    plan = int_plan("llama", frame)
    with CompressedModel(model, plan, probe_geometry(model)) as compressed:
        expected = growing(compressed, ids)
        decode = compiled_decode(compressed, ids[:, :PROMPT], TOKENS, backend=None)
        step, token, seen = decode.step, ids[:, :1].clone(), decode.cache.seen.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step(token)  # warm-up: what it wrote is overwritten by the first real step
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = step(token)
        decode.cache.seen.copy_(seen)

        def replay(new: Tensor) -> Tensor:
            token.copy_(new)
            graph.replay()
            return logits.clone()

        decode.step = replay
        assert worst(steps(decode, ids), expected) < 1e-3


# ---- bytes and refusals ----------------------------------------------------------------------------------------------


@frames
def test_bytes_are_those_of_the_capacity(frame: Frame, fp64: None) -> None:
    one, ids = subject("llama"), token_ids(2, TOKENS)
    capacity = SPANS.sinks + SPANS.recent + 80  # room for a body of 80
    with one.attach_untested(int_plan("llama", frame)) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], capacity, backend=None)
        before = decode.cache.nbytes()
        steps(decode, ids)
        after = decode.cache.nbytes()
        grown = compressed.new_cache()
        feed(one.model, grown, ids, [TOKENS])
    layer = one.geometry.layers[0]
    window = SPANS.sinks + SPANS.recent + SPANS.block
    exact = 2 * 2 * 2 * layer.kv_heads * layer.head_dim * window * 8  # layers, sides, rows
    pairs = layer.head_dim // 8 * 4  # fp16 scale and zero per 8 channels
    body = 2 * 2 * 2 * layer.kv_heads * 80 * (layer.head_dim // 2 + pairs)
    table = 2 * capacity * layer.rotary_dims * 8 if frame != "after" else 0
    assert before.total == after.total, "nothing is allocated while decoding"
    assert (after.exact, after.payload + after.scales + after.slack) == (exact, body)
    assert (after.payload, after.scales) == (grown.nbytes().payload, grown.nbytes().scales)
    assert after.workspace == table + 3 * 8, "the RoPE table and three counts"
    storages = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in reachable_tensors(decode.cache)}
    assert after.total == sum(storages.values())


@pytest.mark.parametrize(("reason", "name"), [(reason, name) for reason in IMPOSSIBLE for name in IMPOSSIBLE[reason]])
def test_what_no_graph_can_hold_is_refused(reason: str, name: str, fp64: None) -> None:
    one, ids = subject("llama"), token_ids(1, 80)
    with (
        one.attach_untested(spec_plan(DEFAULT_SPECS.get(name, name))) as compressed,
        pytest.raises(KvbenchError, match=rf"layer 0 cannot be decoded with a static cache: .*{reason}"),
    ):
        compiled_decode(compressed, ids, 100, backend=None)


def test_left_padding_is_refused(fp64: None) -> None:
    one, ids, mask = subject("llama"), token_ids(2, PROMPT), left_padding(2, PROMPT, (3, 0))
    with one.attach_untested(int_plan("llama", "after")) as compressed:
        cache = compressed.new_cache()
        one.model(ids, attention_mask=mask, position_ids=position_ids(mask), past_key_values=cache)
        with pytest.raises(KvbenchError, match="left-padded"):
            static_cache(compressed, cache, TOKENS)


def test_positions_that_do_not_count_from_zero_are_refused(fp64: None) -> None:
    one, ids = subject("llama"), token_ids(1, PROMPT)
    with one.attach_untested(int_plan("llama", "before")) as compressed:
        cache = compressed.new_cache()
        one.model(ids, position_ids=torch.arange(5, 5 + PROMPT)[None], past_key_values=cache)
        with pytest.raises(KvbenchError, match="positions are 0, 1, 2"):
            static_cache(compressed, cache, TOKENS)


def test_no_prompt_no_room_and_a_full_cache_are_refused(fp64: None) -> None:
    one, ids = subject("llama"), token_ids(1, 10)
    with one.attach_untested(int_plan("llama", "after")) as compressed:
        with pytest.raises(KvbenchError, match="a prompt of 1 to 9, got 0"):
            static_cache(compressed, compressed.new_cache(), 10)
        with pytest.raises(KvbenchError, match="a prompt of 1 to 9, got 10"):
            compiled_decode(compressed, ids, 10, backend=None)
        decode = compiled_decode(compressed, ids, 11, backend=None)
        decode(ids[:, :1])
        with pytest.raises(KvbenchError, match="full: it was made for 11 tokens"):
            decode(ids[:, :1])


def test_stock_attention_and_prompts_are_refused(fp64: None) -> None:
    one, ids = subject("llama"), token_ids(1, 10)
    with one.attach_untested(int_plan("llama", "after")) as compressed:
        decode = compiled_decode(compressed, ids, 20, backend=None)
        with pytest.raises(KvbenchError, match="one token at a time"):
            one.model(ids[:, :2], past_key_values=decode.cache)
    with pytest.raises(KvbenchError, match="inside its own"):
        decode(ids[:, :1])


def test_keys_that_are_not_finite_are_refused_when_they_would_be_encoded(fp64: None) -> None:
    one, ids = subject("llama"), token_ids(1, TOKENS)
    with one.attach_untested(int_plan("llama", "after")) as compressed:
        decode = compiled_decode(compressed, ids[:, :PROMPT], TOKENS, backend=None)
        decode.cache.layers[1].exact_values[:, :, SPANS.sinks] = float("nan")
        with pytest.raises(KvbenchError, match="values hold NaN or infinite values"):
            steps(decode, ids)
