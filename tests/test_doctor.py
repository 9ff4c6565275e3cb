"""The doctor sees what is wrong with a machine: each finding is provoked."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from largerec import doctor

REQUIREMENTS = ["torch==2.13.0", "numpy<3,>=2.2", 'tensorboard<3; extra == "tracking"', "pytest<10; extra == 'dev'"]


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], requirements: list[str] = REQUIREMENTS) -> None:
    """Make the doctor believe that these packages, LargeRec among them, are installed and nothing else is."""

    def version(package: str) -> str:
        if package not in versions:
            raise importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(importlib.metadata, "requires", lambda package: requirements)
    monkeypatch.setattr(importlib.metadata, "version", version)


def printed(report: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(doctor.render(report))
    return console.file.getvalue()


def test_the_report_is_json_and_names_everything_once() -> None:
    report = doctor.diagnose()
    assert json.loads(json.dumps(report)) == report
    names = [finding["name"] for finding in report["findings"]]
    assert len(names) == len(set(names))
    expected = {"python", "packages", "cores", "OMP_WAIT_POLICY", "memory", "disk", "working folder", "instructions", "torch"}
    assert expected | {"matrix rate", "cuda", "kernels"} <= set(names)
    assert all(finding["fix"] for finding in report["findings"] if finding["status"] != "ok")


def test_the_status_is_the_worst_finding_and_is_printed_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_python", "check_packages", "check_cores", "check_memory", "check_disk", "check_instructions"):
        monkeypatch.setattr(doctor, name, lambda name=name: doctor.Finding(name, "ok", "fine"))
    monkeypatch.setattr(doctor, "import_torch", lambda: doctor.Finding("torch", "ok", "fine"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    report = doctor.diagnose()
    assert report["status"] == "ok"
    assert "everything is fine" in printed(report)

    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    report = doctor.diagnose()
    assert report["status"] == "warn"
    assert "-> export OMP_WAIT_POLICY=PASSIVE" in printed(report)

    broken = doctor.Finding("torch", "fail", "cannot be imported: OSError: libgomp [1]", None, 'pip install ".[x]"')
    monkeypatch.setattr(doctor, "import_torch", lambda: broken)
    report = doctor.diagnose()
    assert report["status"] == "fail"
    assert "libgomp [1]" in printed(report)  # brackets are text, not markup
    assert 'pip install ".[x]"' in printed(report)
    assert "matrix rate" not in printed(report)


@pytest.mark.parametrize(
    ("policy", "status"), [(None, "warn"), ("", "warn"), ("ACTIVE", "warn"), ("PASSIVE", "ok"), ("passive", "ok")]
)
def test_waiting_policy(monkeypatch: pytest.MonkeyPatch, policy: str | None, status: str) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    finding = doctor.check_waiting()
    assert finding.status == status
    assert ("spin" in finding.text) == (status == "warn")


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().status == "ok"
    monkeypatch.setattr(doctor, "MIN_PYTHON", (99, 0))
    finding = doctor.check_python()
    assert finding.status == "fail"
    assert "99.0" in finding.fix


def test_packages_are_read_from_what_largerec_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"largerec": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"})
    finding = doctor.check_packages()
    assert (finding.status, finding.value) == ("ok", {"largerec": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"})

    installed(monkeypatch, {"largerec": "0.1.0", "torch": "2.13.0"})
    finding = doctor.check_packages()
    assert finding.status == "fail"
    assert "numpy missing" in finding.text
    assert "constraints.txt" in finding.fix


def test_running_without_an_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(package: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert doctor.check_packages().status == "warn"
    assert doctor.check_extras() == []


def test_extras_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"largerec": "0.1.0"})
    (finding,) = doctor.check_extras()  # dev is for developers and is left out
    assert (finding.name, finding.status, finding.value) == ("extra tracking", "ok", {"tensorboard": None})
    assert '".[tracking]"' in finding.fix

    installed(monkeypatch, {"tensorboard": "2.21.0"})
    (finding,) = doctor.check_extras()
    assert finding.fix == ""
    assert "2.21.0" in finding.text


def test_a_container_limits_cores_and_memory(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "process").write_text("1:cpu:/old\n0::/outer/inner\n")
    groups = doctor.own_cgroup(tmp_path, tmp_path / "process")
    assert groups == [inner, inner.parent, tmp_path]

    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("max\n")
    allowed = doctor.usable_cores(groups)
    assert allowed == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    (inner.parent / "cpu.max").write_text("50000 100000\n")
    assert doctor.usable_cores(groups) == 0.5

    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    6291456 kB\n")
    assert doctor.memory_bytes(meminfo, groups) == (8 << 30, 6 << 30)
    (inner.parent / "memory.max").write_text(f"{4 << 30}\n")
    (inner.parent / "memory.current").write_text(f"{1 << 30}\n")
    assert doctor.memory_bytes(meminfo, groups) == (4 << 30, 3 << 30)


def test_no_control_groups(tmp_path: Path) -> None:
    assert doctor.own_cgroup(tmp_path, tmp_path / "missing") == []
    total, available = doctor.memory_bytes(tmp_path / "missing", [])
    assert total > 0
    assert available is None


@pytest.mark.parametrize(
    ("memory", "status"), [((8 << 30, 4 << 30), "ok"), ((8 << 30, 1 << 30), "warn"), ((1 << 30, None), "warn")]
)
def test_little_memory(monkeypatch: pytest.MonkeyPatch, memory: tuple[int, int | None], status: str) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: memory)
    assert doctor.check_memory().status == status


def test_little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # as shutil's own
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 << 30, 0, 10 << 30))
    assert doctor.check_disk().status == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 << 30, 10 << 30, 1 << 20))
    finding = doctor.check_disk()
    assert finding.status == "warn"
    assert "run.dir" in finding.fix


def test_the_working_folder_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.check_folder().status == "ok"
    assert list(tmp_path.iterdir()) == []
    # A folder that is gone refuses writes for every user, root too.
    monkeypatch.setattr(Path, "cwd", lambda: tmp_path / "gone")
    finding = doctor.check_folder()
    assert finding.status == "fail"
    assert "No such file" in finding.text


@pytest.mark.parametrize(
    ("cpuinfo", "status", "found"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n", "ok", 5),
        ("processor : 0\nflags\t\t: fpu sse4_2 avx\n", "warn", 0),
        ("processor : 0\nFeatures\t: fp asimd bf16\n", "ok", 0),
    ],
)
def test_instructions(tmp_path: Path, cpuinfo: str, status: str, found: int) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    finding = doctor.check_instructions(file)
    assert (finding.status, len(finding.value)) == (status, found)


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 8.0)
    assert doctor.check_torch(torch).status == "ok"
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2.0)
    finding = doctor.check_torch(torch)
    assert finding.status == "warn"
    assert "threads=2" in finding.fix


def test_rates_are_measured_and_threads_put_back() -> None:
    before = torch.get_num_threads()
    value = doctor.check_matrix_rate(torch).value
    assert torch.get_num_threads() == before == value["threads"]
    assert all(value[name] > 0 for name in ("fp32_gflops", "bf16_gflops", "fp32_gflops_one_thread", "bf16_gflops_one_thread"))


@pytest.mark.parametrize(
    ("one", "many", "bf16", "status", "words"),
    [
        (100.0, 200.0, 470.0, "ok", "bf16 is worthwhile"),
        (100.0, 200.0, 20.0, "ok", "stay with fp32"),
        (100.0, 20.0, 470.0, "warn", "slower than one"),
        (1.0, 2.0, 1.0, "warn", "slow"),
    ],
)
def test_what_rates_mean(one: float, many: float, bf16: float, status: str, words: str) -> None:
    value = {
        "threads": 2,
        "fp32_gflops_one_thread": one,
        "fp32_gflops": many,
        "bf16_gflops_one_thread": bf16,
        "bf16_gflops": bf16,
    }
    finding = doctor.judge_matrix_rate({**value, "bf16_worthwhile": bf16 > one})
    assert finding.status == status
    assert words in finding.text


def test_the_advice_follows_the_single_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning threads once made bf16 look slower than fp32 on a machine where it is four times faster."""
    rates = {(torch.float32, 1): 100.0, (torch.float32, 2): 168.0, (torch.bfloat16, 1): 470.0, (torch.bfloat16, 2): 37.0}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor, "matrix_gflops", lambda torch, dtype, threads: rates[dtype, threads])
    assert doctor.check_matrix_rate(torch).value["bf16_worthwhile"] is True


def test_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="A device", total_memory=80 << 30, major=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    finding = doctor.check_cuda(torch)
    assert (finding.status, finding.value) == ("ok", [{"name": "A device", "memory": 80 << 30}])
    assert "80.0 GiB" in finding.text and "not for train.device=cuda" in finding.text  # this build of torch knows no CUDA
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "train.device=cuda trains on it with" in doctor.check_cuda(torch).text
    device.major = 7
    assert "compute capability 8" in doctor.check_cuda(torch).text


def test_a_device_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
    finding = doctor.check_cuda(torch)
    assert finding.status == "warn"
    assert "PIP_ARGS" in finding.fix


def test_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = doctor.import_torch()
    assert isinstance(finding, doctor.Finding)
    assert finding.status == "fail"


def test_kernels_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from largerec.kernels import cpu

    monkeypatch.setattr(cpu, "available", lambda: (True, "compiled for x86-64-v3"))
    assert (doctor.check_kernels().status, doctor.check_kernels().text) == ("ok", "compiled for x86-64-v3")
    monkeypatch.setattr(cpu, "available", lambda: (False, "plain torch, because there is no C++ compiler"))
    finding = doctor.check_kernels()
    assert finding.status == "warn" and "install g++" in finding.fix


def test_a_working_folder_that_was_removed_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    found = doctor.diagnose()
    assert {one["name"] for one in found["findings"] if one["status"] == "fail"} >= {"disk", "working folder"}
    monkeypatch.chdir(tmp_path)
