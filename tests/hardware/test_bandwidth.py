import torch

from kvbench.hardware.bandwidth import measure_bandwidth


def test_bandwidth_is_positive_and_threads_are_restored():
    before = torch.get_num_threads()
    speeds = measure_bandwidth(array_bytes=2**22, repeats=3)
    assert speeds.threads == before == torch.get_num_threads()
    # Any machine that runs torch moves more than 0.1 GB/s and less than 100 TB/s.
    assert all(1e8 < speed < 1e14 for speed in (speeds.read_single, speeds.read, speeds.copy_single, speeds.copy))
