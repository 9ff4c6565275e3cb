"""Sequence kernels over packed tokens, one signature an operator; the implementation is chosen here."""

from largerec.kernels.reference import BucketedTime, silu_attention, softmax_attention

__all__ = ["BucketedTime", "silu_attention", "softmax_attention"]
