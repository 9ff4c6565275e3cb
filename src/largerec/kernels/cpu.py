"""The compiled twin of the reference for CPUs, built with g++ on first use and cached: the sources beside this file.

The cache is keyed by source, compiler, torch and instruction set, so that a cache shared between machines never crashes, and a
finished library is moved into place in one step, so that two processes that build at once do not harm each other.
``LARGEREC_KERNELS=plain`` in the environment keeps to plain torch.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import torch

from largerec.kernels.reference import TIME_BUCKETS, BucketedTime, PowerLawTime

SOURCES = tuple(Path(__file__).with_name(name) for name in ("attention.cpp", "bias.cpp", "linear.cpp", "loss.cpp", "softmax.cpp"))
HEADERS = tuple(Path(__file__).with_name(name) for name in ("cpu.h", "rows.h"))
# Compiled with it, not linked: torch brings the OpenMP runtime whose threads it counts, and a second one must not come in.
OPENMP = "-fopenmp"
FLAGS = ("-O3", "-std=c++20", "-fPIC", OPENMP, "-fno-math-errno", "-fno-trapping-math")
# Instruction sets of each level of x86-64 that the code gains from, best first.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"abm", "avx2", "bmi1", "bmi2", "fma", "f16c", "movbe"},
}


@cache
def _flags() -> set[str]:
    """Instruction sets by the names that Linux gives them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.lower().startswith(("flags", "features")):  # x86, ARM
            return set(line.split(":", 1)[1].split())
    return set()


def instruction_set() -> str | None:
    """The ``-march`` of this machine, or None for the compiler's own baseline."""
    flags = _flags()
    for level, needed in LEVELS.items():
        if needed <= flags and LEVELS["x86-64-v3"] <= flags:
            return level
    return None


def native_bf16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware; elsewhere such products are several times slower than float32's."""
    return bool(_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def avx512_bf16() -> bool:
    """Whether this machine has AVX-512's products of pairs of bfloat16, which softmax.cpp is written with.

    Not where it also has AMX, whose products of matrices are several times faster and which torch uses.
    """
    return instruction_set() == "x86-64-v4" and "avx512_bf16" in _flags() and "amx_bf16" not in _flags()


def compiler() -> str | None:
    """The C++ compiler in use, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "largerec" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:  # a home that cannot be written: a folder of this process, built anew each time
        return Path(tempfile.mkdtemp(prefix="largerec-kernels-"))


def library() -> tuple[Path | None, str]:
    """Build the library, or find it in the cache: its path (None if it cannot be had) and a sentence that says why."""
    program = compiler()
    if os.environ.get("LARGEREC_KERNELS") == "plain":
        return None, "plain torch, because LARGEREC_KERNELS=plain is set"
    if program is None:
        return None, "plain torch, because there is no C++ compiler; install g++ for several times faster attention"
    level = instruction_set()
    flags = [*FLAGS, *([f"-march={level}"] if level else []), *(["-mavx512bf16"] if avx512_bf16() else [])]
    # The lower-case abi flag of this torch build must match, or symbols are not found.
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    says = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    texts = [path.read_text() for path in (*HEADERS, *SOURCES)]
    key = hashlib.sha256("\0".join([*texts, torch.__version__, says, *flags]).encode()).hexdigest()[:20]
    path = _cache_folder() / f"kernels-{level or 'baseline'}-{key}.so"
    if path.is_file():
        return path, f"compiled for {level or 'the baseline'}"
    wrong = _build(program, flags, path)
    if wrong:
        return None, f"plain torch, because the kernels did not compile: {wrong}"
    return path, f"compiled for {level or 'the baseline'}"


def _build(program: str, flags: list[str], path: Path) -> str:
    """Compile the sources side by side and link them; returns the first error, or nothing."""
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
        jobs = [
            subprocess.Popen([program, *flags, *includes, "-c", str(source), "-o", made], stderr=subprocess.PIPE, text=True)
            for source, made in zip(SOURCES, objects, strict=True)
        ]
        said = [job.communicate()[1] for job in jobs]
        codes = [job.returncode for job in jobs]
        if not any(codes):
            beside = str(Path(folder) / path.name)
            linking = [flag for flag in flags if flag != OPENMP]
            command = [program, *linking, "-shared", *objects, "-o", beside, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
            linked = subprocess.run(command, capture_output=True, text=True, check=False)
            said, codes = [linked.stderr], [linked.returncode]
            if not any(codes):
                os.replace(beside, path)
    text = "\n".join(said)
    return next((line for line in text.splitlines() if "error" in line), text[:200] or "?") if any(codes) else ""


_LOADING = threading.Lock()


def available() -> tuple[bool, str]:
    """Whether the compiled kernels are loaded, and a sentence for people. Builds them on the first call (about 15 s)."""
    with _LOADING:  # operators can be registered once: a second thread waits for the first
        return _loaded()


@cache
def _loaded() -> tuple[bool, str]:
    path, says = library()
    if path is None:
        return False, says
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return False, f"plain torch, because the compiled kernels did not load: {error}"
    _register()
    return True, says


def usable(*tensors: torch.Tensor) -> bool:
    """Whether the compiled kernels are there and these tensors lie where they can work on them."""
    return all(x.device.type == "cpu" for x in tensors) and available()[0]


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
    """Both kinds of attention; shapes as in :mod:`largerec.kernels.reference`. float32 or bfloat16, on a CPU."""
    table, row, column = time if time is not None else (None, None, None)
    out: torch.Tensor = torch.ops.largerec.attention(
        q_THK, k_THK, v_THK, offsets_B1, softmax, scale, position_table_HN, table, row, column
    )
    return out


def attention_after(
    q_CHK: torch.Tensor,
    k_CHK: torch.Tensor,
    v_CHK: torch.Tensor,
    past_k_NHK: torch.Tensor,
    past_v_NHK: torch.Tensor,
    softmax: bool,
    scale: float,
    position_table_HN: torch.Tensor | None,
    time: BucketedTime | None,
    past_time_N: torch.Tensor | None,
) -> torch.Tensor:
    """The fast twin of :func:`largerec.kernels.cache.attention_after`; float32, on a CPU, without gradients."""
    table, row, own = time if time is not None else (None, None, None)
    out: torch.Tensor = torch.ops.largerec.attention_after(
        q_CHK, k_CHK, v_CHK, past_k_NHK, past_v_NHK, softmax, scale, position_table_HN, table, row, own, past_time_N
    )
    return out


def position_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, position_table_HN: torch.Tensor) -> torch.Tensor:
    """Weights by distance; shapes as in :mod:`largerec.kernels.reference`. float32 or bfloat16, on a CPU."""
    out: torch.Tensor = torch.ops.largerec.bias_attention(v_THK, offsets_B1, position_table_HN, 0, None, None)
    return out


def time_attention(v_THK: torch.Tensor, offsets_B1: torch.Tensor, time: BucketedTime | PowerLawTime) -> torch.Tensor:
    """Weights by elapsed time; shapes as in :mod:`largerec.kernels.reference`. float32 or bfloat16, on a CPU."""
    kind = 1 if isinstance(time, BucketedTime) else 2
    out: torch.Tensor = torch.ops.largerec.bias_attention(v_THK, offsets_B1, time[0], kind, time[1], time[2])
    return out


def linear_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THV: torch.Tensor,
    offsets_B1: torch.Tensor,
    rate_H: torch.Tensor | None = None,
    clock_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """The fast twin of :func:`largerec.kernels.linear.linear_attention`; float32 or bfloat16 (types are promoted), on a CPU."""
    kind = functools.reduce(torch.promote_types, (q_THK.dtype, k_THK.dtype, v_THV.dtype))
    q, k, v = (x.to(kind) for x in (q_THK, k_THK, v_THV))
    out: torch.Tensor = torch.ops.largerec.linear_attention(q, k, v, offsets_B1, rate_H, clock_T)
    return out.to(v_THV.dtype)


def _register() -> None:
    """Tell torch the shapes (fake tensors) and the gradients of the operators."""

    def fake(q, k, v, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        return v.new_empty(v.shape)

    def fake_backward(d_out, q, k, v, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        heads = q.shape[1]
        d_position = q.new_empty(heads, 0 if position is None else position.shape[1], dtype=torch.float32)
        d_time = q.new_empty(heads, 0 if time is None else TIME_BUCKETS, dtype=torch.float32)
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_position, d_time

    def setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
        q, k, v, offsets, ctx.softmax, ctx.scale, position, time, row, column = inputs
        ctx.save_for_backward(q, k, v, offsets, position, time, row, column)

    def backward(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, offsets, position, time, row, column = ctx.saved_tensors
        d_q, d_k, d_v, d_position, d_time = torch.ops.largerec.attention_backward(
            d_out, q, k, v, offsets, ctx.softmax, ctx.scale, position, time, row, column
        )
        d_position = None if position is None else d_position.to(position.dtype)
        d_time = None if time is None else d_time.to(time.dtype)
        return d_q, d_k, d_v, None, None, None, d_position, d_time, None, None

    def fake_bias_backward(d_out, v, offsets, table, kind, row, column):  # type: ignore[no-untyped-def]
        return v.new_empty(v.shape), table.new_empty(table.shape, dtype=torch.float32)

    def setup_bias(ctx, inputs, output):  # type: ignore[no-untyped-def]
        v, offsets, table, ctx.kind, row, column = inputs
        ctx.save_for_backward(v, offsets, table, row, column)

    def backward_bias(ctx, d_out):  # type: ignore[no-untyped-def]
        v, offsets, table, row, column = ctx.saved_tensors
        d_v, d_table = torch.ops.largerec.bias_attention_backward(d_out, v, offsets, table, ctx.kind, row, column)
        return d_v, None, d_table.to(table.dtype), None, None, None

    def fake_linear_backward(d_out, q, k, v, offsets, rate, clock):  # type: ignore[no-untyped-def]
        d_rate = q.new_empty(0 if rate is None else q.shape[1], dtype=torch.float32)
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_rate

    def setup_linear(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    def backward_linear(ctx, d_out):  # type: ignore[no-untyped-def]
        q, k, v, offsets, rate, clock = ctx.saved_tensors  # once: recomputed activations are given a single time
        d_q, d_k, d_v, d_rate = torch.ops.largerec.linear_attention_backward(d_out, q, k, v, offsets, rate, clock)
        return d_q, d_k, d_v, None, None if rate is None else d_rate.to(rate.dtype), None

    def fake_loss(queries, keys, target, items, log_q, softmax, power):  # type: ignore[no-untyped-def]
        return queries.new_empty(()), torch.empty_like(queries), torch.empty_like(keys)

    def fake_rows(logits, factor, own):  # type: ignore[no-untyped-def]
        return tuple(logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))

    def setup_loss(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(output[1], output[2])  # the gradients were made beside the loss

    def backward_loss(ctx, d_loss, *_):  # type: ignore[no-untyped-def]
        d_queries, d_keys = ctx.saved_tensors
        return d_loss * d_queries, d_loss * d_keys, None, None, None, None, None

    def fake_softmax(queries, keys, target, limit):  # type: ignore[no-untyped-def]
        return queries.new_empty(()), torch.empty_like(queries), torch.empty_like(keys), queries.new_empty(())

    def backward_softmax(ctx, d_loss, *_):  # type: ignore[no-untyped-def]
        d_queries, d_keys = ctx.saved_tensors
        return d_loss * d_queries, d_loss * d_keys, None, None

    def fake_counts(scores, own):  # type: ignore[no-untyped-def]
        above, equal = (own.new_empty(len(own), dtype=torch.long) for _ in range(2))
        return above, equal

    def setup_unit(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*output)

    def backward_unit(ctx, d_unit, _d_length):  # type: ignore[no-untyped-def]
        return torch.ops.largerec.unit_rows_backward(d_unit, *ctx.saved_tensors)

    torch.library.register_fake("largerec::sampled_loss", fake_loss)
    torch.library.register_fake("largerec::exp_rows_", fake_rows)
    torch.library.register_fake("largerec::count_rows", fake_counts)
    torch.library.register_fake("largerec::unit_rows", lambda rows: (torch.empty_like(rows), rows.new_empty(len(rows))))
    torch.library.register_fake("largerec::unit_rows_backward", lambda gradient, unit, length: torch.empty_like(unit))
    torch.library.register_autograd("largerec::unit_rows", backward_unit, setup_context=setup_unit)
    torch.library.register_autograd("largerec::sampled_loss", backward_loss, setup_context=setup_loss)
    if avx512_bf16():
        torch.library.register_fake("largerec::softmax_loss", fake_softmax)
        torch.library.register_autograd("largerec::softmax_loss", backward_softmax, setup_context=setup_loss)
    torch.library.register_fake("largerec::attention", fake)
    torch.library.register_fake("largerec::attention_backward", fake_backward)
    torch.library.register_autograd("largerec::attention", backward, setup_context=setup)
    torch.library.register_fake("largerec::bias_attention", lambda v, *_: v.new_empty(v.shape))
    torch.library.register_fake("largerec::bias_attention_backward", fake_bias_backward)
    torch.library.register_autograd("largerec::bias_attention", backward_bias, setup_context=setup_bias)
    torch.library.register_fake("largerec::linear_attention", lambda q, k, v, *_: v.new_empty(v.shape))
    torch.library.register_fake("largerec::linear_attention_backward", fake_linear_backward)
    torch.library.register_autograd("largerec::linear_attention", backward_linear, setup_context=setup_linear)
