"""The twin of the reference for CUDA devices, in Triton: attention forward and backward, and the loss over sampled items.

This module says whether it can be had and tells torch about the operators; the programs stand in ``triton_forward.py``,
``triton_backward.py`` and ``triton_loss.py``, which are imported on first use, so that machines without Triton need none.
``LARGEREC_KERNELS=plain`` in the environment keeps to plain torch. With ``TRITON_INTERPRET=1`` set before Triton is imported
the same functions run on a CPU, slowly: that is how they are tested where there is no device.
"""

from __future__ import annotations

import importlib.metadata
import os
from functools import cache

import torch

from largerec.kernels.reference import BucketedTime

SCHEMAS = {
    "triton_attention": "(Tensor q, Tensor k, Tensor v, Tensor offsets, bool softmax, float scale, Tensor? position, "
    "Tensor? time, Tensor? row_time, Tensor? column_time) -> (Tensor, Tensor)",
    "triton_attention_backward": "(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor offsets, "
    "bool softmax, float scale, Tensor? position, Tensor? time, Tensor? row_time, Tensor? column_time) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "triton_sampled_loss": "(Tensor queries, Tensor keys, Tensor target, Tensor items, Tensor? log_q, bool softmax, float power) "
    "-> (Tensor, Tensor, Tensor)",
}


@cache
def available() -> tuple[bool, str]:
    """Whether Triton is there and its operators are registered, and a sentence for people."""
    if os.environ.get("LARGEREC_KERNELS") == "plain":
        return False, "plain torch, because LARGEREC_KERNELS=plain is set"
    try:
        _register()
    except ImportError as error:
        return False, f"plain torch, because Triton cannot be imported ({error}); pip install 'largerec[triton]' for fast kernels"
    return True, f"Triton {importlib.metadata.version('triton')}"


@cache
def _capable(device: torch.device) -> bool:
    """Whether a CUDA device has the matrix units that the kernels are written for: NVIDIA's of compute capability 8 or newer."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def usable(*tensors: torch.Tensor) -> bool:
    """Whether these tensors lie on a CUDA device that can run the kernels, and Triton is there."""
    return all(x.device.type == "cuda" and _capable(x.device) for x in tensors) and available()[0]


def attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THK: torch.Tensor,
    offsets_B1: torch.Tensor,
    softmax: bool,
    scale: float,
    position_table_HN: torch.Tensor | None,
    time: BucketedTime | None,
) -> torch.Tensor:
    """Both kinds of attention; shapes as in :mod:`largerec.kernels.reference`. float32, bfloat16 or float16.

    Offsets are trusted, as reading them here would wait for the device; a history longer than the position table gives NaN.
    """
    assert available()[0], available()[1]
    table, row, column = time if time is not None else (None, None, None)
    out: torch.Tensor = torch.ops.largerec.triton_attention(
        q_THK, k_THK, v_THK, offsets_B1, softmax, scale, position_table_HN, table, row, column
    )[0]
    return out


def sampled_loss(
    queries_TD: torch.Tensor,
    keys_VD: torch.Tensor,
    target_T: torch.Tensor,
    items_TK: torch.Tensor,
    log_q_V: torch.Tensor | None = None,
    *,
    softmax: bool,
    power: float = 1.0,
) -> torch.Tensor:
    """As :func:`largerec.kernels.reference.sampled_loss`, in float32. Items are trusted to be rows of the table."""
    assert available()[0], available()[1]
    loss: torch.Tensor = torch.ops.largerec.triton_sampled_loss(queries_TD, keys_VD, target_T, items_TK, log_q_V, softmax, power)[
        0
    ]
    return loss


def _register() -> None:
    """Tell torch the operators, their shapes (fake tensors) and their gradients."""
    from largerec.kernels import triton_backward, triton_forward, triton_loss

    def attend(q, k, v, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        p = triton_forward.problem_of(q, k, v, offsets, softmax, scale, position, time, row, column)
        return triton_forward.forward(p)

    def attend_backward(d_out, q, k, v, out, lse, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        p = triton_forward.problem_of(q, k, v, offsets, softmax, scale, position, time, row, column)
        return triton_backward.backward(p, d_out, out, lse)

    def fake(q, k, v, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        lse = q.new_empty(q.shape[1], q.shape[0] if softmax else 0, dtype=torch.float32)
        return v.new_empty(v.shape), lse

    def fake_backward(d_out, q, k, v, out, lse, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        tables = (q.new_empty(q.shape[1], 0 if x is None else x.shape[1], dtype=torch.float32) for x in (position, time))
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *tables

    def setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
        q, k, v, offsets, ctx.softmax, ctx.scale, position, time, row, column = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, *output, offsets, position, time, row, column)

    def backward(ctx, d_out, _):  # type: ignore[no-untyped-def]
        q, k, v, out, lse, offsets, position, time, row, column = ctx.saved_tensors
        d_q, d_k, d_v, d_position, d_time = torch.ops.largerec.triton_attention_backward(
            d_out, q, k, v, out, lse, offsets, ctx.softmax, ctx.scale, position, time, row, column
        )
        d_position = None if position is None else d_position.to(position.dtype)
        d_time = None if time is None else d_time.to(time.dtype)
        return d_q, d_k, d_v, None, None, None, d_position, d_time, None, None

    def fake_loss(queries, keys, target, items, log_q, softmax, power):  # type: ignore[no-untyped-def]
        return queries.new_empty(()), queries.new_empty(queries.shape), keys.new_empty(keys.shape)

    def setup_loss(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(output[1], output[2])  # the gradients were made beside the loss

    def backward_loss(ctx, d_loss, _d_queries, _d_keys):  # type: ignore[no-untyped-def]
        d_queries, d_keys = ctx.saved_tensors
        return d_loss * d_queries, d_loss * d_keys, None, None, None, None, None

    _operator("triton_sampled_loss", triton_loss.sampled_loss, fake_loss)
    torch.library.register_autograd("largerec::triton_sampled_loss", backward_loss, setup_context=setup_loss)
    _operator("triton_attention", attend, fake)
    _operator("triton_attention_backward", attend_backward, fake_backward)
    torch.library.register_autograd("largerec::triton_attention", backward, setup_context=setup)


def _operator(name: str, function, fake) -> None:  # type: ignore[no-untyped-def]
    """One operator of ``SCHEMAS``; for every device, since the interpreter works on a CPU."""
    torch.library.define(f"largerec::{name}", SCHEMAS[name])
    torch.library.impl(f"largerec::{name}", "CompositeExplicitAutograd", function)
    torch.library.register_fake(f"largerec::{name}", fake)
