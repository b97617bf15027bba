"""An exact prompt as plain tensors, for a safetensors file, and back."""

from __future__ import annotations

import json

from torch import Tensor

from kvbench.hooks.rotations import Rotation
from kvbench.measure.prompt import ExactPrompt, LayerPrompt

_PROMPT = "prompt"


def prompt_tensors(prompt: ExactPrompt) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named tensors, each storage once, and the text that belongs to them.

    Layers share their rotations: cosines and sines of the same positions.
    """
    tensors: dict[str, Tensor] = {"logits": prompt.logits}
    rotations: list[Rotation] = []
    layers = {}
    for index, layer in prompt.layers.items():
        tensors |= {f"{index}.keys": layer.keys, f"{index}.values": layer.values, f"{index}.query": layer.query}
        number = _place(layer.rotation, rotations)
        layers[index] = {"scaling": layer.scaling, "rotation": number, "latent": layer.latent}
    for number, rotation in enumerate(rotations):
        tensors |= {f"rotation.{number}.{place}": tensor for place, tensor in enumerate(rotation)}
    description = {"length": prompt.length, "layers": layers}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, {_PROMPT: json.dumps(description)}


def prompt_from(tensors: dict[str, Tensor], texts: dict[str, str]) -> ExactPrompt:
    """The prompt that :func:`prompt_tensors` took apart."""
    description = json.loads(texts[_PROMPT])
    layers = {}
    for index, layer in description["layers"].items():
        number = layer["rotation"]
        layers[int(index)] = LayerPrompt(
            keys=tensors[f"{index}.keys"],
            values=tensors[f"{index}.values"],
            query=tensors[f"{index}.query"],
            scaling=layer["scaling"],
            rotation=None if number is None else (tensors[f"rotation.{number}.0"], tensors[f"rotation.{number}.1"]),
            latent=layer["latent"],
        )
    return ExactPrompt(layers, description["length"], tensors["logits"])


def _place(rotation: Rotation | None, known: list[Rotation]) -> int | None:
    """The rotation's place among the ``known`` ones, which it joins if it is new."""
    if rotation is None:
        return None
    pointers = [tuple(tensor.data_ptr() for tensor in each) for each in known]
    mine = tuple(tensor.data_ptr() for tensor in rotation)
    if mine not in pointers:
        known.append(rotation)
        return len(known) - 1
    return pointers.index(mine)
