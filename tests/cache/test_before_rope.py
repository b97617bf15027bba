"""frame=before: keys come and are attended after RoPE, and the body alone stores them as they were before it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from driving import SMALL_SPANS, Subject, calibrated, feed, left_padding, position_ids, subject, token_ids, worst
from torch import Tensor

from kvbench.cache.attach import LayerPlan, Plan
from kvbench.cache.body_attention import BodyAttention
from kvbench.cache.cache import CompressedCache
from kvbench.cache.compiled import compiled_decode
from kvbench.cache.compressed import CompressedLayer
from kvbench.cache.layer import gather_slots
from kvbench.cache.static import StaticCompressedLayer
from kvbench.codecs.codec import Codec
from kvbench.codecs.stored import span
from kvbench.compressors.compressor import parse
from kvbench.hooks.geometry import probe_geometry
from kvbench.hooks.interception import AttentionCall, Interception, Takeover, rotate
from kvbench.hooks.rotations import Rotation
from kvbench.kernels.reference import exact_attention
from kvbench.models.random_models import cast
from kvbench.models.random_weights import fill
from kvbench.selectors.base import Budget, Leaving, Selector

pytestmark = pytest.mark.usefixtures("fp64")
EXACT = 1e-10
TOKENS = 40
CHUNKS = (21, 6, *[1] * 13)
PADDING = (9, 2, 0)
TINY = {
    "vocab_size": 262,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
CONFIGS = {
    "scaled": lambda: transformers.LlamaConfig(**TINY, rope_parameters=YARN),
    "interleaved": lambda: transformers.CohereConfig(**TINY),
}
MODELS = ("llama", "qwen3", "phi", "gpt_neox", "gemma3", *CONFIGS)


@lru_cache
def model_of(name: str) -> Subject:
    """A family's shared model, or one whose RoPE scales or turns neighbouring dimensions."""
    if name not in CONFIGS:
        return subject(name)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32)
    fill(model, 0)
    model = cast(model.eval(), torch.float64).requires_grad_(False)
    return Subject(name, model, probe_geometry(model))


@dataclass
class Observer:
    """Attends exactly and keeps every layer's queries and keys before RoPE, and the rotation that they get."""

    one: Subject
    seen: dict[int, tuple[Tensor, Tensor, Rotation | None]] = field(default_factory=dict)

    def prepare(self, layer: int, cache: Any, rotation: Rotation | None, positions: Tensor | None) -> Takeover:
        return Takeover(_Watched(self, layer), before_rope=True)


@dataclass
class _Watched:
    observer: Observer
    layer: int

    def attend(self, call: AttentionCall) -> Tensor:
        self.observer.seen[self.layer] = (call.query, call.keys, call.rotation)
        dims = self.observer.one.geometry.layers[self.layer].rotary_dims
        query, keys = (rotate(call.module, states, call.rotation, dims) for states in (call.query, call.keys))
        return exact_attention(query, keys, call.values, call.scaling, call.mask, call.softcap)


def observed(one: Subject, ids: Tensor, mask: Tensor | None = None) -> dict[int, tuple[Tensor, Tensor]]:
    """Queries and keys of every layer before RoPE, of ``ids`` through the model without a cache."""
    observer = Observer(one)
    extra = {} if mask is None else {"attention_mask": mask, "position_ids": position_ids(mask)}
    with Interception(one.model, observer):
        one.model(ids, use_cache=False, **extra)
    return {layer: seen[:2] for layer, seen in observer.seen.items()}


def check_body(layer: CompressedLayer, keys: Tensor, exact: Tensor, mask: Tensor | None = None, least: int = 8) -> None:
    """The body holds what the codec makes of ``keys`` (batch, kv heads, tokens, head_dim) before RoPE."""
    stored, _ = layer._bound.decode(layer.body.view())
    slots = layer.body_slots(keys.device).expand(*keys.shape[:2], -1).long()
    expected = gather_slots(keys, slots)
    real = torch.ones_like(slots, dtype=torch.bool)
    if mask is not None:
        real = mask.bool()[:, None].expand(-1, keys.shape[1], -1).gather(2, slots)
    assert layer.body.entries >= least
    assert worst(stored[real], expected[real]) < EXACT
    rotated = gather_slots(exact, slots)
    assert worst(stored[real], rotated[real]) > 1e3 * EXACT, "otherwise nothing was turned back"


def rotated_keys(one: Subject, ids: Tensor, mask: Tensor | None = None) -> dict[int, Tensor]:
    """Keys of every layer after RoPE, out of a stock cache."""
    cache = transformers.DynamicCache()
    feed(one.model, cache, ids, [ids.shape[1]], mask)
    return {index: layer.keys for index, layer in enumerate(cache.layers)}


def compressed_layers(cache: CompressedCache) -> dict[int, CompressedLayer]:
    return {index: layer for index, layer in enumerate(cache.layers) if isinstance(layer, CompressedLayer)}


def test_the_models_are_what_they_stand_for() -> None:
    scaled, interleaved = model_of("scaled"), model_of("interleaved")
    _, _, (cos, sin) = _rotations(scaled)
    assert float((cos.square() + sin.square()).mean()) > 1.2, "YaRN scales keys and queries"
    assert interleaved.geometry.layers[0].turn.partners[:4] == (1, 0, 3, 2)
    assert 0 < model_of("phi").geometry.layers[0].rotary_dims < 16


def _rotations(one: Subject) -> tuple[Tensor, Tensor, Rotation]:
    observer = Observer(one)
    with Interception(one.model, observer):
        one.model(token_ids(1, 5), use_cache=False)
    return observer.seen[0]  # type: ignore[return-value]


# ---- what arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_queries_and_keys_arrive_rotated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, ids = model_of(name), token_ids(2, TOKENS)
    arrived: dict[CompressedLayer, list[AttentionCall]] = {}
    attend = CompressedLayer.attend

    def watched(layer: CompressedLayer, call: AttentionCall, *rotations: Any) -> Tensor:
        arrived.setdefault(layer, []).append(call)
        return attend(layer, call, *rotations)

    monkeypatch.setattr(CompressedLayer, "attend", watched)
    before, exact = observed(one, ids), rotated_keys(one, ids)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, CHUNKS)
    for index, layer in compressed_layers(cache).items():
        calls = arrived[layer]
        assert all(call.rotation is None for call in calls), "nothing is left to rotate"
        assert worst(torch.cat([call.keys for call in calls], 2), exact[index]) < EXACT
        queries = torch.cat([call.query for call in calls], 2)
        assert worst(queries, before[index][0]) > 1e3 * EXACT
        assert worst(queries.norm(dim=-1) / before[index][0].norm(dim=-1), torch.tensor(_scale(name))) < 1e-6


def _scale(name: str) -> float:
    """By how much the rotation lengthens what it rotates."""
    _, _, (cos, sin) = _rotations(model_of(name))
    return float((cos.square() + sin.square()).mean().sqrt())


@pytest.mark.parametrize("name", MODELS)
def test_sinks_and_window_stay_as_they_are_attended(name: str) -> None:
    one, ids, mask = model_of(name), token_ids(3, TOKENS), left_padding(3, TOKENS, PADDING)
    exact = rotated_keys(one, ids, mask)
    with one.attach_untested(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, CHUNKS, mask)
    for index, layer in compressed_layers(cache).items():
        assert layer.tail_start > 0
        assert worst(layer.tail_keys.view, exact[index][:, :, layer.tail_start :]) < EXACT
        assert worst(layer.sink_keys, gather_slots(exact[index], layer.sink_slots(ids.device))) < EXACT


# ---- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [(0, 0, 0), PADDING], ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_the_body_holds_keys_before_rope(name: str, padding: tuple[int, ...]) -> None:
    one, ids, mask = model_of(name), token_ids(3, TOKENS), left_padding(3, TOKENS, padding)
    before, exact = observed(one, ids, mask), rotated_keys(one, ids, mask)
    with one.attach(one.identity("before")) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, CHUNKS, mask)
    for index, layer in compressed_layers(cache).items():
        check_body(layer, before[index][1], exact[index], mask, least=28)


@dataclass(frozen=True)
class _Scattered(Selector):
    """Keeps other tokens in every row and head."""

    def scores(self, leaving: Leaving) -> Tensor:
        return -leaving.candidates[1].norm(dim=-1)


@pytest.mark.parametrize("padding", [(0, 0, 0), PADDING], ids=["unpadded", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_the_body_holds_keys_before_rope_after_eviction(name: str, padding: tuple[int, ...]) -> None:
    """Of the first compressed layer alone: what comes after it has lost tokens."""
    one, ids, mask = model_of(name), token_ids(3, TOKENS), left_padding(3, TOKENS, padding)
    before, exact = observed(one, ids, mask), rotated_keys(one, ids, mask)
    plan = one.identity("before")
    first = min(plan.layers)
    evicting = Plan({first: LayerPlan(plan.layers[first].codec, _Scattered(Budget(0.5)))}, SMALL_SPANS)
    with one.attach_untested(evicting) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, CHUNKS, mask)
    layer = compressed_layers(cache)[first]
    slots = layer.body.slots.view
    assert not torch.equal(slots[:, :1], slots[:, 1:2]) and layer.body.entries < 20
    check_body(layer, before[first][1], exact[first], mask)


@pytest.mark.parametrize("variant", ["plain", "blocks", "all"])
@pytest.mark.parametrize("removed", [9, 17, 23])
@pytest.mark.parametrize("name", ["llama", "phi", *CONFIGS])
def test_the_body_holds_keys_before_rope_after_a_crop_into_it(name: str, removed: int, variant: str) -> None:
    """What the cut brings back into the window is rotated, and turned back again when it leaves."""
    one, ids, mask = model_of(name), token_ids(3, TOKENS), left_padding(3, TOKENS, (3, 1, 0))
    left = TOKENS - removed
    others = torch.cat([ids[:, :left], token_ids(3, removed, seed=9)], 1)
    before, exact = observed(one, others, mask), rotated_keys(one, others, mask)
    with one.attach_untested(one.lossless("before", variant)) as compressed:
        cache = compressed.new_cache()
        feed(one.model, cache, ids, [TOKENS], mask)
        cache.crop(-removed)
        for index, layer in compressed_layers(cache).items():
            tail = layer.tail_keys.view
            assert (
                worst(torch.cat([tail, exact[index][:, :, left:]], 2), exact[index][:, :, layer.tail_start :]) < EXACT
            )
        feed(one.model, cache, others, [1] * removed, mask, start=left)
    for index, layer in compressed_layers(cache).items():
        check_body(layer, before[index][1], exact[index], mask, least=16)


@pytest.mark.parametrize("name", ["llama", "phi", *CONFIGS])
def test_the_static_body_holds_keys_before_rope(name: str) -> None:
    one, ids = model_of(name), token_ids(2, TOKENS)
    before = observed(one, ids)
    with one.attach_untested(one.identity("before")) as compressed:
        decode = compiled_decode(compressed, ids[:, :17], TOKENS, backend=None)
        first = decode.cache.layers[0].encoded
        for at in range(17, TOKENS):
            decode(ids[:, at : at + 1])
        for index, layer in enumerate(decode.cache.layers):
            assert isinstance(layer, StaticCompressedLayer) and layer.encoded >= first + 20
            keys, _ = layer.codec.decode(span(layer.body, layer.capacity, 0, layer.encoded))
            sinks = layer.spans.sinks
            assert worst(keys, before[index][1][:, :, sinks : sinks + layer.encoded]) < EXACT


# ---- queries without RoPE --------------------------------------------------------------------------------------------


@dataclass
class _Spy:
    """Keeps the queries that attend to a body."""

    queries: list[Tensor] = field(default_factory=list)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        attend = BodyAttention.attend

        def watched(body: BodyAttention, query: Tensor, *given: Any) -> Any:
            self.queries.append(query)
            return attend(body, query, *given)

        monkeypatch.setattr(BodyAttention, "attend", watched)


def decoupled_plan(one: Subject) -> Plan:
    """Lossless but for the RoPE that ``mla`` takes away; of the first layer alone."""
    plan = replace(parse("mla:rope_dims=16,latent=24"), spans=SMALL_SPANS).fit(one.geometry, calibrated(one))
    first = min(plan.layers)
    codec = plan.layers[first].codec
    assert isinstance(codec, Codec) and codec.decoupled
    return Plan({first: plan.layers[first]}, SMALL_SPANS)


@pytest.mark.parametrize("padding", [(0, 0, 0), PADDING], ids=["unpadded", "padded"])
def test_decoupled_codecs_meet_queries_with_and_without_rope(
    padding: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, ids, mask = subject("llama"), token_ids(3, TOKENS), left_padding(3, TOKENS, padding)
    (bare, _), *_ = observed(one, ids, mask).values()
    plan, spy = decoupled_plan(one), _Spy()
    spy.install(monkeypatch)
    with one.attach_untested(plan) as compressed:
        feed(one.model, compressed.new_cache(), ids, CHUNKS, mask)
    check_queries(torch.cat(spy.queries, 2), bare)


def test_static_decoupled_codecs_meet_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    one, ids = subject("llama"), token_ids(2, TOKENS)
    (bare, _), *_ = observed(one, ids).values()
    plan, spy = decoupled_plan(one), _Spy()
    with one.attach_untested(plan) as compressed:
        decode = compiled_decode(compressed, ids[:, :21], TOKENS, backend=None)
        spy.install(monkeypatch)
        for at in range(21, TOKENS):
            decode(ids[:, at : at + 1])
    check_queries(torch.cat(spy.queries, 2), bare)


def check_queries(met: Tensor, bare: Tensor) -> None:
    """``met`` are those of the last tokens, rotated beside ``bare`` ones."""
    dim, tokens = bare.shape[-1], met.shape[2]
    expected = bare[:, :, -tokens:]
    assert tokens >= 19 and met.shape[-1] == 2 * dim
    assert worst(met[..., dim:], expected) < EXACT
    assert worst(met[..., :dim], expected) > 1e3 * EXACT
    assert worst(met[..., :dim].norm(dim=-1), expected.norm(dim=-1)) < 1e-6
