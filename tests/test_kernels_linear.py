"""Linear attention, in chunks and compiled, against its recurrence, one token at a time; its cost is linear in the length."""

from __future__ import annotations

import itertools

import pytest
import torch

from largerec.kernels import cpu, linear, linear_attention

needs_compiler = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler")
LENGTHS = [[1], [0, 3, 0, 1], [15, 16, 17], [64, 1, 130, 33], [5, 40, 5]]


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
    return linear.linear_attention(x["q"], x["k"], x["v"], x["offsets"], *decay)


@pytest.mark.parametrize("decayed", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
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


@needs_compiler
@pytest.mark.parametrize("decayed", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("heads", "width", "values"), [(1, 1, 1), (7, 2, 3), (2, 64, 64), (16, 8, 2), (1, 16, 130)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_compiled_kernel_equals_the_recurrence(
    decayed: bool, lengths: list[int], heads: int, width: int, values: int, kind: torch.dtype
) -> None:
    assert cpu.available()[0], cpu.available()[1]
    x = inputs(lengths, heads, width, values, kind)
    names = ["q", "k", "v", *(["rate"] if decayed else [])]
    given = torch.randn(x["v"].shape, generator=torch.Generator().manual_seed(0)).to(kind)
    found = []
    for exact in (True, False):
        y = {name: value.detach().double() if exact and name in names else value.detach() for name, value in x.items()}
        leaves = [y[name].requires_grad_() for name in names]
        out = recurrent(y, decayed) if exact else cpu.linear_attention(
            y["q"], y["k"], y["v"], y["offsets"], *((y["rate"], y["clock"]) if decayed else ())
        )  # fmt: skip
        gradients = torch.autograd.grad(out, leaves, given.to(out.dtype), allow_unused=True, materialize_grads=True)
        found.append([out.detach(), *gradients])
    tolerance = 2e-5 if kind == torch.float32 else 1e-2
    for name, wanted, got in zip(["out", *names], *found, strict=True):
        assert got.dtype == kind
        if name == "rate":  # of each head by itself: heads that forget at once have gradients that vanish beside the others'
            torch.testing.assert_close(got.double(), wanted, rtol=20 * tolerance, atol=1e-30)
        else:
            assert float((got - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@needs_compiler
def test_the_compiled_kernel_reads_views_and_mixed_types() -> None:
    """Slices of one projection, values whose heads are not side by side, and queries of another type than the values."""
    x = inputs([20, 3], 2, 8, 8, torch.float32)
    wide = torch.cat([x["q"].flatten(1), x["k"].flatten(1)], dim=1)
    q, k = (part.view(23, 2, 8) for part in wide.split(16, dim=1))
    turned = x["v"].transpose(1, 2).contiguous().transpose(1, 2)
    wanted = recurrent(x, True)
    torch.testing.assert_close(
        cpu.linear_attention(q, k, turned, x["offsets"], x["rate"], x["clock"]), wanted, rtol=1e-4, atol=1e-4
    )
    low = cpu.linear_attention(q, k, turned.bfloat16(), x["offsets"], x["rate"], x["clock"])
    assert low.dtype == torch.bfloat16
    assert (low - wanted).norm() <= 0.01 * wanted.norm()


@needs_compiler
def test_torch_accepts_the_operator_and_equal_thread_counts_give_equal_bits() -> None:
    assert cpu.available()[0]
    x = inputs([9, 1, 30], 2, 4, 6, torch.float32)
    arguments = [x[name].requires_grad_() if name != "offsets" else x[name] for name in ("q", "k", "v", "offsets", "rate")]
    torch.library.opcheck(torch.ops.largerec.linear_attention, (*arguments, x["clock"]))
    torch.library.opcheck(torch.ops.largerec.linear_attention, (*arguments[:4], None, None))
    before, bits = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(3):
            out = torch.ops.largerec.linear_attention(*arguments, x["clock"])
            bits.append(torch.autograd.grad(out.square().sum(), [arguments[i] for i in (0, 1, 2, 4)]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in bits[1:] for a, b in zip(bits[0], other, strict=True))


@needs_compiler
def test_the_rate_of_a_long_clock_has_an_exact_gradient() -> None:
    """Pairs a second apart, thirty years after the first event: sums of clocks would lose them."""
    clock = torch.tensor([0.0, 1e9, 1e9 + 1, 1e9 + 3], dtype=torch.float64)
    found = []
    for kind in (torch.float64, torch.float32):
        ones, rate = torch.ones(4, 1, 1, dtype=kind), torch.ones(1, dtype=kind, requires_grad=True)
        function = linear.linear_attention if kind == torch.float64 else cpu.linear_attention
        out = function(ones, ones, ones, torch.tensor([0, 4]), rate, clock)
        found.append(torch.autograd.grad(out.sum(), rate)[0].double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)


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


@pytest.mark.parametrize("plain", [True, False], ids=["chunks", "fastest"])
@pytest.mark.parametrize("decayed", [True, False])
def test_no_tensor_grows_with_the_square_of_the_length(decayed: bool, plain: bool) -> None:
    """What is kept for the backward pass, which is all that is large, doubles with the length and no more."""
    kept = []
    for length in (512, 1024):
        x = inputs([length], 2, 4, 4, torch.float32)
        x["v"].requires_grad_()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t):  # type: ignore[misc]
            decay = (x["rate"], x["clock"]) if decayed else ()
            (linear.linear_attention if plain else linear_attention)(x["q"], x["k"], x["v"], x["offsets"], *decay)
        kept.append(sum(sizes))
        assert max(sizes) <= length * 2 * linear.CHUNK
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.05)
