"""Linear attention with decay over packed tokens, in chunks: cost and memory grow with the length, not with its square.

Sun et al. 2023 (Retentive Network, arXiv 2307.08621, section 2.3), with a clock for each token in place of its position.
Within a chunk of CHUNK tokens pairs are compared; from chunk to chunk a state of [K, V] numbers a head is carried on.
"""

from __future__ import annotations

import itertools

import torch

CHUNK = 16
"""Tokens of a chunk: larger ones compare more pairs, smaller ones carry on more states."""


class _Chunks:
    """Where each token stands when histories are cut into chunks, ordered so that a step from chunk to chunk is one slice.

    Users are ranked by their number of chunks, most first; the s-th chunks of all users that have one stand one after another.
    """

    def __init__(self, offsets_B1: torch.Tensor, n_tokens: int) -> None:
        lengths_B = offsets_B1.diff()
        chunks_B = torch.div(lengths_B + CHUNK - 1, CHUNK, rounding_mode="floor")
        rank_B = torch.argsort(torch.argsort(chunks_B, descending=True, stable=True))
        most = int(chunks_B.max()) if len(chunks_B) else 0
        steps_S = torch.arange(most, device=offsets_B1.device)
        users_S = (chunks_B[:, None] > steps_S).sum(0)
        user_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=offsets_B1.device), lengths_B, output_size=n_tokens)
        place_T = torch.arange(n_tokens, device=offsets_B1.device) - offsets_B1[user_T]
        step_T = torch.div(place_T, CHUNK, rounding_mode="floor")
        self.sizes: list[int] = users_S.tolist()
        self.slot_T = ((users_S.cumsum(0) - users_S)[step_T] + rank_B[user_T]) * CHUNK + place_T % CHUNK

    def cut(self, x_T: torch.Tensor) -> torch.Tensor:
        """[T, ...] -> [M, CHUNK, ...], zeros behind the histories."""
        padded = x_T.new_zeros(sum(self.sizes) * CHUNK, *x_T.shape[1:]).index_copy(0, self.slot_T, x_T)
        return padded.view(-1, CHUNK, *x_T.shape[1:])


def linear_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THV: torch.Tensor,
    offsets_B1: torch.Tensor,
    rate_H: torch.Tensor | None = None,
    clock_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """``out_i = sum over j <= i of exp(-rate (clock_i - clock_j)) (q_i . k_j) v_j`` within each user's slice.

    In recurrent form ``S_i = exp(-rate (clock_i - clock_(i-1))) S_(i-1) + k_i v_i^T`` and ``out_i = q_i S_i``.

    Args:
        rate_H: decay of each head for one unit of the clock, at least 0; None for no decay.
        clock_T: not negative and not falling within a user's slice; float64, so that differences are exact.

    Returns [T, H, V] in v's type; sums are made in float32 or better.
    """
    if len(v_THV) == 0:
        return torch.zeros_like(v_THV)
    kind = torch.promote_types(v_THV.dtype, torch.float32)
    with torch.autocast(v_THV.device.type, enabled=False):
        chunks = _Chunks(offsets_B1, len(v_THV))
        # [M, H, C, K or V]
        q, k, v = (chunks.cut(x.to(kind)).transpose(1, 2) for x in (q_THK, k_THK, v_THV))
        later_CC = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=v.device).triu(1)
        pair_MHCC, kept_M = q @ k.transpose(2, 3), None
        if rate_H is None:
            pair_MHCC = pair_MHCC.masked_fill(later_CC, 0)
        else:
            assert clock_T is not None, "a decay needs a clock"
            clock_MC, rate_H11 = chunks.cut(clock_T), rate_H.to(kind)[:, None, None]
            elapsed_MCC = (clock_MC[:, :, None] - clock_MC[:, None, :]).clamp_min(0).to(kind)
            # In place, which autograd allows here: these are the largest tensors.
            pair_MHCC = pair_MHCC * (-rate_H11 * elapsed_MCC[:, None]).masked_fill_(later_CC, float("-inf")).exp_()
            q, k, kept_M = _carrying(q, k, clock_MC, rate_H11, chunks.sizes)
        states_MHKV = _states(k.transpose(2, 3) @ v, kept_M, chunks.sizes)
        out = pair_MHCC @ v + q @ states_MHKV
        return out.transpose(1, 2).flatten(0, 1).index_select(0, chunks.slot_T).to(v_THV.dtype)


def _carrying(
    q: torch.Tensor, k: torch.Tensor, clock_MC: torch.Tensor, rate_H11: torch.Tensor, sizes: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries decayed since the end of the chunk before, keys decayed to the end of their own, and what a state keeps over it."""
    end_M, bounds = clock_MC.amax(1), list(itertools.accumulate(sizes, initial=0))
    before = [end_M[a : a + users] for a, users in zip(bounds, sizes[1:], strict=False)]
    start_M = torch.cat([torch.zeros_like(end_M[: sizes[0]]), *before])
    since_MC = (clock_MC - start_M[:, None]).clamp_min(0).to(q.dtype)
    until_MC = (end_M[:, None] - clock_MC).to(q.dtype)
    kept_MH11 = torch.exp(-rate_H11 * (end_M - start_M).to(q.dtype)[:, None, None, None])
    return (
        q * torch.exp(-rate_H11 * since_MC[:, None, :, None]),
        k * torch.exp(-rate_H11 * until_MC[:, None, :, None]),
        kept_MH11,
    )


def _states(added_MHKV: torch.Tensor, kept_MH11: torch.Tensor | None, sizes: list[int]) -> torch.Tensor:
    """The state before each chunk: ``S = kept S + added``, one step for all users that have one more chunk. [M, H, K, V]"""
    state, states, first = torch.zeros_like(added_MHKV[: sizes[0]]), [], 0
    for users in sizes:
        states.append(state[:users])
        now, first = slice(first, first + users), first + users
        kept = states[-1] if kept_MH11 is None else states[-1] * kept_MH11[now]
        state = kept + added_MHKV[now]
    return torch.cat(states)
