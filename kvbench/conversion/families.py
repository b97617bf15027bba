"""Which models can be written with DeepSeek's layers: all but the attention must be the same."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from kvbench.errors import UnsupportedModelError
from kvbench.hooks.geometry import ModelGeometry
from kvbench.hooks.interception import attention_modules

FAMILIES = ("llama", "mistral", "qwen2")
"""RMSNorm before attention and before a gated MLP, RoPE by halves over whole heads, and nothing else."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def require_convertible(model: PreTrainedModel, geometry: ModelGeometry) -> None:
    """Refuse what DeepSeek's layers cannot say.

    Raises:
        UnsupportedModelError: another family, a sliding window, a RoPE that changes with length, projections that are
            no plain linear layers, or an MLP with biases.
    """
    family = getattr(model.config, "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise _refused(f"a {family} model has other layers; those of {', '.join(FAMILIES)} models fit")
    if len(geometry.compressible) < len(geometry.layers):
        raise _refused("this model has layers with a sliding window, which DeepSeek's do not know")
    if geometry.dynamic_rope:
        raise _refused("this model's RoPE depends on the length seen so far (dynamic NTK or LongRoPE)")
    if getattr(model.config, "mlp_bias", False):
        raise _refused("this model's MLPs have biases, and DeepSeek's have none")
    if any(layer.rotary_dims == 0 for layer in geometry.layers):
        raise _refused("this model has no RoPE to decouple")
    for layer, module in attention_modules(model).items():
        for name in PROJECTIONS:
            projection = getattr(module, name, None)
            if type(projection) is not nn.Linear:
                kind = type(projection).__name__
                raise _refused(f"{name} of layer {layer}, a {kind}, is no plain linear layer (a quantized model?)")


def _refused(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"cannot be written as DeepSeek layers: {reason}")
