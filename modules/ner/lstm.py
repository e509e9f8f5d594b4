"""An LSTM that runs on every CPU under mixed precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class LSTM(nn.LSTM):
    """As ``nn.LSTM``; on a CPU it computes in the precision of its weights.

    Under ``torch.autocast`` to bfloat16, torch asks oneDNN for an LSTM that it has for processors with AVX-512 alone
    and fails on the others ("could not create a primitive descriptor").
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As ``nn.LSTM``'s, of a tensor or a packed sequence."""
        weight = self.weight_ih_l0
        if weight.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input, hx)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.to(weight.dtype), hx)
