"""How much memory can still be had, by this process and those that it starts."""

from __future__ import annotations

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
"""Limits of a container: ``memory.max`` and ``memory.current`` of cgroup v2, and the names of v1."""
_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def available_memory(device: str) -> int:
    """Bytes to be had on ``device`` (``cpu``, ``cuda``, ``cuda:1``) without swapping, within a container's limit."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return min([psutil.virtual_memory().available, *_container()])


def _container() -> list[int]:
    """What the container's limit leaves; empty without a limit. File pages count as free, as the kernel drops them."""
    for limit, used, details in _FILES:
        try:
            most = (CGROUP / limit).read_text().strip()
            in_use = int((CGROUP / used).read_text())
            stat = dict(line.split() for line in (CGROUP / details).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal():
            return [max(0, int(most) - in_use + int(stat.get("inactive_file", stat.get("total_inactive_file", 0))))]
    return []
