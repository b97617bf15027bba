"""Where a compressor is fitted to a loaded model and attached to it, for users and for every measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from kvbench.cache.attach import Plan
from kvbench.cache.self_test import self_test
from kvbench.calibration.statistics import Statistics
from kvbench.codecs.frame import Frame
from kvbench.compressors.compressor import Compressor
from kvbench.compressors.stock import StockPart
from kvbench.hooks.geometry import ModelGeometry, probe_geometry
from kvbench.kernels.reading import DEFAULT, Reading
from kvbench.measure.arms import Arm
from kvbench.models.loading import LoadedModel


@dataclass
class ArmFactory:
    """Makes the arms of one model.

    ``name`` and ``weights_sha256`` say which weights these are; without them a saved plan's are not checked.

    Raises:
        UnsupportedModelError: the model has no attention interface or a geometry that cannot be probed.
    """

    model: PreTrainedModel
    name: str = ""
    weights_sha256: str | None = None
    geometry: ModelGeometry = field(init=False)

    def __post_init__(self) -> None:
        self.geometry = probe_geometry(self.model)
        self._tested: set[Frame] = set()

    @classmethod
    def of(cls, loaded: LoadedModel) -> ArmFactory:
        """For a model that kvbench has loaded."""
        return cls(loaded.model, loaded.name, loaded.weights_sha256)

    def fit(self, compressor: Compressor, statistics: Statistics | Callable[[], Statistics] | None) -> Plan:
        """The compressor's plan for this model; errors as in :meth:`Compressor.fit`.

        Raises:
            KvbenchError: the compressor is a plan that was fitted for other weights.
        """
        if compressor.saved is not None and self.weights_sha256 is not None:
            compressor.saved.check_weights(self.name, self.weights_sha256)
        return compressor.fit(self.geometry, statistics)

    def arm(
        self,
        compressor: Compressor,
        statistics: Statistics | Callable[[], Statistics] | None = None,
        reading: Reading = DEFAULT,
    ) -> Arm:
        """Fit ``compressor``, test that the model can carry it, attach it.

        Raises:
            UnsupportedModelError: identity codecs do not reproduce the stock logits; tested once per frame of the keys.
        """
        if compressor.stock is not None:
            return self.ready(str(compressor), None, compressor.stock)
        plan = self.fit(compressor, statistics)
        if plan.frame not in self._tested:
            self_test(self.model, self.geometry, plan.frame)
            self._tested.add(plan.frame)
        return self.ready(str(compressor), plan, reading=reading)

    def ready(self, name: str, plan: Plan | None, stock: StockPart | None = None, reading: Reading = DEFAULT) -> Arm:
        """The arm of a plan at hand, untested, or of a ``stock`` cache (default ``hf``) without one."""
        return Arm.of(name, self.model, self.geometry, plan, stock, reading)
