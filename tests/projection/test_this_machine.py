"""What is measured of this machine for projections; no time is asserted."""

from __future__ import annotations

import pytest

from kvbench.projection import this_machine


def test_what_is_measured_is_positive_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("MULTIPLIED", 1 << 16), ("FEW_LAYERS", 1), ("MORE_LAYERS", 2), ("HIDDEN", 64), ("STEPS", 2)):
        monkeypatch.setattr(this_machine, name, small)
    monkeypatch.setattr(this_machine, "INTERMEDIATE", 64)
    this_machine.product_rate.cache_clear()
    this_machine.layer_seconds.cache_clear()
    here = this_machine.this_processor(8e9)
    assert here.measured is not None and here.memory == 8e9 and here.bandwidth > 0
    assert here.measured.weights(2, 64) == here.measured.weights(2, 64) > 0
    assert here.measured.layer_s(2) == here.measured.layer_s(2) >= 0
    this_machine.product_rate.cache_clear()
    this_machine.layer_seconds.cache_clear()
