"""The compiled attention against the reference: values and gradients, over lengths that cross its blocks; and its building."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from largerec.kernels import BlockCache, BucketedTime, attention_after, cpu, reference

TABLE = 300
needs_compiler = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler")


def inputs(lengths: list[int], heads: int, width: int, kind: torch.dtype, rising: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths) * heads + width)
    tokens = sum(lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v, gradient = (torch.randn(tokens, heads, width, generator=generator).to(kind) for _ in range(4))
    time = torch.randint(0, 10**10, (tokens,), generator=generator)
    if rising:
        time = torch.cat([time[a:b].sort()[0] for a, b in itertools.pairwise(offsets)])
    time[torch.rand(tokens, generator=generator) < 0.1] = -1
    return {
        "q": q.requires_grad_(),
        "k": k.requires_grad_(),
        "v": v.requires_grad_(),
        "position": torch.randn(heads, TABLE, generator=generator).requires_grad_(),
        "time": torch.randn(heads, reference.TIME_BUCKETS, generator=generator).requires_grad_(),
        "offsets": offsets,
        "columns": time,
        "rows": time.roll(-1),
        "gradient": gradient,
    }


def outputs(x: dict[str, torch.Tensor], softmax: bool, biased: bool, compiled: bool) -> list[torch.Tensor]:
    """The result and the gradients of everything that has one."""
    position = x["position"] if biased else None
    time = BucketedTime(x["time"], x["rows"], x["columns"]) if biased else None
    scale = x["q"].shape[-1] ** -0.5 if softmax else 1 / 64
    if compiled:
        out = cpu.attention(x["q"], x["k"], x["v"], x["offsets"], softmax, scale, position, time)
    elif softmax:
        out = reference.softmax_attention(x["q"], x["k"], x["v"], x["offsets"], position, time)
    else:
        out = reference.silu_attention(x["q"], x["k"], x["v"], x["offsets"], scale, position, time)
    leaves = [x["q"], x["k"], x["v"], *([x["position"], x["time"]] if biased else [])]
    return [out.detach(), *torch.autograd.grad(out, leaves, x["gradient"])]


@needs_compiler
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "silu"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize("lengths", [[1], [0, 3, 0, 1], [5, 31, 32, 33], [64, 1, 257, 17]], ids=str)
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 25), (1, 50), (1, 130)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_compiled_kernel_equals_the_reference(
    softmax: bool, biased: bool, lengths: list[int], heads: int, width: int, kind: torch.dtype
) -> None:
    assert cpu.available()[0], cpu.available()[1]
    tolerance = 2e-5 if kind == torch.float32 else 4e-2
    x = inputs(lengths, heads, width, kind, rising=width != 25)
    for truth, found in zip(outputs(x, softmax, biased, False), outputs(x, softmax, biased, True), strict=True):
        assert found.dtype == truth.dtype
        assert float((found - truth).abs().max()) <= tolerance * max(1.0, float(truth.abs().max()))


@needs_compiler
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "silu"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "plain"])
@pytest.mark.parametrize(("past", "tokens"), [(1, 1), (31, 33), (32, 7), (150, 70)])
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (2, 25), (1, 64)])
@pytest.mark.parametrize("alike", [True, False], ids=["one time", "many times"])
def test_tokens_after_a_history_as_the_plain_path_has_them(
    softmax: bool, biased: bool, past: int, tokens: int, heads: int, width: int, alike: bool
) -> None:
    assert cpu.available()[0], cpu.available()[1]
    x = inputs([past, tokens], heads, width, torch.float32, rising=True)
    rows, own = (
        (torch.full((tokens,), 10**10), torch.full((tokens,), 10**10)) if alike else (x["rows"][past:], x["columns"][past:])
    )
    position, time = (x["position"], BucketedTime(x["time"], rows, own)) if biased else (None, None)
    wide = torch.cat([x["q"], x["k"], x["v"]], dim=2).detach()  # views of one projection, as blocks have them
    q, k, v = wide[past:].split(width, dim=2)
    cache = BlockCache()
    cache.keep(
        x["k"].detach()[:past], x["v"].detach()[:past], time and BucketedTime(x["time"], x["rows"][:past], x["columns"][:past])
    )
    assert cache.kept is not None
    with torch.no_grad():
        truth = attention_after(q, k, v, cache, position, time, scale=0.3, softmax=softmax)
        found = cpu.attention_after(q, k, v, *cache.kept, softmax, 0.3, position, time, cache.time_N)
    assert float((found - truth).abs().max()) <= 2e-5 * max(1.0, float(truth.abs().max()))


@needs_compiler
def test_times_at_the_edge_of_a_bucket() -> None:
    """Elapsed times of 2**b seconds, one millisecond less and one more, from now and from the year 1970."""
    assert cpu.available()[0]
    elapsed = [1000 * 2**b + off for b in range(31) for off in (-1, 0, 1)]
    for start in (0, 1_764_000_000_123):
        columns = torch.tensor([time for each in elapsed for time in (start, start + each)])
        offsets = torch.arange(0, len(columns) + 1, 2)
        q, v = torch.zeros(len(columns), 1, 4), torch.ones(len(columns), 1, 4)
        time = BucketedTime(torch.arange(1.0, 1.0 + reference.TIME_BUCKETS)[None], columns, columns)
        found = cpu.attention(q, q, v, offsets, False, 1.0, None, time)
        torch.testing.assert_close(found, reference.silu_attention(q, q, v, offsets, 1.0, None, time))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_equal_thread_counts_give_bitwise_equal_results(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = inputs([40, 7, 90, 1, 33], 2, 16, torch.float32, True)
        first, second = outputs(x, False, True, True), outputs(x, False, True, True)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs_compiler
def test_torch_accepts_the_operator() -> None:
    assert cpu.available()[0]
    x = inputs([4, 0, 9], 2, 5, torch.float32, True)
    arguments = (x["q"], x["k"], x["v"], x["offsets"], False, 0.1, x["position"], x["time"], x["rows"], x["columns"])
    torch.library.opcheck(torch.ops.largerec.attention, arguments)


@needs_compiler
@pytest.mark.parametrize("softmax", [True, False])
def test_views_into_one_projection_are_read_where_they_lie(softmax: bool) -> None:
    assert cpu.available()[0]
    x = inputs([4, 0, 40], 2, 5, torch.float32, True)
    wide = torch.cat([x[name].detach().flatten(1) for name in "qkv"], dim=1).requires_grad_()
    views = dict(zip("qkv", (part.unflatten(1, (2, 5)) for part in wide.chunk(3, dim=1)), strict=True))
    for found, wanted in zip(outputs(x | views, softmax, True, True), outputs(x, softmax, True, True), strict=True):
        assert torch.equal(found, wanted)


@needs_compiler
def test_a_history_longer_than_the_table_is_refused() -> None:
    assert cpu.available()[0]
    x = inputs([4], 1, 4, torch.float32, True)
    with pytest.raises(RuntimeError, match="longer than the position table"):
        cpu.attention(x["q"], x["k"], x["v"], x["offsets"], False, 1.0, torch.zeros(1, 3), None)


@needs_compiler
def test_the_kernels_run_on_several_threads_of_torch_s_own_runtime() -> None:
    path, says = cpu.library()
    assert path is not None, says
    assert b"GOMP_parallel" in path.read_bytes()
    assert cpu.available()[0]
    maps = Path("/proc/self/maps")
    if maps.is_file():
        assert len({line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}) == 1


def test_plain_torch_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARGEREC_KERNELS", "plain")
    path, says = cpu.library()
    assert path is None and "LARGEREC_KERNELS=plain" in says


def test_without_a_compiler_the_plain_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    path, says = cpu.library()
    assert path is None and "install g++" in says


def test_a_compiler_that_fails_is_reported_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, says = cpu.library()
    assert path is None and "did not compile" in says
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@needs_compiler
def test_two_processes_that_build_at_once_do_not_harm_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tiny source stands in for the real one: what is tested is the moving into place, not the compiler.
    source = tmp_path / "tiny.cpp"
    source.write_text('extern "C" int largerec_answer() { return 42; }\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = (
        "import ctypes, pathlib, sys; from largerec.kernels import cpu; cpu.SOURCES = (pathlib.Path(sys.argv[1]),); "
        "path, says = cpu.library(); assert ctypes.CDLL(str(path)).largerec_answer() == 42, says"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(source)]) for _ in range(2)]
    assert [child.wait(timeout=100) for child in children] == [0, 0]
    kept = [path.name for path in (tmp_path / "largerec" / "kernels").iterdir()]
    assert len(kept) == 1 and kept[0].endswith(".so")


@needs_compiler
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "silu"])
def test_the_operator_stays_whole_under_torch_compile(softmax: bool) -> None:
    """Captured in one graph with its gradients, also for a second batch of another size."""
    assert cpu.available()[0]
    attend = torch.compile(cpu.attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for lengths in ([4, 0, 9], [17, 2]):
        x = inputs(lengths, 2, 5, torch.float32, True)
        time = BucketedTime(x["time"], x["rows"], x["columns"])
        leaves = [x[name] for name in ("q", "k", "v", "position", "time")]
        found = []
        for function in (cpu.attention, attend):
            out = function(x["q"], x["k"], x["v"], x["offsets"], softmax, 0.3, x["position"], time)
            found.append([out, *torch.autograd.grad(out, leaves, x["gradient"])])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
