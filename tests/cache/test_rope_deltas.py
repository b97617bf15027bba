"""Vision-language models remember the positions of the batch that they generated last; the self-test must not."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from kvbench.cache.self_test import self_test
from kvbench.hooks.geometry import probe_geometry
from kvbench.models.random_models import cast
from kvbench.models.random_weights import fill

pytestmark = pytest.mark.usefixtures("fp64", "one_thread")
VOCABULARY = 64


def tiny_qwen2_vl() -> Qwen2VLForConditionalGeneration:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_parameters": rope,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    markers = dict(zip(names, range(60, 64), strict=True))
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **markers))
    fill(model, 0)
    model.generation_config.eos_token_id = None
    return cast(model.eval(), torch.float64).requires_grad_(False)


@pytest.mark.parametrize("offset", [0, 5])
def test_a_batch_of_another_size_before_it_changes_nothing(offset: int) -> None:
    model = tiny_qwen2_vl()
    ids = torch.randint(3, 60, (3, 6), generator=torch.Generator().manual_seed(0))
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    assert model.model.rope_deltas.shape == (3, 1)
    model.model.rope_deltas += offset  # as after images
    left = model.model.rope_deltas
    self_test(model, probe_geometry(model), "after")
    assert model.model.rope_deltas is left
