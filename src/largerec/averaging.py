"""An exponential moving average of a model's weights over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """The average of the weights after each step so far; a step d steps ago weighs ``decay ** d``, and all weigh 1 together.

    That is the bias-corrected average of Kingma & Ba 2015 (Adam, section 3), which needs no warm-up: after one step it is that
    step's weights, and it forgets the start as fast as the decay says. Buffers are not averaged.

    Attributes:
        tensors: the averaged parameters by name, which a checkpoint must hold.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.tensors = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step 1, 2, ..."""
        share = (1 - self.decay) / (1 - self.decay**step)
        torch._foreach_lerp_(list(self.tensors.values()), list(self.parameters.values()), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average inside the block, and its own weights again, to the bit, after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            own = parameter.clone()
            parameter.copy_(self.tensors[name])
            self.tensors[name].copy_(own)
