"""Which attention function a model's configs name: changed while any interception is open, put back after the last.

Configs of composite models (text, vision, …) may name different functions; each gets its own back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from kvbench.errors import KvbenchError, UnsupportedModelError

IMPLEMENTATION = "kvbench"
"""Name of the registered attention function and mask; free of the substrings that transformers reacts to."""


Named = list[tuple[PreTrainedConfig, str | None]]
"""Configs, and the attention function that each names."""


@dataclass
class _Switched:
    """A model whose attention runs through kvbench, for each of ``users``."""

    before: Named
    users: set[int] = field(default_factory=set)


_SWITCHED: WeakKeyDictionary[PreTrainedModel, _Switched] = WeakKeyDictionary()


def switch(model: PreTrainedModel, user: object) -> None:
    """Let ``model`` call kvbench's attention function until all its users have called :func:`switch_back`.

    Raises:
        UnsupportedModelError: the model has no attention interface.
    """
    if model not in _SWITCHED:
        before = [(config, config._attn_implementation) for config in _configs(model)]
        model.set_attn_implementation(IMPLEMENTATION)
        if model.config._attn_implementation != IMPLEMENTATION:
            _put_back(before)
            raise written_out(model)
        _SWITCHED[model] = _Switched(before)
    _SWITCHED[model].users.add(id(user))


def switch_back(model: PreTrainedModel, user: object) -> None:
    """``user`` is done; the last one leaves the configs as the first found them. Nothing to do a second time."""
    switched = _SWITCHED.get(model)
    if switched is None:
        return
    switched.users.discard(id(user))
    if not switched.users:
        _put_back(switched.before)
        del _SWITCHED[model]


def written_out(model: nn.Module) -> UnsupportedModelError:
    """The error for a model that does not call transformers' attention interface."""
    return UnsupportedModelError(
        f"{type(model).__name__} has no attention interface: its attention is written out in the model "
        "code, so no cache can be attached; use a family with one (`kvbench ls families` lists them)",
        "attention is written out in the model's code",
    )


def check_switched(config: PreTrainedConfig | None) -> None:
    """Refuse to go on where the attention function was changed meanwhile: nothing would attend to the cache.

    Raises:
        KvbenchError: it was; the message names it.
    """
    name = IMPLEMENTATION if config is None else config._attn_implementation
    if name != IMPLEMENTATION:
        raise KvbenchError(
            f"the model's attention was set to {name!r} while a compressed cache is attached to it, which only works "
            f"through {IMPLEMENTATION!r}; call set_attn_implementation before or after the `with compress(...)` block"
        )


def _put_back(before: Named) -> None:
    for config, name in before:
        config._attn_implementation_internal = name  # the public setter would reach into other configs


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """All configs of the model and its parts, each once."""
    waiting = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs: dict[int, PreTrainedConfig] = {}
    while waiting:
        config = waiting.pop()
        if id(config) not in configs:
            configs[id(config)] = config
            parts = (getattr(config, name, None) for name in config.sub_configs)
            waiting += [part for part in parts if isinstance(part, PreTrainedConfig)]
    return list(configs.values())
