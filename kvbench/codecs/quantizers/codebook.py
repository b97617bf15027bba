"""Static scalar codebooks: one standard deviation per component, one shared table of levels per bit width.

Nothing is stored per token beside the codes. Widths differ by component (reverse water-filling), 0 bits drop a
component. The levels are Lloyd–Max optimal for a unit-variance Laplace density: latents of keys and values are
heavy-tailed, and a Gaussian table clips them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvbench.codecs.in_parts import in_parts
from kvbench.codecs.kernel_view import Coded
from kvbench.codecs.packing import TOKENS_PER_GROUP, pack, packed_bytes, runs, unpack
from kvbench.codecs.quantizers.base import Cost, Stored
from kvbench.codecs.quantizers.level_grid import LevelGrid
from kvbench.codecs.quantizers.lloyd import laplace_levels, look_up, nearest


@dataclass(frozen=True, eq=False)
class CodebookQuantizer:
    """``widths`` bits per component (0…8) over ``deviation`` (rank,), for a single head group.

    Components should come sorted by width: equal widths then form slices and decode without gathering.
    """

    widths: tuple[int, ...]
    deviation: Tensor
    levels: dict[int, Tensor] = field(default_factory=dict)
    block: int = TOKENS_PER_GROUP

    def __post_init__(self) -> None:
        table = laplace_levels()
        self.levels.update({width: table[width][0].to(self.deviation.device) for width in set(self.widths)})
        _ = self._runs  # a compiled graph cannot take the lock behind a cached property

    def scaled(self, factor: float) -> CodebookQuantizer:
        """The same codes for latents times ``factor``."""
        return replace(self, deviation=self.deviation * factor)

    def first(self, count: int) -> CodebookQuantizer:
        """The quantizer of the first ``count`` components."""
        return replace(self, widths=self.widths[:count], deviation=self.deviation[:count])

    def encode(self, latents: Tensor) -> Stored:
        """Latents (batch, 1, tokens, rank) → packed codes."""
        scaled = (latents / self.deviation).float()
        codes = torch.empty(scaled.shape, dtype=torch.uint8, device=scaled.device)
        if codes.device.type == "cpu" and not torch.compiler.is_compiling():
            self._encode_on_cpu(scaled, codes)
        else:
            for width, columns in self._runs:
                codes[..., columns] = nearest(scaled[..., columns], self.levels[width])
        return {"codes": pack(codes, self.widths)}

    def _encode_on_cpu(self, scaled: Tensor, codes: Tensor) -> None:
        from kvbench.codecs.code_kernels import nearest_levels

        rank = len(self.widths)
        in_parts(nearest_levels, (scaled.reshape(-1, rank).numpy(), codes.view(-1, rank).numpy()), *self._grids)

    @cached_property
    def _grids(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        """What ``nearest_levels`` is told: of every run, of its grid, and the boundaries and cells of all widths."""
        grids = {width: LevelGrid.of(self.levels[width]) for width in sorted(set(self.widths) - {0})}
        boundaries, below = ([getattr(grid, name) for grid in grids.values()] for name in ("boundaries", "below"))
        starts = {
            width: (sum(map(len, boundaries[:place])), sum(map(len, below[:place])), len(below[place]))
            for place, width in enumerate(grids)
        }
        parts = runs(self.widths)
        rows = [(run.first, run.components, *starts[run.width]) for run in parts]
        scales = [(grids[run.width].start, grids[run.width].per_unit) for run in parts]
        return (
            np.array(rows, np.int64).reshape(-1, 5),
            np.array(scales, np.float32).reshape(-1, 2),
            np.concatenate([np.zeros(0, np.float32), *boundaries]),
            np.concatenate([np.zeros(0, np.uint8), *below]),
        )

    def decode(self, stored: Stored) -> Tensor:
        """Packed codes → latents in the deviations' dtype."""
        codes = unpack(stored["codes"], self.widths)
        if codes.device.type == "cpu" and self.deviation.dtype == torch.float32 and not torch.compiler.is_compiling():
            return self._decode_on_cpu(codes)
        latents = torch.zeros(codes.shape, dtype=self.deviation.dtype, device=codes.device)
        for width, columns in self._runs:
            if width:
                latents[..., columns] = look_up(codes[..., columns], self.levels[width]).to(latents.dtype)
        return latents.mul_(self.deviation)

    def _decode_on_cpu(self, codes: Tensor) -> Tensor:
        from kvbench.codecs.code_kernels import scaled_levels

        latents = torch.empty(codes.shape)
        rows = codes.flatten(0, -2).numpy(), latents.flatten(0, -2).numpy()
        in_parts(scaled_levels, rows, *self._joined_levels, self.deviation.numpy())
        return latents

    @cached_property
    def _joined_levels(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """All level tables in a row, and where each component's begins; a component without bits is 0."""
        tables = {0: np.zeros(1, np.float32)} | {width: self.levels[width].numpy() for width in set(self.widths) - {0}}
        starts = dict(zip(tables, np.cumsum([0, *map(len, tables.values())]).tolist(), strict=False))
        return np.concatenate(list(tables.values())), np.array([starts[width] for width in self.widths])

    def coded(self, stored: Stored) -> Coded:
        """The codes, the level tables and the deviations."""
        return Coded(stored["codes"], self.widths, len(self.widths), self.levels, component=self.deviation)

    def cost(self, groups: int, rank: int, dtype: torch.dtype) -> Cost:
        """The widths, and nothing beside them."""
        return Cost(groups * packed_bytes(self.widths))

    def tensors(self) -> list[Tensor]:
        """Deviations and the level tables."""
        return [self.deviation, *self.levels.values()]

    @cached_property
    def _runs(self) -> list[tuple[int, slice | list[int]]]:
        """(width, its components) for every width in use; a slice where they are adjacent."""
        runs: list[tuple[int, slice | list[int]]] = []
        for width in sorted(set(self.widths), reverse=True):
            columns = [index for index, other in enumerate(self.widths) if other == width]
            adjacent = columns[-1] - columns[0] + 1 == len(columns)
            runs.append((width, slice(columns[0], columns[-1] + 1) if adjacent else columns))
        return runs
