"""Rows of a table as whole numbers of 8 or 4 bits and a scale: a quarter or a seventh of the memory.

Shapes: V rows, D width, G groups of a row that share a scale, N numbers of a group, B bytes of a row.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import nn
from torch.nn import functional as F

Bits = Literal[8, 4]
GROUPED: dict[Bits, int] = {8: 2**30, 4: 32}
"""How many numbers of a row share a scale, at most: all with 8 bits; with 4 bits few, since a large one coarsens them all."""
CHUNK_ROWS = 65_536


class QuantisedRows(nn.Module):
    """Whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1 times the scale of their group, which the largest of it sets.

    For use, not for training: code and scale are buffers. Rounding is to the nearest, so that a number is off by half a scale at
    most. 4-bit numbers lie two in a byte, the second in the upper half.
    """

    code_VB: torch.Tensor
    scale_VG: torch.Tensor

    def __init__(self, n_items: int, width: int, bits: Bits) -> None:
        super().__init__()
        self.width, self.bits, self.group = width, bits, min(width + width % 2, GROUPED[bits])
        groups = -(-width // self.group)
        size, kind = (width, torch.int8) if bits == 8 else (groups * self.group // 2, torch.uint8)
        self.register_buffer("code_VB", torch.zeros(n_items, size, dtype=kind))
        self.register_buffer("scale_VG", torch.zeros(n_items, groups, dtype=torch.bfloat16))

    @classmethod
    def of(cls, weight_VD: torch.Tensor, bits: Bits) -> Self:
        """The rows nearest to given ones."""
        made, most = cls(len(weight_VD), weight_VD.shape[1], bits), 2 ** (bits - 1) - 1
        for start in range(0, len(weight_VD), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            row_VGN = _grouped(weight_VD[part].float(), made.group)
            # A bfloat16 is off by 1/512 of itself at most: from a little above, it never is too small for the largest number.
            scale_VG = (row_VGN.abs().amax(2) / most * (1 + 1 / 256)).bfloat16()
            step_VG1 = scale_VG.float().masked_fill(scale_VG == 0, 1)[:, :, None]
            code_VD = (row_VGN / step_VG1).round().clamp(-most, most).to(torch.int8).flatten(1)
            made.scale_VG[part] = scale_VG
            made.code_VB[part] = code_VD[:, : made.width] if bits == 8 else _packed(code_VD)
        return made

    def forward(self, item_T: torch.Tensor) -> torch.Tensor:
        """Rows [T, D], float32."""
        code_TB, scale_TG = self.code_VB[item_T], self.scale_VG[item_T].float()
        code_TD = code_TB if self.bits == 8 else _unpacked(code_TB)
        return (_grouped(code_TD.float(), self.group) * scale_TG[:, :, None]).flatten(1)[:, : self.width]

    @property
    def weight(self) -> torch.Tensor:
        """All rows at once [V, D], float32: as large as a full table."""
        weight_VD: torch.Tensor = self(torch.arange(len(self.code_VB)))
        return weight_VD


def _grouped(row_VD: torch.Tensor, group: int) -> torch.Tensor:
    """[V, D] -> [V, G, N], zeros behind each row where the last group is not full."""
    return F.pad(row_VD, (0, -row_VD.shape[1] % group)).view(len(row_VD), -1, group)


def _packed(code_VD: torch.Tensor) -> torch.Tensor:
    pair_VB2 = code_VD.view(len(code_VD), -1, 2).to(torch.uint8) & 15
    return pair_VB2[:, :, 0] | (pair_VB2[:, :, 1] << 4)


def _unpacked(code_TB: torch.Tensor) -> torch.Tensor:
    pair_TB2 = torch.stack([code_TB & 15, code_TB >> 4], dim=2).to(torch.int8)
    return (pair_TB2 - ((pair_TB2 & 8) << 1)).flatten(1)
