"""Linear attention with decay over packed tokens, in chunks: cost and memory grow with the length, not with its square.

Sun et al. 2023 (Retentive Network, arXiv 2307.08621, section 2.3), with a clock for each token in place of its position.
Within a chunk of CHUNK tokens pairs are compared; from chunk to chunk a state of [K, V] numbers a head is carried on.
"""

from __future__ import annotations

import torch

CHUNK = 32
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
        return padded.unflatten(0, (-1, CHUNK))


def linear_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THV: torch.Tensor,
    rate_H: torch.Tensor,
    clock_T: torch.Tensor,
    offsets_B1: torch.Tensor,
) -> torch.Tensor:
    """``out_i = sum over j <= i of exp(-rate (clock_i - clock_j)) (q_i . k_j) v_j`` within each user's slice.

    In recurrent form ``S_i = exp(-rate (clock_i - clock_(i-1))) S_(i-1) + k_i v_i^T`` and ``out_i = q_i S_i``.

    Args:
        rate_H: decay of each head for one unit of the clock, at least 0.
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
        clock_MC = chunks.cut(clock_T)
        rate_H11 = rate_H.to(kind)[:, None, None]
        elapsed_MCC = (clock_MC[:, :, None] - clock_MC[:, None, :]).clamp_min(0).to(kind)
        pair_MHCC = (q @ k.transpose(2, 3)) * torch.exp(-rate_H11 * elapsed_MCC[:, None]).tril()
        end_M = clock_MC.amax(1)
        to_end_MC = (end_M[:, None] - clock_MC).clamp_min(0).to(kind)
        added_MHKV = (k * torch.exp(-rate_H11 * to_end_MC[:, None, :, None])).transpose(2, 3) @ v
        out = pair_MHCC @ v + _carried(q, added_MHKV, clock_MC, end_M, rate_H11, chunks.sizes)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, chunks.slot_T).to(v_THV.dtype)


def _carried(
    q_MHCK: torch.Tensor,
    added_MHKV: torch.Tensor,
    clock_MC: torch.Tensor,
    end_M: torch.Tensor,
    rate_H11: torch.Tensor,
    sizes: list[int],
) -> torch.Tensor:
    """What each token reads of the chunks before its own. [M, H, C, V]"""
    state, clock_U = torch.zeros_like(added_MHKV[: sizes[0]]), torch.zeros_like(end_M[: sizes[0]])
    states, clocks, first = [], [], 0
    for users in sizes:  # one step from chunk to chunk, for the users that have one more
        now, state, clock_U = slice(first, first + users), state[:users], clock_U[:users]
        states.append(state)
        clocks.append(clock_U)
        passed_U111 = (end_M[now] - clock_U).to(state.dtype)[:, None, None, None]
        state = state * torch.exp(-rate_H11 * passed_U111) + added_MHKV[now]
        clock_U, first = end_M[now], first + users
    since_MC = (clock_MC - torch.cat(clocks)[:, None]).clamp_min(0).to(state.dtype)
    return (q_MHCK * torch.exp(-rate_H11 * since_MC[:, None, :, None])) @ torch.cat(states)
