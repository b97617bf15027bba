"""The low-rank catalogue on a small random model: exact at full rank, better with rank, optimal where it says so."""

import pytest
import torch
from driving import attach

from kvbench.cache.prediction import predict_bytes
from kvbench.calibration.collect import collect
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import probe_geometry
from kvbench.hooks.interception import attention_modules, rotate
from kvbench.models.random_models import build

METHODS = [
    "pca:rank={}",
    "palu:rank={}",
    "svd:rank={}",
    "asvd:rank={}",
    "lorc:rank={}",
    "eigen:rank={}",
    "kqsvd:rank={}",
    "kqsvd:rank={},heads=joint",
    "kqsvd:rank={},frame=before",
    "recalkv:rank={},group=2",
    "rope-commuting:rank={}",
    "matryoshka:rank={}",
    "latent:rank={}",
    "palu:rank={},hadamard=false",
    "pca:rank={}+hadamard:seed=1",
    "pca:rank={},heads=each,frame=after+hadamard:seed=1",
    "latent:rank={}+hadamard:seed=1",
]
PROMPT, NEW = 120, 16


class Calibrated:
    def __init__(self, family="llama", **overrides):
        torch.manual_seed(0)
        self.model = build(family, torch.float64, **overrides)
        self.geometry = probe_geometry(self.model)
        windows = torch.randint(3, 200, (4, 160))
        self.statistics = collect(self.model, self.geometry, windows)
        self.ids = torch.randint(3, 200, (1, PROMPT + NEW))
        with torch.no_grad():
            self.logits = self.model(self.ids).logits[:, PROMPT:]

    def fit(self, spec):
        return parse(spec + ",recent=0,block=8").fit(self.geometry, self.statistics)

    def error(self, spec):
        """Relative error of the logits of new tokens that attend a compressed prompt."""
        with attach(self.model, self.fit(spec), self.geometry) as compressed, torch.no_grad():
            cache = compressed.new_cache()
            self.model(self.ids[:, :PROMPT], past_key_values=cache, use_cache=True)
            logits = self.model(self.ids[:, PROMPT:], past_key_values=cache, use_cache=True).logits
        return float((logits - self.logits).norm() / self.logits.norm())

    def score_error(self, spec, layer=0):
        """Σ over heads of E[(q·k − q·k̂)²] on the calibration moments, keys after RoPE."""
        statistics, transform = self.statistics.layers[layer], self.fit(spec).layers[layer].codec.keys.transform
        residue = _residue(transform, statistics, "rotated_key")
        return sum(float((residue[head] * statistics.rotated_query_second[head]).sum()) for head in range(len(residue)))

    def output_error(self, spec, layer=0):
        """Σ over heads of E‖W_o (v − v̂)‖² on the calibration moments."""
        statistics, transform = self.statistics.layers[layer], self.fit(spec).layers[layer].codec.values.transform
        residue = _residue(transform, statistics, "value")
        return sum(float((residue[head] * statistics.output_gram[head]).sum()) for head in range(len(residue)))


def _residue(transform, statistics, side):
    """Second moment of the error per head, (heads, d, d), of a per-head transform."""
    mean, second = transform.mean.double(), statistics.second(side)
    first, size = statistics.mean(side), transform.mean.shape[1]
    errors = []
    for head in range(transform.groups):
        rows = slice(head * size, (head + 1) * size)
        centred = second[rows, rows] - torch.outer(mean[head], first[rows]) - torch.outer(first[rows], mean[head])
        centred = centred + torch.outer(mean[head], mean[head])
        lost = torch.eye(size).double() - transform.encoder[head].double() @ transform.decoder[head].double()
        errors.append(lost.T @ centred @ lost)
    return torch.stack(errors)


@pytest.fixture(scope="module")
def llama():
    return Calibrated(layers=2, hidden=192, heads=8, kv_heads=4, head_dim=16)


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_is_the_stock_model(llama, method):
    assert llama.error(method.format(1)) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_more_rank_is_less_error(llama, method):
    low, middle, high = (llama.error(method.format(rank)) for rank in (0.2, 0.6, 0.9))
    assert low > middle > high > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_predicted_bytes_are_allocated(llama, method):
    plan = llama.fit(method.format(0.5))
    with attach(llama.model, plan, llama.geometry) as compressed, torch.no_grad():
        cache = compressed.new_cache()
        llama.model(llama.ids, past_key_values=cache, use_cache=True)
        assert cache.nbytes().total == predict_bytes(plan, llama.geometry, llama.ids.shape[1])


@pytest.mark.parametrize("method", METHODS)
def test_rank_is_the_share_of_the_cache_kept(llama, method):
    plan = llama.fit(method.format(0.5))
    stored = sum(layer.codec.cost(torch.float64).payload for layer in plan.layers.values()) / 64
    whole = sum(layer.elements_per_token for layer in llama.geometry.layers)
    assert stored / whole == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("rank", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("layer", [0, 1])
def test_kqsvd_has_the_least_score_and_output_error(llama, rank, layer):
    best = f"kqsvd:rank={rank}"
    # Eigenvalues of the metric are floored at a millionth, hence the margin.
    for other in (f"pca:rank={rank},frame=after,heads=each", f"eigen:rank={rank}"):
        assert llama.score_error(best, layer) <= llama.score_error(other, layer) * (1 + 1e-6)
    assert llama.output_error(best, layer) <= llama.output_error(f"eigen:rank={rank}", layer) * (1 + 1e-6)


@pytest.mark.parametrize(("family", "overrides"), [("llama", {"kv_heads": 4}), ("phi", {}), ("gpt_neox", {})])
@pytest.mark.parametrize("rank", [0.3, 0.7])
def test_rope_commuting_commutes_with_the_models_rotation(family, overrides, rank):
    calibrated = Calibrated(family, layers=1, **overrides)
    geometry = calibrated.geometry.layers[0]
    transform = calibrated.fit(f"rope-commuting:rank={rank}").layers[0].codec.keys.transform
    projector = transform.encoder[0] @ transform.decoder[0]
    module = attention_modules(calibrated.model)[0]
    keys = torch.randn(1, geometry.kv_heads, 50, geometry.head_dim, dtype=torch.float64)
    angles = torch.arange(50)[:, None] * 10000.0 ** (-torch.arange(geometry.rotary_dims // 2) / 7)
    rotation = tuple(torch.cat([part, part], -1).double()[None] for part in (angles.cos(), angles.sin()))

    def project(states):
        flat = states.transpose(1, 2).flatten(2) @ projector
        return flat.unflatten(2, (geometry.kv_heads, -1)).transpose(1, 2)

    after = project(rotate(module, keys, rotation, geometry.rotary_dims))
    before = rotate(module, project(keys), rotation, geometry.rotary_dims)
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)
    assert (project(keys) - keys).abs().max() > 0.1


def test_rope_commuting_refuses_a_model_without_rope():
    with pytest.raises(KvbenchError, match="no RoPE"):
        Calibrated("gpt2", layers=1).fit("rope-commuting:rank=0.5")


def test_matryoshka_latents_can_be_cut_later(llama):
    large, small = (llama.fit(f"matryoshka:rank={rank}").layers[1].codec for rank in (0.8, 0.3))
    states = torch.randn(1, 4, 20, 16, dtype=torch.float64)
    for wide, narrow in ((large.keys, small.keys), (large.values, small.values)):
        stored = wide.encode(states)["latent"]
        rank = narrow.rank
        assert rank < wide.rank
        torch.testing.assert_close(stored[..., :rank], narrow.encode(states)["latent"])
        rebuilt = torch.matmul(stored[..., :rank], wide.transform.decoder[:, :rank]) + wide.transform.mean[:, None]
        torch.testing.assert_close(rebuilt, narrow.decode({"latent": stored[..., :rank]}))


def test_lorc_keeps_more_in_shallow_layers():
    plan = Calibrated(layers=4, hidden=96).fit("lorc:rank=0.5")
    ranks = [plan.layers[layer].codec.keys.rank for layer in range(4)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > ranks[-1]


def test_asvd_without_scaling_is_svd(llama):
    svd, asvd = (llama.fit(spec).layers[0].codec.values.transform for spec in ("svd:rank=0.5", "asvd:rank=0.5,alpha=0"))
    torch.testing.assert_close(svd.encoder @ svd.decoder, asvd.encoder @ asvd.decoder)


def test_eigen_energy_picks_ranks(llama):
    low, high = (llama.fit(f"eigen:energy={energy}").layers[0].codec.keys.rank for energy in (0.5, 0.95))
    assert low < high


@pytest.mark.parametrize("method", ["svd", "asvd", "lorc"])
def test_weights_behind_a_norm_are_refused(method):
    with pytest.raises(KvbenchError, match="no key_weight"):
        Calibrated("qwen3", layers=1).fit(f"{method}:rank=0.5")


@pytest.mark.parametrize(
    "spec", ["svd:rank=0", "kqsvd:rank=1.5", "eigen", "eigen:rank=0.5,energy=0.5", "lorc:rank=0.5,least=2"]
)
def test_bad_settings_are_refused(spec):
    with pytest.raises(KvbenchError, match=spec.partition(":")[0]):
        parse(spec)
