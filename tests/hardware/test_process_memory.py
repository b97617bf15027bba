import mmap
import time

import pytest

from kvbench.hardware import process_memory
from kvbench.hardware.process_memory import peak_memory, peak_rss

MEBIBYTE = 2**20
TOLERANCE = 12 * MEBIBYTE


@pytest.fixture(params=["kernel", "sampled"])
def method(request, monkeypatch):
    if request.param == "sampled":
        monkeypatch.setattr(process_memory, "_reset_high_water_mark", lambda: False)
    elif not process_memory._reset_high_water_mark():
        pytest.skip("this system does not let a process reset its high-water mark")
    return request.param


def hold(mebibytes):
    """Touch that much fresh memory, keep it for a few sampling periods and give it back to the system."""
    with mmap.mmap(-1, mebibytes * MEBIBYTE) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        time.sleep(5 * process_memory.SAMPLING_SECONDS)


def test_peak_is_seen_after_the_memory_is_gone(method):
    with peak_rss() as peak:
        hold(64)
    assert peak.method == method
    assert peak.bytes - peak.baseline_bytes == pytest.approx(64 * MEBIBYTE, abs=TOLERANCE)


def test_earlier_peaks_do_not_count(method):
    hold(96)
    with peak_rss() as peak:
        hold(16)
    assert peak.bytes - peak.baseline_bytes == pytest.approx(16 * MEBIBYTE, abs=TOLERANCE)


def test_an_inner_block_does_not_hide_the_outer_peak(method):
    with peak_rss() as outer:
        hold(96)
        with peak_rss() as inner:
            hold(16)
    assert outer.bytes - outer.baseline_bytes == pytest.approx(96 * MEBIBYTE, abs=TOLERANCE)
    assert inner.bytes - inner.baseline_bytes == pytest.approx(16 * MEBIBYTE, abs=TOLERANCE)


def test_an_inner_peak_counts_for_the_outer_block(method):
    with peak_rss() as outer:
        with peak_rss():
            hold(64)
        with peak_rss():
            pass
    assert outer.bytes - outer.baseline_bytes == pytest.approx(64 * MEBIBYTE, abs=TOLERANCE)


def test_peak_survives_an_exception(method):
    with pytest.raises(MemoryError), peak_rss() as peak:
        hold(64)
        raise MemoryError
    assert peak.bytes - peak.baseline_bytes > 50 * MEBIBYTE
    assert not any(process_memory._open.values())


def test_an_idle_block_peaks_at_its_baseline(method):
    with peak_memory("cpu") as peak:
        pass
    assert 0 <= peak.bytes - peak.baseline_bytes < TOLERANCE


def test_a_reset_without_effect_is_noticed(monkeypatch):
    # Some sandboxes accept the write and ignore it.
    monkeypatch.setattr(process_memory, "_high_water_mark", lambda: process_memory._resident() + 2**30)
    assert not process_memory._reset_high_water_mark()


@pytest.mark.gpu
def test_cuda_peak_counts_allocations():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with peak_memory("cuda") as outer:
        torch.empty(64 * MEBIBYTE, dtype=torch.uint8, device="cuda")
        with peak_memory("cuda:0") as inner:
            torch.empty(16 * MEBIBYTE, dtype=torch.uint8, device="cuda")
    assert outer.bytes - outer.baseline_bytes == 64 * MEBIBYTE
    assert inner.bytes - inner.baseline_bytes == 16 * MEBIBYTE
    assert outer.method == "allocator"
