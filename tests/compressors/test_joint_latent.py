"""Keys and values in one latent: mla, latent, ftc."""

import pytest
import torch
from driving import attach

from kvbench.cache.body_attention import BodyAttention
from kvbench.cache.prediction import body_bits_per_element, predict_bytes
from kvbench.calibration.collect import collect
from kvbench.codecs.transforms.rope import frequencies_of
from kvbench.compressors.compressor import parse
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import probe_geometry
from kvbench.kernels.reference import partial_attention
from kvbench.models.random_models import build

PROMPT, NEW = 120, 16


class Calibrated:
    def __init__(self, family="llama", tie=False, slow=1, **overrides):
        torch.manual_seed(0)
        self.model = build(family, torch.float64, **overrides)
        for layer in self.model.model.layers if tie else []:
            layer.self_attn.v_proj.weight = layer.self_attn.k_proj.weight
        for layer in self.model.model.layers if slow > 1 else []:
            layer.self_attn.k_proj.weight.data.view(2, 2, 8, -1)[:, :, -1] *= slow  # RoPE's slowest pair of each head
        self.geometry = probe_geometry(self.model)
        self.statistics = collect(self.model, self.geometry, torch.randint(3, 200, (4, 160)))
        self.ids = torch.randint(3, 200, (1, PROMPT + NEW))
        with torch.no_grad():
            self.logits = self.model(self.ids).logits[:, PROMPT:]

    def fit(self, spec):
        return parse(spec + ",recent=0,block=8").fit(self.geometry, self.statistics)

    def error(self, spec, crop=0):
        """Relative error of the logits of new tokens after a compressed prompt, of which ``crop`` tokens are redone."""
        with attach(self.model, self.fit(spec), self.geometry) as compressed, torch.no_grad():
            cache = compressed.new_cache()
            self.model(self.ids[:, :PROMPT], past_key_values=cache, use_cache=True)
            if crop:
                cache.crop(-crop)
            logits = self.model(self.ids[:, PROMPT - crop :], past_key_values=cache, use_cache=True).logits[:, -NEW:]
        return float((logits - self.logits).norm() / self.logits.norm())


@pytest.fixture(scope="module")
def llama():
    return Calibrated(layers=2, hidden=96, heads=4, kv_heads=2, head_dim=16)


# 2 heads of 16 dimensions: 32 rotate, and 32 of the values are left for the latent.
WHOLE = "mla:rope_dims=32,latent=32"


def test_mla_with_rope_in_every_dimension_is_the_stock_model(llama):
    assert llama.error(WHOLE) < 1e-10


@pytest.mark.parametrize("spec", [WHOLE, "latent:rank=1"])
def test_latents_can_be_cut_and_decoded_again(llama, spec):
    assert llama.error(spec, crop=13) < 1e-10


def test_mla_of_partial_rope_needs_no_slice_for_what_has_no_rope():
    phi = Calibrated("gpt_neox", layers=1)
    geometry = phi.geometry.layers[0]
    rotary, width = geometry.kv_heads * geometry.rotary_dims, geometry.elements_per_token
    assert 0 < rotary < geometry.kv_heads * geometry.head_dim
    assert phi.error(f"mla:rope_dims={rotary},latent={width - rotary}") < 1e-10


def test_mla_without_all_of_its_rope_is_another_function(llama):
    assert llama.error("mla:rope_dims=16,latent=64") > 1e-3


def test_more_latent_is_less_error(llama):
    errors = [llama.error(f"mla:rope_dims=32,latent={latent}") for latent in (4, 16, 28)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        ("mla:rope_dims=8,latent=24", 32),
        ("mla:rope_dims=8,latent=24+int:bits=4", 4 / 2 + 2 * 32 / 64),
        ("latent:rank=0.5", 32),
        ("latent:rank=0.5+int:bits=8", 8 / 2 + 32 / 64),
        ("ftc:bits=3", 3),
    ],
)
def test_bytes_are_predicted_and_allocated(llama, spec, bits):
    plan = llama.fit(spec)
    assert body_bits_per_element(plan, llama.geometry) == pytest.approx(bits)
    with attach(llama.model, plan, llama.geometry) as compressed, torch.no_grad():
        cache = compressed.new_cache()
        llama.model(llama.ids, past_key_values=cache, use_cache=True)
        assert cache.nbytes().total == predict_bytes(plan, llama.geometry, llama.ids.shape[1])


def test_decoupled_keys_are_whole_keys_without_rope(llama):
    codec = llama.fit("mla:rope_dims=8,latent=40").layers[0].codec
    stored = codec.encode(*(torch.randn(2, 1, 2, 24, 16, dtype=torch.float64)))
    query = torch.randn(1, 4, 3, 16, dtype=torch.float64)
    decoupled = BodyAttention(codec).attend(torch.cat([query, query], -1), stored, 24, None, 0.25)
    whole = partial_attention(query, *codec.decode(stored), 0.25)
    torch.testing.assert_close(decoupled.output, whole.output)
    torch.testing.assert_close(decoupled.lse, whole.lse)


def test_what_keys_and_values_share_is_stored_once():
    tied = Calibrated(layers=2, hidden=96, heads=4, kv_heads=2, head_dim=16, tie=True)
    # One more component than keys have: values keep their mean, which keys are rid of.
    assert tied.error(f"latent:rank={33 / 64}") < 1e-10 < 0.1 < tied.error(f"pca:rank={33 / 64}")
    assert tied.error("ftc:bits=2") < 0.5 * tied.error("ftc:bits=2,basis=split")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mla:rope_dims=3,latent=8", "must be even"),
        ("mla:rope_dims=64,latent=8", "rotates 32"),
        ("mla:rope_dims=8,latent=100", "have 64 dimensions"),
        ("ftc:bits=9", "bits=9"),
    ],
)
def test_what_does_not_fit_is_refused(llama, spec, message):
    with pytest.raises(KvbenchError, match=message):
        llama.fit(spec)


def test_mla_needs_rope():
    with pytest.raises(KvbenchError, match="no RoPE"):
        Calibrated("gpt2", layers=1).fit("mla:rope_dims=8,latent=8")


@pytest.mark.parametrize("choice", ["shared", "even", "energy"])
def test_other_choices_of_the_slice_are_whole_too(llama, choice):
    assert llama.error(f"{WHOLE},choice={choice}") < 1e-10


def kept_frequencies(plan):
    """Of the slice of every layer, of 2 heads of 16 dimensions."""
    half = torch.arange(8)
    pairs = torch.stack([half, half + 8], 1)
    bases = [layer.codec.keys.transform.encoder[0] for layer in plan.layers.values()]
    return [tuple(frequencies_of(basis, 2, pairs).sort().values.tolist()) for basis in bases]


def test_a_shared_slice_keeps_the_same_frequencies_in_all_layers():
    deep = Calibrated(layers=4, hidden=96, heads=4, kv_heads=2, head_dim=16)
    shared, own = (deep.fit(f"mla:rope_dims=12,latent=24,choice={choice}") for choice in ("shared", "contribution"))
    assert len({*kept_frequencies(shared)}) == 1 < len({*kept_frequencies(own)})


def test_an_even_slice_keeps_as_much_of_every_frequency():
    deep = Calibrated(layers=2, hidden=96, heads=4, kv_heads=2, head_dim=16)
    for rope_dims, kept in ((16, [*range(8)]), (32, [*range(8), *range(8)])):
        plan = deep.fit(f"mla:rope_dims={rope_dims},latent=24,choice=even")
        assert kept_frequencies(plan) == [tuple(sorted(kept))] * 2


def test_strong_keys_that_hardly_turn_need_no_rope():
    slow = Calibrated(layers=1, hidden=96, heads=4, kv_heads=2, head_dim=16, slow=6)
    energy, contribution = ("mla:rope_dims=8,latent=56,choice=" + choice for choice in ("energy", "contribution"))
    assert 7 in kept_frequencies(slow.fit(energy))[0] and 7 not in kept_frequencies(slow.fit(contribution))[0]
    assert slow.error(contribution) < slow.error(energy)
