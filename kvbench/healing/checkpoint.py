"""A training that was interrupted, in one file that is whole or absent: tensors, and in its header their request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import NonNegativeFloat, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kvbench.compressors.plan_file import tensors_digest
from kvbench.errors import KvbenchError
from kvbench.healing.request import HealRequest
from kvbench.healing.training import Evaluation
from kvbench.storage.files import replace_file
from kvbench.storage.frozen import Frozen


class Standing(Frozen):
    """How far a healing has come: ``step`` steps in ``seconds``.

    ``plan`` is the digest of the fitted plan, and ``klds_before`` what it loses on the held-out documents.
    """

    request: HealRequest
    plan: str
    klds_before: tuple[float, ...]
    step: NonNegativeInt
    seconds: NonNegativeFloat
    evaluations: tuple[Evaluation, ...]


def save_checkpoint(path: Path, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
    """Replace the file at ``path`` in one step. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"standing": standing.model_dump_json(), "content": tensors_digest(tensors)}
    replace_file(path, save(dict(tensors), names))


def load_checkpoint(path: Path) -> tuple[Standing, dict[str, Tensor]] | None:
    """What :func:`save_checkpoint` wrote, on the CPU; None where there is no file.

    Raises:
        KvbenchError: it is damaged, or of another version of kvbench.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        standing = Standing.model_validate_json(names["standing"])
        if tensors_digest(tensors) != names["content"]:
            raise ValueError("a number in it was changed")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValidationError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise KvbenchError(f"{path} cannot be read ({reason}); delete it to begin anew") from error
    return standing, tensors
