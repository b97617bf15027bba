"""Devices on paper."""

import pytest

from kvbench.errors import KvbenchError
from kvbench.hardware.devices import CPU, accelerator, accelerator_names, processor

PAPER = [name for name in accelerator_names() if name != CPU]


@pytest.mark.parametrize("name", PAPER)
def test_every_device_cites_its_source(name: str):
    device = accelerator(name)
    assert len(device.source) > 20 and device.key == name
    assert device.peak("bf16") > device.peak("fp32") > device.bandwidth > device.link > 0


def test_h800_is_an_h100_with_slower_links():
    h100, h800 = accelerator("h100"), accelerator("h800")
    assert (h800.memory, h800.bandwidth, h800.operations) == (h100.memory, h100.bandwidth, h100.operations)
    assert h100.link / h800.link == pytest.approx(900 / 400)


def test_h20():
    h20 = accelerator("h20")
    assert (h20.memory, h20.bandwidth, h20.peak("bf16"), h20.link) == (96e9, 4e12, 148e12, 450e9)


def test_without_units_for_it_a_device_computes_in_the_next_wider_numbers():
    assert accelerator("a100").peak("fp8") == accelerator("a100").peak("bf16")


def test_messages_leave_the_node_when_devices_do():
    h100 = accelerator("h100")
    assert (h100.to_others(8), h100.to_others(9)) == (450e9, 50e9)


def test_an_unknown_device_gets_the_nearest():
    with pytest.raises(KvbenchError, match="unknown device 'h200x'; did you mean 'h200'"):
        accelerator("h200x")


def test_the_processor_is_measured_unless_given(monkeypatch: pytest.MonkeyPatch):
    given = processor(2e10, 1e11, 8e9)
    assert (given.bandwidth, given.peak("fp32"), given.peak("bf16"), given.memory) == (2e10, 1e11, 1e11, 8e9)
    measured = processor(None, None, None)
    assert 1e8 < measured.bandwidth < 1e14 and measured.peak("fp32") > 1e8 and measured.memory > 1e6
    with pytest.raises(KvbenchError, match="must be above 0"):
        processor(-1.0, None, None)
