"""``largerec doctor``: what this machine has, what it lacks, and what to do about it. It only looks, and uses no network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

Status = Literal["ok", "warn", "fail"]

MIN_PYTHON = (3, 11)
MIN_MEMORY = 2 << 30  # bytes; below it the larger recipes are stopped by the system
MIN_DISK = 1 << 30  # bytes; a run directory with checkpoints and its report fits well
MATRIX_SIZE = 512
MEASURE_SECONDS = 0.1  # for each number format and number of threads
WORTHWHILE = 1.2  # bf16 must be this much faster: a step is not only matrix products
SLOW_GFLOPS = 10.0  # one quiet core with AVX2 reaches five times that in fp32

INSTALL = "from the clone: pip install -c constraints.txt -e"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``value`` is plain data for programs, ``text`` the same for people."""

    name: str
    status: Status
    text: str
    value: Any = None
    fix: str = ""


def diagnose() -> dict[str, Any]:
    """Look at the machine and return ``{"status", "findings": [{"name", "status", "text", "value", "fix"}]}``, ready for JSON.

    ``status`` is the worst of the findings: ``fail`` (LargeRec cannot work), ``warn`` (it works, but slower or less than it
    could) or ``ok``. Takes about a second. Nothing that is found raises: it becomes a finding.
    """
    findings = [check_python(), check_packages(), check_cores(), check_waiting(), check_memory(), check_disk(), check_folder()]
    findings.append(check_instructions())
    torch = import_torch()
    if isinstance(torch, Finding):
        findings.append(torch)
    else:
        findings += [check_torch(torch), check_matrix_rate(torch), check_cuda(torch)]
    findings += [check_kernels(), *check_extras()]
    order: tuple[Status, ...] = ("ok", "warn", "fail")
    worst = max(findings, key=lambda finding: order.index(finding.status)).status
    return {"status": worst, "findings": [asdict(finding) for finding in findings]}


def render(report: dict[str, Any]) -> Table:
    """The report of :func:`diagnose` as a rich table, with each fix under what it mends."""
    closing = {"ok": "everything is fine", "warn": "it works; see the warnings", "fail": "it cannot work yet; see the failures"}
    style = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(title="largerec doctor", caption=closing[report["status"]])
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found")
    for finding in report["findings"]:
        # Text, not str: a path or a requirement in brackets must not be read as markup.
        found = Text(finding["text"])
        if finding["fix"]:
            found.append(f"\n-> {finding['fix']}", style="cyan")
        table.add_row(Text(finding["status"], style=style[finding["status"]]), Text(finding["name"]), found)
    return table


# Software


def check_python() -> Finding:
    """The interpreter is new enough."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    needed = ".".join(map(str, MIN_PYTHON))
    if sys.version_info[:2] < MIN_PYTHON:
        return Finding(
            "python", "fail", text, platform.python_version(), f"install Python {needed} or newer and make a new .venv"
        )
    return Finding("python", "ok", text, platform.python_version())


def requirements() -> dict[str, list[str]] | None:
    """Names of the packages that LargeRec asks for, by extra (``""`` is the core); None if LargeRec is not installed itself."""
    try:
        declared = importlib.metadata.requires("largerec") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    names: dict[str, list[str]] = {"": []}
    for requirement in declared:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if name:
            names.setdefault(extra[1] if extra else "", []).append(name[0])
    return names


def versions_of(packages: list[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is missing."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def check_packages() -> Finding:
    """LargeRec and the packages that it needs are installed."""
    needed = requirements()
    if needed is None:
        text = "LargeRec runs from its source folder and is not installed, so its packages were not checked"
        return Finding("packages", "warn", text, {}, f"{INSTALL} .")
    versions = versions_of(["largerec", *needed[""]])
    missing = [package for package, version in versions.items() if version is None]
    text = ", ".join(f"{package} {version or 'missing'}" for package, version in versions.items())
    return Finding("packages", "fail" if missing else "ok", text, versions, f"{INSTALL} ." if missing else "")


def check_extras() -> list[Finding]:
    """One finding for each extra that users may want; a missing one is no fault, so it is ``ok`` and says what to install."""
    findings = []
    for extra, packages in (requirements() or {}).items():
        if extra in ("", "dev"):
            continue
        versions = versions_of(packages)
        present = None not in versions.values()
        text = ", ".join(f"{package} {version or 'not installed'}" for package, version in versions.items())
        fix = "" if present else f'only if you want it, {INSTALL} ".[{extra}]"'
        findings.append(Finding(f"extra {extra}", "ok", text, versions, fix))
    return findings


def check_kernels() -> Finding:
    """Whether attention runs compiled; builds the kernels if they are not in the cache yet (about 15 seconds, once)."""
    from largerec.kernels import cpu  # torch comes with it

    compiled, text = cpu.available()
    fix = "" if compiled else "Debian, Ubuntu: apt-get install g++; everything works without it, only slower"
    return Finding("kernels", "ok" if compiled else "warn", text, {"compiled": compiled, "compiler": cpu.compiler()}, fix)


# Cores and threads


def own_cgroup(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The control groups (version 2) that limit this process, innermost first; empty where there are none."""
    try:
        line = next(line for line in process.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = root / line[3:].lstrip("/")
    return [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]


def read_limits(groups: list[Path], file: str, parse: Callable[[str], float]) -> dict[Path, float]:
    """The value of a limit in each control group that has one."""
    limits = {}
    for group in groups:
        try:
            limits[group] = parse((group / file).read_text())
        except (OSError, ValueError):  # no such file here, or "max": no limit at this level
            continue
    return limits


def parse_cpu_max(text: str) -> float:
    """``quota period`` in microseconds to cores; ValueError for ``max period``."""
    quota, period = text.split()
    return int(quota) / int(period)


def usable_cores(groups: list[Path] | None = None) -> float:
    """Cores that this process may use: what the scheduler lets it run on, and no more than a container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = read_limits(own_cgroup() if groups is None else groups, "cpu.max", parse_cpu_max)
    return min([float(allowed), *quotas.values()])


def check_cores() -> Finding:
    """How many cores there are for us."""
    usable, total = usable_cores(), os.cpu_count() or 1
    return Finding("cores", "ok", f"{usable:g} usable of {total}", {"usable": usable, "total": total})


def check_waiting() -> Finding:
    """OpenMP threads sleep while they wait."""
    policy = os.environ.get("OMP_WAIT_POLICY")
    if (policy or "").strip().upper() == "PASSIVE":
        return Finding("OMP_WAIT_POLICY", "ok", "PASSIVE", policy)
    why = "waiting threads spin, and small steps become many times slower as soon as another job shares the machine"
    fix = "export OMP_WAIT_POLICY=PASSIVE before Python starts (make does it for you)"
    return Finding("OMP_WAIT_POLICY", "warn", f"{policy or 'not set'}: {why}", policy, fix)


# Memory and disk


def memory_bytes(meminfo: Path = Path("/proc/meminfo"), groups: list[Path] | None = None) -> tuple[int, int | None]:
    """Memory in bytes: (total, available), a container's limit counted in; available is None where the system does not say."""
    try:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), flags=re.MULTILINE))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    total, available = int(fields["MemTotal"]) * 1024, int(fields["MemAvailable"]) * 1024
    groups = own_cgroup() if groups is None else groups
    used = read_limits(groups, "memory.current", int)
    for group, limit in read_limits(groups, "memory.max", int).items():
        total = min(total, int(limit))
        available = min(available, max(0, int(limit - used.get(group, 0))))
    return total, available


def gib(size: int) -> str:
    """Bytes as GiB for people."""
    return f"{size / 2**30:.1f} GiB"


def check_memory() -> Finding:
    """There is memory to work with."""
    total, available = memory_bytes()
    value = {"total": total, "available": available}
    text = f"{gib(total)}, {'unknown' if available is None else gib(available)} available"
    if (total if available is None else available) < MIN_MEMORY:
        fix = f"close other programs, or use a smaller `size` and token budget: below {gib(MIN_MEMORY)} large recipes are stopped"
        return Finding("memory", "warn", text, value, fix)
    return Finding("memory", "ok", text, value)


def check_disk() -> Finding:
    """Run directories, which go to the working folder by default, have room."""
    try:
        folder = Path.cwd()
        free = shutil.disk_usage(folder).free
    except FileNotFoundError:
        return Finding("disk", "fail", "the working folder is not there any more", None, "change to a folder that is there")
    text = f"{gib(free)} free in {folder}"
    if free < MIN_DISK:
        return Finding(
            "disk", "warn", text, free, "remove old run directories, or send new ones to another disk with run.dir=..."
        )
    return Finding("disk", "ok", text, free)


def check_folder() -> Finding:
    """The working folder can be written to: tried, since permissions alone do not tell."""
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:
        why, fix = "it is not there any more", "change to a folder that is there"
        return Finding("working folder", "fail", why, None, fix)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "work in a folder that you may write to, or pass one with run.dir=..."
        return Finding("working folder", "fail", f"{folder} cannot be written to: {error.strerror}", folder, fix)
    return Finding("working folder", "ok", f"{folder} can be written to", folder)


# Speed


def check_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Vector and matrix instructions of the processor (x86; other processors report none of these)."""
    name = "instructions"
    try:
        flags = set(re.findall(r"^flags\s*:(.*)$", cpuinfo.read_text(), flags=re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return Finding(name, "ok", f"not listed for {platform.machine()} on {platform.system()}", [])
    known = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
    found = [flag for flag in known if flag in flags]
    if "avx2" not in found:
        fix = "pass the host's processor through to the virtual machine, or use a newer one"
        return Finding(name, "warn", "no avx2: matrix products are several times slower", found, fix)
    return Finding(name, "ok", ", ".join(found), found)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and the cores in use, as result files say on what they were made."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def import_torch() -> ModuleType | Finding:
    """The module, or what keeps it from being imported: the very fault that a doctor is asked about."""
    try:
        import torch
    except Exception as error:  # a broken build raises OSError, ImportError or RuntimeError
        fix = "make a new .venv (make clean setup); on a processor without avx2, choose another build with PIP_ARGS"
        return Finding("torch", "fail", f"cannot be imported: {type(error).__name__}: {error}", None, fix)
    return torch


def check_torch(torch: ModuleType) -> Finding:
    """The version of torch, and that its threads fit the cores."""
    threads, cores = torch.get_num_threads(), usable_cores()
    value = {"version": str(torch.__version__), "threads": threads, "cuda_build": torch.version.cuda}
    text = f"{torch.__version__}, {threads} threads, {torch.backends.cpu.get_cpu_capability()}"
    if threads > max(1.0, cores):
        text += f": more threads than the {cores:g} cores there are, so they wait for each other"
        return Finding("torch", "warn", text, value, f"pass threads={max(1, int(cores))}, or set OMP_NUM_THREADS")
    return Finding("torch", "ok", text, value)


def matrix_gflops(torch: ModuleType, dtype: Any, threads: int) -> float:
    """The best observed rate of square matrix products, in GFLOP/s; the best, since other jobs only ever slow one down."""
    left, right = (torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.mm(left, right)  # the first call sets up threads and kernels
        best, end = float("inf"), time.perf_counter() + MEASURE_SECONDS
        while (start := time.perf_counter()) < end:
            torch.mm(left, right)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return float(2 * MATRIX_SIZE**3 / best / 1e9)


def check_matrix_rate(torch: ModuleType) -> Finding:
    """Measure fp32 and bf16 products on one thread and on all, and say which format training should use here.

    The formats are compared on one thread: with more, threads that wait for each other blur the difference.
    """
    threads = torch.get_num_threads()
    value: dict[str, Any] = {"threads": threads}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        value[f"{name}_gflops_one_thread"] = round(matrix_gflops(torch, dtype, 1), 1)
        value[f"{name}_gflops"] = round(matrix_gflops(torch, dtype, threads), 1)
    value["bf16_worthwhile"] = value["bf16_gflops_one_thread"] >= WORTHWHILE * value["fp32_gflops_one_thread"]
    return judge_matrix_rate(value)


def judge_matrix_rate(value: dict[str, Any]) -> Finding:
    """What measured rates (see :func:`check_matrix_rate`) mean."""
    one, many = value["fp32_gflops_one_thread"], value["fp32_gflops"]
    advice = "bf16 is worthwhile" if value["bf16_worthwhile"] else "stay with fp32"
    text = f"GFLOP/s on 1 thread: fp32 {one:.0f}, bf16 {value['bf16_gflops_one_thread']:.0f}; "
    text += f"on {value['threads']}: fp32 {many:.0f}, bf16 {value['bf16_gflops']:.0f}; {advice}"
    if many < one / 2:
        fix = "stop the other job, pass a smaller threads=..., and see OMP_WAIT_POLICY"
        return Finding("matrix rate", "warn", f"{text}, but all threads together are slower than one", value, fix)
    if max(many, value["bf16_gflops"]) < SLOW_GFLOPS:
        fix = "see whether another job uses this machine, and the instructions above"
        return Finding("matrix rate", "warn", f"{text}, but this is slow", value, fix)
    return Finding("matrix rate", "ok", text, value)


def check_cuda(torch: ModuleType) -> Finding:
    """CUDA devices; a device that the driver shows but this build of torch cannot use is a warning."""
    with warnings.catch_warnings(record=True) as caught:  # an old driver is told by a warning: it belongs into the finding
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [torch.cuda.get_device_properties(index) for index in range(count)]
    value = [{"name": device.name, "memory": device.total_memory} for device in devices]
    if devices:
        said = ", ".join(f"{device.name} ({gib(device.total_memory)})" for device in devices)
        from largerec.devices import capable
        from largerec.kernels import describe

        if not capable(devices[0]):
            said += "; not for train.device=cuda, which needs NVIDIA's of compute capability 8 or newer"
            return Finding("cuda", "ok", said, value)
        said += f"; train.device=cuda trains on {'it' if count == 1 else 'the first'} with {describe('cuda')}"
        return Finding("cuda", "ok", said, value)
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        reason = f": {caught[0].message}" if caught else ""
        fix = "install the build of torch that fits the driver: make clean setup PIP_ARGS=... (see the Makefile)"
        return Finding(
            "cuda", "warn", f"there is an NVIDIA device, but torch {torch.__version__} cannot use it{reason}", value, fix
        )
    return Finding("cuda", "ok", "no device; the CPU is used", value)
