"""Fitted plans on disk: one safetensors file that holds every basis and table, and a JSON tree of how they belong.

A plan is a tree of dataclasses over tensors, numbers and texts, and so is what it writes. Reading builds only
dataclasses of kvbench itself and of installed compressor plug-ins; nothing else is ever imported or called.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kvbench.cache.attach import Plan
from kvbench.compressors import registry
from kvbench.errors import KvbenchError
from kvbench.hooks.geometry import ModelGeometry

FORMAT = "3"
"""Raised whenever a file of the old kind could be misread."""


@dataclass(frozen=True)
class PlanFile:
    """What a file says before its tensors are read: the ``tree`` of the plan, and the model it was fitted for."""

    path: Path
    tree: dict[str, Any]
    model: str
    weights_sha256: str
    geometry: Any
    content: str
    """Digest of its tensors."""

    @property
    def spans(self) -> Any:
        """The plan's exact spans."""
        return _Reader({}).value(self.tree["fields"]["spans"])

    @property
    def modules(self) -> list[str]:
        """Names of the modules whose classes the plan is made of, in order."""
        return sorted({name.partition(":")[0] for name in _classes(self.tree)})

    def plan(self, geometry: ModelGeometry) -> Plan:
        """The plan, on the device of a model of this ``geometry``.

        Raises:
            KvbenchError: another geometry or dtype, or tensors that cannot be read.
        """
        if self.geometry != fingerprint(geometry):
            raise KvbenchError(
                f"{self.path.parent} was fitted for {self.model} with other layers or another dtype than this model "
                f"has ({str(geometry.dtype).removeprefix('torch.')}); run `kvbench fit` for this one"
            )
        with _readable(self.path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if tensors_digest(tensors) != self.content:
            raise KvbenchError(f"{self.path} is damaged: a number in it was changed; run `kvbench fit` again")
        tensors = {name: tensor.to(geometry.device) for name, tensor in tensors.items()}
        try:
            return _Reader(tensors).value(self.tree)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise KvbenchError(f"{self.path} holds no whole plan ({reason}); run `kvbench fit` again") from error


def dump_plan(plan: Plan, geometry: ModelGeometry, model: str, weights_sha256: str) -> bytes:
    """The file's content; ``model`` and ``weights_sha256`` say what the plan was fitted for.

    Raises:
        KvbenchError: a part of the plan is neither a dataclass nor a tensor, number or text.
    """
    writer = _Writer()
    tree = writer.node(plan)
    names = {"model": model, "weights_sha256": weights_sha256, "format": FORMAT}
    names["content"] = tensors_digest(writer.tensors)
    texts = {"plan": json.dumps(tree), "geometry": json.dumps(fingerprint(geometry))}
    return save(writer.tensors, names | texts)


def plan_digest(plan: Plan) -> str:
    """sha256 of all that the plan is made of; errors as in :func:`dump_plan`."""
    writer = _Writer()
    tree = json.dumps(writer.node(plan))
    return hashlib.sha256(f"{tree} {tensors_digest(writer.tensors)}".encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, shapes, dtypes and contents."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def open_plan(path: Path) -> PlanFile:
    """Read what the file at ``path`` says about its plan; the tensors come later.

    Raises:
        KvbenchError: there is no such file, it is damaged, or a newer kvbench wrote it.
    """
    with _readable(path) as file:
        names = file.metadata() or {}
    if names.get("format") != FORMAT:
        raise KvbenchError(f"{path} is no plan that this kvbench can read; run `kvbench fit` again")
    try:
        tree, geometry = json.loads(names["plan"]), json.loads(names["geometry"])
        return PlanFile(path, tree, names["model"], names["weights_sha256"], geometry, names["content"])
    except (KeyError, ValueError) as error:
        raise KvbenchError(f"{path} is damaged ({error}); run `kvbench fit` again") from error


def fingerprint(geometry: ModelGeometry) -> dict[str, Any]:
    """What a plan depends on, as plain JSON values."""
    layers = [
        [layer.layer, layer.kv_heads, layer.head_dim, layer.value_dim, layer.rotary_dims]
        for layer in geometry.compressible
    ]
    return {"dtype": str(geometry.dtype).removeprefix("torch."), "layers": layers}


def _readable(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise KvbenchError(f"no fitted plan at {path}; `kvbench fit --save {path.parent}` makes one") from error
    except (OSError, SafetensorError) as error:
        raise KvbenchError(f"{path} cannot be read ({error}); run `kvbench fit` again") from error


@dataclass
class _Writer:
    """Turns values into plain JSON, and collects tensors; one that several layers share is stored once."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def node(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return self._store(value)
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, tuple | list):
            return {type(value).__name__: [self.node(item) for item in value]}
        if isinstance(value, Mapping):
            return {"dict": [[self.node(key), self.node(item)] for key, item in value.items()]}
        if is_dataclass(value) and not isinstance(value, type):
            cls = type(value)
            given = {item.name: self.node(getattr(value, item.name)) for item in fields(value) if item.init}
            return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": given}
        raise KvbenchError(
            f"a {type(value).__name__} cannot be saved; fitted parts must be dataclasses of tensors, numbers and texts"
        )

    def _store(self, tensor: Tensor) -> dict[str, Any]:
        """What is stored of ``tensor``, and how it is seen: a transposed view is that of the same stored tensor.

        A dimension that repeats one slice is stored as that slice.
        """
        self._alive.append(tensor)  # addresses tell tensors apart only while all of them live
        steps = tensor.stride()
        order = sorted(range(tensor.dim()), key=lambda axis: -steps[axis])
        repeats = [steps[axis] == 0 and tensor.shape[axis] > 1 for axis in range(tensor.dim())]
        slices = tuple(slice(0, 1) if repeated else slice(None) for repeated in repeats)
        dense = tensor.detach()[slices].permute(order)
        key = (dense.data_ptr(), dense.shape, dense.stride(), dense.dtype)
        if key not in self._known:
            self._known[key] = f"t{len(self._known)}"
            self.tensors[self._known[key]] = dense.cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": self._known[key], "order": order, "shape": list(tensor.shape)}


@dataclass
class _Reader:
    """The inverse of :class:`_Writer`."""

    tensors: dict[str, Tensor]

    def value(self, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            return self._seen(node)
        if "dtype" in node:
            return getattr(torch, node["dtype"])
        if "dict" in node:
            return {self.value(key): self.value(item) for key, item in node["dict"]}
        for kind in (tuple, list):
            if kind.__name__ in node:
                return kind(self.value(item) for item in node[kind.__name__])
        return _find_class(node["class"])(**{name: self.value(item) for name, item in node["fields"].items()})

    def _seen(self, node: dict[str, Any]) -> Tensor:
        """A stored tensor with its axes in place and its repeated dimensions expanded."""
        places = sorted(range(len(node["order"])), key=node["order"].__getitem__)
        return self.tensors[node["tensor"]].permute(places).expand(node["shape"])


def _classes(node: Any) -> Iterator[str]:
    """All ``module:name`` in a tree."""
    if isinstance(node, dict):
        if "class" in node:
            yield node["class"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _classes(item)


def _find_class(name: str) -> type[Any]:
    """The dataclass called ``module:name``, of kvbench or of an installed plug-in."""
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in {"kvbench", *registry.plugin_packages()}:
        raise KvbenchError(f"the plan holds a {name}, which no installed compressor package brings; install it")
    try:
        member: Any = importlib.import_module(module)
        for part in path.split("."):
            member = getattr(member, part)
    except (ImportError, AttributeError) as error:
        raise KvbenchError(f"the plan holds a {name}, which is not there any more; run `kvbench fit` again") from error
    if not (isinstance(member, type) and is_dataclass(member)):
        raise KvbenchError(f"the plan holds a {name}, which is no dataclass; run `kvbench fit` again")
    return member
