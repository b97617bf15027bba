"""An exact prompt survives a safetensors file: the same tensors, each storage once, and the same cache filled."""

from pathlib import Path

import pytest
import torch
from driving import subject, token_ids
from safetensors import safe_open
from safetensors.torch import save_file

from kvbench.measure.prompt import ExactPrompt, exact_prompt
from kvbench.measure.prompt_file import prompt_from, prompt_tensors


def through_a_file(prompt: ExactPrompt, path: Path) -> ExactPrompt:
    save_file(*prompt_tensors(prompt)[:1], path, prompt_tensors(prompt)[1])
    with safe_open(path, framework="pt") as file:
        return prompt_from({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_prompt_comes_back_as_it_was(family: str, tmp_path: Path):
    one = subject(family, torch.float32)
    prompt = exact_prompt(one.model, one.geometry, token_ids(1, 40))
    again = through_a_file(prompt, tmp_path / "prompt.safetensors")
    assert again.length == prompt.length and torch.equal(again.logits, prompt.logits)
    for index, layer in prompt.layers.items():
        other = again.layers[index]
        assert other.scaling == layer.scaling
        for name in ("keys", "values", "query"):
            assert torch.equal(getattr(other, name), getattr(layer, name))
        assert (layer.rotation is None) == (other.rotation is None)
        for before, after in zip(layer.rotation or (), other.rotation or (), strict=True):
            assert torch.equal(before, after)


def test_rotations_that_layers_share_are_written_once():
    one = subject("llama", torch.float32)
    tensors, _ = prompt_tensors(exact_prompt(one.model, one.geometry, token_ids(1, 40)))
    assert len([name for name in tensors if name.startswith("rotation")]) == 2
