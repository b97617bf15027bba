"""``kvbench fit``: a method and a target in, a fitted plan in a folder out.

The folder holds ``plan.safetensors`` (bases, bit widths, spans: what ``saved:path=FOLDER`` loads), ``fit.json`` (what
was requested, found and measured; written last, so a folder with it is complete) and, for a target in KLD,
``probes.json``: measurements that the next try after an interruption does not make again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import PositiveInt, ValidationError

from kvbench.cache.attach import Plan
from kvbench.compressors import registry
from kvbench.compressors.compressor import Compressor
from kvbench.compressors.methods.saved import PLAN, Saved
from kvbench.compressors.open_method import OpenMethod
from kvbench.compressors.plan_file import dump_plan
from kvbench.errors import KvbenchError
from kvbench.measure.bench import CalibrationSource, ModelBench, Report
from kvbench.measure.parts import Inputs
from kvbench.measure.parts.memory import MemoryWorkload
from kvbench.measure.quality import QualityBench
from kvbench.measure.search import Search
from kvbench.runs.code_identity import code_sha256
from kvbench.runs.targets import Target, parse_target
from kvbench.storage.files import replace_file
from kvbench.storage.frozen import Frozen
from kvbench.texts.windows import check_disjoint

FIT, PROBES = "fit.json", "probes.json"

Stored = TypeVar("Stored", bound=Frozen)


class FitRequest(Frozen):
    """What is requested; a folder belongs to one request.

    ``windows`` of ``length`` tokens of the calibration split of ``text`` feed the fit; ``documents`` of ``tokens`` of
    its development split feed a search for a KLD.
    """

    model: str
    weights_sha256: str
    dtype: str
    method: str
    target: Target
    tokens: PositiveInt
    text: str
    windows: PositiveInt
    length: PositiveInt
    documents: PositiveInt

    @classmethod
    def of(
        cls,
        bench: ModelBench,
        method: str,
        target: Target,
        tokens: int = 1024,
        text: str = "essays",
        windows: int = 8,
        length: int = 1024,
        documents: int = 2,
    ) -> FitRequest:
        """A request to the model on the ``bench``. Raises KvbenchError for counts below 1."""
        counts = {"tokens": tokens, "windows": windows, "length": length, "documents": documents}
        for name, count in counts.items():
            if count < 1:
                raise KvbenchError(f"{name} must be at least 1, got {count}")
        return cls(
            model=bench.name,
            weights_sha256=bench.loaded.weights_sha256,
            dtype=str(bench.loaded.model.dtype).removeprefix("torch."),
            method=method,
            target=target,
            text=text,
            **counts,
        )


class SideFit(Frozen):
    """What one layer's keys, values or ``joint`` latent got; ``bits`` are per element of the side, scales included.

    ``rank`` components for each of ``groups`` head groups; ``widths`` are their bits where they differ by component.
    """

    layer: int
    side: str
    groups: int
    rank: int
    bits: float
    widths: tuple[int, ...] | None = None


class Probe(Frozen):
    """One measured setting; ``code`` is the hash of the sources it ran with."""

    spec: str
    code: str
    kld: float


class Probes(Frozen):
    """All settings measured for one request."""

    request: FitRequest
    probes: tuple[Probe, ...] = ()


class Fit(Frozen):
    """The result of a fit. Bits and bytes are of one row's whole cache after ``request.tokens`` tokens."""

    request: FitRequest
    spec: str
    code: str
    predicted_bytes: int
    measured_bytes: int
    predicted_bits: float
    measured_bits: float
    kld: float | None
    probes: tuple[Probe, ...]
    allocation: tuple[SideFit, ...]


def default_folder(request: FitRequest) -> Path:
    """Where a fit is saved unless the user says otherwise."""
    name = f"{request.model}-{request.method}-{request.target}"
    return Path("runs") / "fits" / re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def fit_method(
    model: str,
    method: str,
    target: str,
    save: Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    report: Report = lambda what, done, total: None,
    **settings: Any,
) -> tuple[Fit, Path]:
    """Load ``model``, fit ``method`` to ``target`` and save it; the fit, and the folder it is in.

    ``settings`` are those of :meth:`FitRequest.of`.

    Raises:
        KvbenchError: bad input, or a target that no setting reaches.
    """
    wanted = parse_target(target)
    OpenMethod.of(method)  # a misspelt method need not wait for the model
    bench = ModelBench(model, dtype, device, report)
    request = FitRequest.of(bench, method, wanted, **settings)
    folder = save or default_folder(request)
    return Fitter(bench, request, folder).run(), folder


@dataclass
class Fitter:
    """Fits one request into ``folder``."""

    bench: ModelBench
    request: FitRequest
    folder: Path

    def run(self) -> Fit:
        """Find, measure and save; a folder that already holds this fit is only read.

        Raises:
            KvbenchError: the target cannot be reached (says the nearest), the folder holds something else, or a name,
                text or spec that does not exist.
        """
        known = self._known()
        if known is not None:
            return known
        name = self.request.method.partition("+")[0].partition(":")[0]
        if registry.find(name).roles == ("baseline",):
            raise KvbenchError(f"{name} is a baseline: there is nothing to fit; see `kvbench ls compressors`")
        Saved(str(self.folder))  # a folder that no spec could name is refused before anything is measured
        compressor = self._search() if self.request.target.quantity == "kld" else self._solve()
        return self._save(compressor, self.bench.fit(compressor, self._source))

    @property
    def _source(self) -> CalibrationSource:
        return CalibrationSource(self.request.text, self.request.windows, self.request.length)

    def _known(self) -> Fit | None:
        known = _read(self.folder / FIT, Fit)
        if known is None:
            return None
        if known.request != self.request:
            was = known.request
            raise KvbenchError(
                f"{self.folder} holds another fit ({was.method} for {was.target} on {was.model} at {was.tokens} "
                "tokens); choose another folder with --save"
            )
        return known

    # ---- bits and bytes: arithmetic --------------------------------------------------------------------------------

    def _solve(self) -> Compressor:
        target, tokens = self.request.target, self.request.tokens
        solver = self.bench.solver(self._source, tokens)
        if target.quantity == "bits":
            return solver.solve(self.request.method, target.value)
        bits = 8 * target.value / self.bench.geometry.elements(tokens)
        try:
            return solver.solve(self.request.method, bits)
        except KvbenchError as error:
            raise KvbenchError(f"{target.value:.0f} bytes are {bits:.3g} bits per element: {error}") from error

    # ---- KLD: measurements -----------------------------------------------------------------------------------------

    def _search(self) -> Compressor:
        known = _read(self.folder / PROBES, Probes)
        probes = {probe.spec: probe for probe in known.probes} if known and known.request == self.request else {}
        quality: QualityBench | None = None

        def measure(compressor: Compressor) -> float:
            nonlocal quality
            spec, code = str(compressor), code_sha256(compressor, ("quality",), self.bench.device)
            if spec not in probes or probes[spec].code != code:
                self.bench.report(f"measuring {spec}", len(probes), len(probes) + 1)
                quality = quality or self._documents()
                kld = quality.score(self.bench.arm(compressor, self._source)).kld_mean
                probes[spec] = Probe(spec=spec, code=code, kld=kld)
                _write(self.folder / PROBES, Probes(request=self.request, probes=tuple(probes.values())))
            return probes[spec].kld

        return Search(self.request.method, measure).solve(self.request.target.value)

    def _documents(self) -> QualityBench:
        """Documents that calibration never saw and suites do not report."""
        tokens, count = self.request.tokens, self.request.documents
        scored = self.bench.evaluation_windows(self.request.text, tokens, count, "development")
        check_disjoint(self.bench.calibration_windows(self._source), scored)
        none = self.bench.baselines()[0]
        return QualityBench(none, scored.ids.to(self.bench.loaded.model.device), tokens // 4, max(1, tokens // 4))

    # ---- the result ------------------------------------------------------------------------------------------------

    def _save(self, compressor: Compressor, plan: Plan) -> Fit:
        request, geometry = self.request, self.bench.geometry
        arm = self.bench.arm(compressor, self._source)
        counted = MemoryWorkload(prompt=request.tokens, steps=0, peaks=False)
        memory = counted.measure(self.bench, arm, Inputs(request.text, "test", self._source))
        probes = _read(self.folder / PROBES, Probes) if request.target.quantity == "kld" else None
        measured = probes.probes if probes is not None else ()
        fit = Fit(
            request=request,
            spec=str(compressor),
            code=code_sha256(compressor, ("memory", "quality"), self.bench.device),
            predicted_bytes=memory.predicted_bytes,
            measured_bytes=memory.allocated.total,
            predicted_bits=8 * memory.predicted_bytes / geometry.elements(request.tokens),
            measured_bits=memory.bits_per_element,
            kld=next((probe.kld for probe in measured if probe.spec == str(compressor)), None),
            probes=measured,
            allocation=allocation(plan, geometry.dtype),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / PLAN, dump_plan(plan, geometry, request.model, request.weights_sha256))
        _write(self.folder / FIT, fit)
        return fit


def allocation(plan: Plan, dtype: torch.dtype) -> tuple[SideFit, ...]:
    """What every layer and side of ``plan`` got; ``dtype`` is the model's."""
    fits = []
    for layer, layer_plan in plan.layers.items():
        if layer_plan.codec is None:
            continue
        sides = layer_plan.codec.sides
        for name, side in sides.items():
            cost = side.cost(dtype)
            fits.append(
                SideFit(
                    layer=layer,
                    side=name if len(sides) > 1 else "joint",
                    groups=side.groups,
                    rank=side.rank,
                    bits=(cost.payload + cost.scales) / (side.kv_heads * side.head_dim),
                    widths=getattr(side.quantizer, "widths", None),
                )
            )
    return tuple(fits)


def _read(path: Path, kind: type[Stored]) -> Stored | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise KvbenchError(f"{path} cannot be read ({str(error).splitlines()[0]}); delete it to fit again") from error


def _write(path: Path, value: Frozen) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, value.model_dump_json(indent=1).encode() + b"\n")
