"""Linear attention in chunks against its recurrence, one token at a time, and that its cost is linear in the length."""

from __future__ import annotations

import itertools

import pytest
import torch

from largerec.kernels import linear, linear_attention


def inputs(lengths: list[int], heads: int, width: int, values: int, kind: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Random inputs whose clocks jump by up to 2**20 units, over heads that forget in one unit and in many."""
    generator = torch.Generator().manual_seed(sum(lengths) * heads + width)
    tokens, offsets = sum(lengths), torch.tensor([0, *lengths]).cumsum(0)
    q, k = (torch.randn(tokens, heads, width, generator=generator, dtype=kind) for _ in range(2))
    steps = (torch.rand(tokens, generator=generator) * 20).exp2().double()
    clock = torch.cat([steps[a:b].cumsum(0) for a, b in itertools.pairwise(offsets)]) if tokens else steps
    rate = 10.0 ** -torch.arange(0, heads, dtype=kind)
    v = torch.randn(tokens, heads, values, generator=generator, dtype=kind)
    return {"q": q, "k": k, "v": v, "rate": rate, "offsets": offsets, "clock": clock}


def recurrent(x: dict[str, torch.Tensor], decayed: bool) -> torch.Tensor:
    """S_i = decay S_(i-1) + k_i v_i^T, out_i = q_i S_i."""
    rows = []
    for a, b in itertools.pairwise(x["offsets"].tolist()):
        state = x["v"].new_zeros(x["v"].shape[1], x["q"].shape[2], x["v"].shape[2])
        for i in range(a, b):
            if decayed and i > a:
                state = state * torch.exp(-x["rate"] * (x["clock"][i] - x["clock"][i - 1]))[:, None, None]
            state = state + x["k"][i][:, :, None] * x["v"][i][:, None, :]
            rows.append((x["q"][i][:, None, :] @ state)[:, 0])
    return torch.stack(rows)


def chunked(x: dict[str, torch.Tensor], decayed: bool) -> torch.Tensor:
    decay = (x["rate"], x["clock"]) if decayed else ()
    return linear_attention(x["q"], x["k"], x["v"], x["offsets"], *decay)


@pytest.mark.parametrize("decayed", [True, False])
@pytest.mark.parametrize("lengths", [[1], [0, 3, 0, 1], [15, 16, 17], [64, 1, 130, 33], [5, 40, 5]], ids=str)
@pytest.mark.parametrize(("heads", "width", "values"), [(1, 1, 1), (7, 2, 3), (2, 25, 25)])
def test_chunks_equal_the_recurrence(decayed: bool, lengths: list[int], heads: int, width: int, values: int) -> None:
    x = inputs(lengths, heads, width, values)
    names = ["q", "k", "v", *(["rate"] if decayed else [])]
    leaves = [x[name].requires_grad_() for name in names]
    given = torch.randn(x["v"].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for function in (recurrent, chunked):
        out = function(x, decayed)
        found.append([out, *torch.autograd.grad(out, leaves, given, allow_unused=True, materialize_grads=True)])
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_low_precision_is_summed_in_float32(kind: torch.dtype, tolerance: float) -> None:
    x = inputs([100, 7], 2, 8, 8)
    low = {name: value.to(kind) if name in ("q", "k", "v") else value for name, value in x.items()}
    wanted = recurrent({name: value.double() if name in ("q", "k", "v") else value for name, value in low.items()}, True)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        found = chunked(low, True)
    assert found.dtype == kind
    assert (found.double() - wanted).norm() <= tolerance * wanted.norm()


def test_a_batch_without_tokens() -> None:
    assert chunked(inputs([0, 0], 2, 3, 4), True).shape == (0, 2, 4)


def test_a_clock_of_many_years_does_not_lose_seconds() -> None:
    """Two events one second apart after thirty years: the fast head has forgotten the first, and not the second."""
    x = inputs([3], 1, 1, 1) | {"clock": torch.tensor([0.0, 1e9, 1e9 + 1], dtype=torch.float64)}
    ones = torch.ones(3, 1, 1)
    found = linear_attention(ones, ones, ones, x["offsets"], torch.ones(1), x["clock"])
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 1.0, 1.0 + 2.718281828**-1]))


@pytest.mark.parametrize("decayed", [True, False])
def test_no_tensor_grows_with_the_square_of_the_length(decayed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the backward pass, which is all that is large, doubles with the length and no more."""
    kept = []
    for length in (512, 1024):
        x = inputs([length], 2, 4, 4, torch.float32)
        x["v"].requires_grad_()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t):  # type: ignore[misc]
            chunked(x, decayed)
        kept.append(sum(sizes))
        assert max(sizes) <= length * 2 * linear.CHUNK
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.05)
