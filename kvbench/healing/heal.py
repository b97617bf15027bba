"""``kvbench heal``: a model and a compressor with bases in, the plan with healed bases in a folder out.

The folder holds ``plan.safetensors`` (what ``saved:path=FOLDER`` loads), one folder with another such file for every
smaller share of the ranks (``saved:path=FOLDER/0.5``), and ``heal.json`` (what was requested and measured; written
last, so a folder with it is complete). While it is at work there is ``checkpoint.safetensors``, from which the next try
after an interruption goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, ValidationError

from kvbench.cache.attach import Plan
from kvbench.compressors.compressor import Compressor, parse
from kvbench.compressors.methods.saved import PLAN, Saved
from kvbench.compressors.plan_file import dump_plan, plan_digest
from kvbench.errors import KvbenchError
from kvbench.healing.bases import Bases
from kvbench.healing.cached_pass import first_to_meet_codes
from kvbench.healing.checkpoint import Standing, load_checkpoint, save_checkpoint
from kvbench.healing.distil import Distillation
from kvbench.healing.healable import require_healable
from kvbench.healing.reading import Reading
from kvbench.healing.request import HealRequest
from kvbench.healing.start import best_start
from kvbench.healing.training import NOTHING, Evaluation, Training, best_of, require_positive
from kvbench.measure.bench import CalibrationSource, ModelBench, Report
from kvbench.storage.files import replace_file
from kvbench.storage.frozen import Frozen
from kvbench.storage.new_folder import require_vacant
from kvbench.texts.windows import Windows, check_disjoint

HEALED, CHECKPOINT = "heal.json", "checkpoint.safetensors"
PROMPT_SHARE = 4
"""One in so many tokens of a window is prefilled, as `kvbench fit` does it."""

Told = Callable[[Evaluation], None]


class HealedRank(Frozen):
    """The plan with ``share`` of the spec's ranks, and its KL in nats per token on held-out documents.

    ``kld_before`` is that of the bases as fitted, ``kld_start`` that of those that training began with, ``kld`` of the
    healed ones. ``folder`` is within the healing's ("." is that itself), ``bases_bytes`` are those of its bases.
    """

    share: float
    folder: str
    kld_before: float
    kld_start: float
    kld: float
    bases_bytes: NonNegativeInt


class Healing(Frozen):
    """The result. ``ranks`` are in the order of the request, the numbers those of the best of ``evaluations``."""

    request: HealRequest
    plan: str
    """Digest of the plan that was healed, whose bases take ``fitted_bases_bytes``."""
    fitted_bases_bytes: NonNegativeInt
    steps: NonNegativeInt
    """Done; ``best_step`` of them are in what was saved."""
    best_step: NonNegativeInt
    seconds: NonNegativeFloat
    ranks: tuple[HealedRank, ...]
    evaluations: tuple[Evaluation, ...]


def default_folder(request: HealRequest) -> Path:
    """Where a healing is saved unless the user says otherwise."""
    return Path("runs") / "heals" / re.sub(r"[^A-Za-z0-9._-]+", "-", f"{request.model}-{request.compressor}")


def heal_model(
    model: str,
    spec: str,
    save: Path | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    report: Report = lambda what, done, total: None,
    told: Told = lambda evaluation: None,
    **settings: Any,
) -> tuple[Healing, Path]:
    """Load ``model``, fit ``spec``, heal its bases and save them; the result, and the folder it is in.

    ``settings`` are those of :class:`CalibrationSource` and :meth:`Training.of`. ``told`` hears of every evaluation.

    Raises:
        KvbenchError: bad input, a spec whose bases cannot be healed, or a folder that holds something else.
    """
    source = CalibrationSource(settings.pop("text", "essays"), settings.pop("windows", 8), settings.pop("length", 1024))
    require_positive(windows=source.windows, length=source.length)
    training = Training.of(**settings)  # a bad setting need not wait for the model
    compressor = parse(spec)
    if compressor.baseline:
        raise KvbenchError(f"{compressor.baseline} is a baseline: there is nothing to heal")
    bench = ModelBench(model, dtype, device, report)
    request = HealRequest.of(bench, compressor, source, training)
    folder = save or default_folder(request)
    return Healer(bench, compressor, request, folder, told).run(), folder


@dataclass
class Healer:
    """Heals for one request into ``folder``."""

    bench: ModelBench
    compressor: Compressor
    request: HealRequest
    folder: Path
    told: Told = lambda evaluation: None

    def run(self) -> Healing:
        """Train and save; a folder that already holds this healing is only read.

        Raises:
            KvbenchError: as :func:`heal_model`.
        """
        if not self.folder.is_dir():
            require_vacant(self.folder)
        if (known := self._known()) is not None:
            return known
        Saved(str(self.folder))  # a folder that no spec could name is refused before anything is trained
        begun = load_checkpoint(self.folder / CHECKPOINT)
        if begun is None:
            require_vacant(self.folder)
        else:
            self._require_same(begun[0].request, "an interrupted healing")
        windows, held_out = self._windows()
        plan = self._fitted()
        standing = self._fresh(plan, held_out) if begun is None else begun[0]
        self._require_plan(standing, plan_digest(plan))
        distillation = self._distillation(plan, windows, held_out)
        if begun is not None:
            distillation.resume(standing.step, standing.evaluations, begun[1])
        return self._save(distillation, self._train(distillation, standing), plan.model_level_bytes())

    # ---- what is needed --------------------------------------------------------------------------------------------

    def _known(self) -> Healing | None:
        path = self.folder / HEALED
        try:
            known = Healing.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise KvbenchError(f"{path} cannot be read ({reason}); delete its folder to heal again") from error
        self._require_same(known.request, "another healing")
        return known

    def _require_same(self, request: HealRequest, what: str) -> None:
        if difference := self.request.difference(request):
            raise KvbenchError(
                f"{self.folder} holds {what}: {difference}; choose another folder with --save, or delete this one"
            )

    def _require_plan(self, standing: Standing, digest: str) -> None:
        if standing.plan != digest:
            raise KvbenchError(
                f"{self.folder / CHECKPOINT} began with bases that {self.compressor} is not fitted to any more; "
                "delete it to begin anew"
            )

    def _windows(self) -> tuple[Windows, Windows]:
        """Windows to train on, and documents of another split to watch."""
        training, text = self.request.training, self.request.text
        windows = self.bench.calibration_windows(CalibrationSource(text, training.sequences, training.tokens))
        held_out = self.bench.evaluation_windows(text, training.tokens, training.held_out, "development")
        check_disjoint(windows, held_out)
        return windows, held_out

    def _fitted(self) -> Plan:
        """The plan to be healed, on a model that was tested to carry it."""
        request = self.request
        source = CalibrationSource(request.text, request.windows, request.length)
        plan = self.bench.arm(self.compressor, source).plan
        assert plan is not None  # only a stock cache has none
        require_healable(str(self.compressor), plan, self.bench.geometry, request.training.ranks != (1.0,))
        return plan

    def _distillation(self, plan: Plan, windows: Windows, held_out: Windows) -> Distillation:
        """Of the best start that ``plan`` gives."""
        device, training = self.bench.loaded.model.device, self.request.training
        ids, reading = windows.ids.to(device), self._reading(plan)

        def watched(done: int, total: int) -> None:
            self.bench.report("watching what predictions make of the bases", done, total)

        start = best_start(reading, plan, ids, training.ranks, watched)
        return Distillation(reading, Bases(start.plan, start.scales()), training, ids, held_out.ids.to(device))

    def _reading(self, plan: Plan) -> Reading:
        tokens = self.request.training.tokens
        prompt, first = tokens // PROMPT_SHARE, first_to_meet_codes(plan)
        if first >= tokens:
            raise KvbenchError(
                f"no token of {tokens} would be predicted from a compressed one with {_in_words(plan)}: give --tokens "
                f"at least {first + 1}, or a spec that keeps less exact ({self.compressor.parts[0].name}:recent=0)"
            )
        return Reading(self.bench.loaded.model, self.bench.geometry, prompt, tokens - max(prompt, first))

    def _fresh(self, plan: Plan, held_out: Windows) -> Standing:
        """Before the first step: what ``plan`` loses, which must be something."""
        ids, ranks = held_out.ids.to(self.bench.loaded.model.device), self.request.training.ranks
        klds = self._reading(plan).divergences(Bases(plan), ids, ranks)
        if (loss := max(klds)) < NOTHING:
            raise KvbenchError(f"{self.compressor} loses nothing that could be healed: its KL is {loss:.1e} nats")
        return Standing(
            request=self.request, plan=plan_digest(plan), klds_before=klds, step=0, seconds=0.0, evaluations=()
        )

    # ---- the work --------------------------------------------------------------------------------------------------

    def _train(self, distillation: Distillation, standing: Standing) -> Standing:
        """Train from ``standing`` to the end, with a checkpoint after every evaluation; how it then stands."""

        def stepped(done: int, total: int) -> None:
            self.bench.report("healing", done, total)

        start, earlier = time.monotonic(), standing.seconds
        for evaluation in distillation.run(stepped):
            standing = standing.model_copy(
                update={
                    "step": distillation.step,
                    "seconds": earlier + time.monotonic() - start,
                    "evaluations": tuple(distillation.evaluations),
                }
            )
            save_checkpoint(self.folder / CHECKPOINT, standing, distillation.state())
            self.told(evaluation)
        return standing

    def _save(self, distillation: Distillation, standing: Standing, fitted_bases_bytes: int) -> Healing:
        evaluations, request = standing.evaluations, self.request
        best = evaluations[best_of(evaluations)]
        distillation.use_best()
        ranks = []
        for place, share in enumerate(request.training.ranks):
            plan = distillation.bases.kept(share)
            folder = self.folder / (f"{share:g}" if place else ".")
            folder.mkdir(parents=True, exist_ok=True)
            content = dump_plan(plan, self.bench.geometry, request.model, request.weights_sha256)
            replace_file(folder / PLAN, content)
            ranks.append(
                HealedRank(
                    share=share,
                    folder=folder.relative_to(self.folder).as_posix(),
                    kld_before=standing.klds_before[place],
                    kld_start=evaluations[0].klds[place],
                    kld=best.klds[place],
                    bases_bytes=plan.model_level_bytes(),
                )
            )
        healing = Healing(
            request=request,
            plan=standing.plan,
            fitted_bases_bytes=fitted_bases_bytes,
            steps=standing.step,
            best_step=best.step,
            seconds=standing.seconds,
            ranks=tuple(ranks),
            evaluations=evaluations,
        )
        replace_file(self.folder / HEALED, healing.model_dump_json(indent=1).encode() + b"\n")
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return healing


def _in_words(plan: Plan) -> str:
    spans = plan.spans
    return f"sinks={spans.sinks}, recent={spans.recent} and block={spans.block}"
