"""Sequence kernels over packed tokens, one signature an operator; the implementation is chosen here."""

from largerec.kernels.padded import silu_attention, softmax_attention
from largerec.kernels.reference import BucketedTime

__all__ = ["BucketedTime", "silu_attention", "softmax_attention"]
