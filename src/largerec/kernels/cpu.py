"""The compiled twin of the reference for CPUs: built with g++ on first use and cached; see cpu.cpp for how it works.

The cache is keyed by source, compiler, torch and instruction set, so that a cache shared between machines never crashes, and a
finished library is moved into place in one step, so that two processes that build at once do not harm each other.
``LARGEREC_KERNELS=plain`` in the environment keeps to plain torch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from largerec.kernels.reference import TIME_BUCKETS, BucketedTime

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
# Instruction sets of each level of x86-64 that the code gains from, best first.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"abm", "avx2", "bmi1", "bmi2", "fma", "f16c", "movbe"},
}


def instruction_set() -> str | None:
    """The ``-march`` of this machine, or None for the compiler's own baseline."""
    info = Path("/proc/cpuinfo")
    flags = set()
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
                break
    for level, needed in LEVELS.items():
        if needed <= flags and LEVELS["x86-64-v3"] <= flags:
            return level
    return None


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
    flags = [*FLAGS, *([f"-march={level}"] if level else [])]
    # The lower-case abi flag of this torch build must match, or symbols are not found.
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    says = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    key = hashlib.sha256("\0".join([SOURCE.read_text(), torch.__version__, says, *flags]).encode()).hexdigest()[:20]
    path = _cache_folder() / f"attention-{level or 'baseline'}-{key}.so"
    if path.is_file():
        return path, f"compiled for {level or 'the baseline'}"
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    command = [program, *flags, *includes, str(SOURCE), "-o", str(beside), f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            return None, f"plain torch, because the kernels did not compile: {first}"
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path, f"compiled for {level or 'the baseline'}"


@cache
def available() -> tuple[bool, str]:
    """Whether the compiled kernels are loaded, and a sentence for people. Builds them on the first call (about 15 s)."""
    path, says = library()
    if path is None:
        return False, says
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return False, f"plain torch, because the compiled kernels did not load: {error}"
    _register()
    return True, says


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


def _register() -> None:
    """Tell torch the shapes (fake tensors) and the gradient of the operator."""

    def fake(q, k, v, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        return torch.empty_like(v)

    def fake_backward(d_out, q, k, v, offsets, softmax, scale, position, time, row, column):  # type: ignore[no-untyped-def]
        heads = q.shape[1]
        d_position = q.new_empty(heads, 0 if position is None else position.shape[1], dtype=torch.float32)
        d_time = q.new_empty(heads, 0 if time is None else TIME_BUCKETS, dtype=torch.float32)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), d_position, d_time

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

    torch.library.register_fake("largerec::attention", fake)
    torch.library.register_fake("largerec::attention_backward", fake_backward)
    torch.library.register_autograd("largerec::attention", backward, setup_context=setup)
