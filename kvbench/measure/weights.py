"""Bytes of a model's weights, and of the routed experts among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def weight_bytes(tensors: Iterable[Tensor]) -> int:
    """Of ``tensors``; those that lie in one place, as tied weights do, count once."""
    return sum({tensor.data_ptr(): tensor.numel() * tensor.itemsize for tensor in tensors}.values())


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of routed experts, which transformers' mixtures of experts keep in modules called ``experts``."""
    for name, parameter in model.named_parameters():
        if "experts" in name.split("."):
            yield parameter
