"""Configs of models without their weights: those of public models that come with kvbench, files, and local folders.

``public/<name>.json`` holds what the model's own ``config.json`` on the hub says about sizes, RoPE and context.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvbench.errors import FetchError, KvbenchError, unknown
from kvbench.models import registry

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""What a config of multi-head latent attention has to state."""

_FOLDER = Path(__file__).with_name("public")


def public_names() -> list[str]:
    """The models whose configs come with kvbench."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def read_config(name: str) -> tuple[str, PreTrainedConfig]:
    """The name to print and the config of ``name``: a public model, a ``config.json``, a folder with one, or a listed
    hub model that lies in the hub's local cache. Nothing is fetched.

    Raises:
        KvbenchError: no such model, no config there, or transformers does not know its ``model_type``.
    """
    if name in public_names():
        return name, _parsed(_FOLDER / f"{name}.json")
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve().name, _parsed(path / "config.json")
    if path.suffix == ".json":
        return path.resolve().parent.name if path.name == "config.json" else path.stem, _parsed(path)
    return name, _parsed(_hub_config(name))


def _hub_config(name: str) -> Path:
    hub = {key: registry.find(key) for key in registry.names() if registry.find(key).source == "hub"}
    entry = next((entry for key, entry in hub.items() if name in (key, entry.repo)), None)
    if entry is None:
        raise unknown("config", name, [*public_names(), *hub, "<path of a config.json or of its folder>"])
    from kvbench.models.hub import snapshot_folder

    try:
        return snapshot_folder(entry, fetch=False) / "config.json"
    except FetchError as error:
        raise KvbenchError(f"{error}; give the path of its config.json") from error


def _parsed(path: Path) -> PreTrainedConfig:
    try:
        fields = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise KvbenchError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise KvbenchError(f"{path} is no JSON: {error}") from error
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # with it comes torch: slips go first

    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise KvbenchError(f"{path} names no model_type that transformers knows, but {kind!r}: it is no model's config")
    missing = (
        [name for name in _LATENT if fields.get(name) is None] if hasattr(CONFIG_MAPPING[kind], _LATENT[0]) else []
    )
    if missing:  # transformers would take those of another model
        raise KvbenchError(
            f"{path}: a {kind} has multi-head latent attention, but its config lacks {', '.join(missing)}"
        )
    return _of_kind(CONFIG_MAPPING[kind], fields, path)


def _of_kind(kind: type[PreTrainedConfig], fields: dict[str, Any], path: Path) -> PreTrainedConfig:
    """Transformers' reading of the config, which fills in what its families leave to a default."""
    try:
        return kind.from_dict(fields)
    except Exception as error:  # each family checks its fields by itself and raises what it likes
        reason = " ".join(str(error).split())
        raise KvbenchError(f"{path} is no config that transformers reads: {reason}") from error
