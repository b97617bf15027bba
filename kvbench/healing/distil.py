"""Distillation of a model into itself: through its compressed cache it learns to predict what it predicts without.

The loss is KL(uncompressed ‖ compressed) over the whole vocabulary (Hinton et al. 2015, arXiv 1503.02531). The weights
are frozen and the bases alone are trained, by Adam (Kingma & Ba 2014, arXiv 1412.6980) without weight decay, which
would pull them to zero. The order of windows is a function of the seed, so that a training that was interrupted goes on
as if it had not been.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from kvbench.errors import KvbenchError
from kvbench.healing.bases import Bases
from kvbench.healing.reading import Reading
from kvbench.healing.teacher import Teacher
from kvbench.healing.training import Evaluation, Training, best_of

BETAS = (0.9, 0.95)
WARM_UP = 10
"""One in so many steps: the rate rises linearly, and falls by half a cosine afterwards."""
LONGEST_GRADIENT = 1.0

Stepped = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass
class Distillation:
    """Trains ``bases`` on ``windows`` (count, tokens) and watches them on ``held_out`` (count, tokens)."""

    reading: Reading
    bases: Bases
    training: Training
    windows: Tensor
    held_out: Tensor
    step: int = field(default=0, init=False)
    evaluations: list[Evaluation] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._parameters = [*self.bases.parameters.values()]
        self._optimizer = torch.optim.Adam(self._parameters, betas=BETAS)
        # Twice as many fit in memory in 16 bit, whose rounding is a hundredth of what compression changes.
        self._teacher = Teacher(self.reading.model, self.reading.scored, torch.float16)
        self._best: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or none has helped for long enough."""
        if not self.evaluations:
            return False
        without_gain = len(self.evaluations) - 1 - best_of(self.evaluations)
        return self.step >= self.training.steps or without_gain >= self.training.patience

    def run(self, stepped: Stepped = lambda done, total: None) -> Iterator[Evaluation]:
        """Train until it is finished. Yields every evaluation; :meth:`state` is then all that is needed to go on.

        Raises:
            KvbenchError: the loss is not finite.
        """
        if not self.evaluations:
            yield self._evaluate()
        losses: list[float] = []
        while not self.finished:
            losses.append(self._train())
            stepped(self.step, self.training.steps)
            if self.step % self.training.every == 0 or self.step == self.training.steps:
                yield self._evaluate(fmean(losses))
                losses.clear()

    def use_best(self) -> None:
        """Give the bases the numbers that they had at the best evaluation."""
        self._copy(self._best)

    # ---- one step --------------------------------------------------------------------------------------------------

    @torch.enable_grad()
    def _train(self) -> float:
        """One step; its loss."""
        training = self.training
        share = training.ranks[self.step % len(training.ranks)]
        self._optimizer.zero_grad()
        loss = 0.0
        for place in range(training.batch):  # one window at a time: a batch takes no more memory
            part = self._loss(self._window(self.step * training.batch + place), share) / training.batch
            part.backward()
            loss += float(part.detach())
        length = clip_grad_norm_(self._parameters, LONGEST_GRADIENT)
        if not (math.isfinite(loss) and bool(length.isfinite())):
            raise KvbenchError(f"the loss is not finite at step {self.step + 1}; lower --rate, now {training.rate:g}")
        self._optimizer.param_groups[0]["lr"] = training.rate * schedule(self.step, training.steps)
        self._optimizer.step()
        self.step += 1
        return loss

    def _loss(self, ids: Tensor, share: float) -> Tensor:
        """KL per scored token of one window (tokens,), in nats."""
        expected, predicted = self._teacher(ids), self.reading.predicted(self.bases.trained(share), ids)
        return functional.kl_div(predicted, expected.to(predicted.dtype), log_target=True, reduction="batchmean")

    def _window(self, number: int) -> Tensor:
        """The ``number``-th window to be read: every epoch reads all of them, in an order of its own."""
        epoch, place = divmod(number, len(self.windows))
        order = list(range(len(self.windows)))
        random.Random(f"{self.training.seed} epoch {epoch}").shuffle(order)
        return self.windows[order[place]]

    @torch.no_grad()
    def _evaluate(self, trained: float | None = None) -> Evaluation:
        klds = self.reading.divergences(self.bases, self.held_out, self.training.ranks)
        self.evaluations.append(Evaluation(step=self.step, klds=klds, trained=trained))
        if best_of(self.evaluations) == len(self.evaluations) - 1:
            self._best = {name: each.detach().clone() for name, each in self.bases.parameters.items()}
        return self.evaluations[-1]

    # ---- interruptions ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All tensors that change in training, by name."""
        tensors = {f"now.{name}": each.detach() for name, each in self.bases.parameters.items()}
        tensors |= {f"best.{name}": each for name, each in self._best.items()}
        for name, each in self.bases.parameters.items():
            moments = self._optimizer.state.get(each, {})
            tensors |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
        return tensors

    def resume(self, step: int, evaluations: tuple[Evaluation, ...], state: Mapping[str, Tensor]) -> None:
        """Go on from :meth:`state` after ``step`` steps."""
        self.step, self.evaluations = step, [*evaluations]
        of = {kind: _named(state, kind) for kind in ("now", "best", "exp_avg", "exp_avg_sq")}
        self._copy(of["now"])
        self._best = of["best"]
        for name, each in self.bases.parameters.items():
            if name in of["exp_avg"]:
                moments = {key: of[key][name].to(each.device) for key in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[each] = {"step": torch.tensor(float(step))} | moments

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, each in self.bases.parameters.items():
            each.copy_(tensors[name])


def _named(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of a ``kind``, on parameters' names; cloned, as sums of what lies otherwise in memory may differ."""
    prefix = f"{kind}."
    return {name.removeprefix(prefix): each.clone() for name, each in state.items() if name.startswith(prefix)}


def schedule(step: int, steps: int) -> float:
    """Share of the full rate at ``step`` of ``steps``."""
    warm = max(1, steps // WARM_UP)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
