"""The rule of conftest.py that a test must not skip where the shared data sets are: pytest runs on a small suite of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
SUITE = """
import pytest

def test_data(shared_data):
    assert (shared_data / "set" / "file.csv").is_file()

def test_device():
    pytest.skip("needs a CUDA device")

def test_processor():
    pytest.skip("needs a processor with AVX-512 BF16")

@pytest.mark.xfail(reason="known")
def test_known():
    assert False
"""


def run_suite(checkout: Path, *sources: str, require: bool) -> tuple[int, str]:
    """Run each of ``sources`` as a test module of a checkout, ``test_0.py`` and so on; return pytest's exit status and output."""
    tests = checkout / "tests"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST.read_text())
    for number, source in enumerate(sources):
        (tests / f"test_{number}.py").write_text(source)
    environment = {**os.environ, "LARGEREC_REQUIRE_DATA": "1" if require else "0"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "--rootdir", str(checkout), str(tests)]
    command += ["--continue-on-collection-errors"]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_skip_for_want_of_data_is_only_a_skip_on_an_ordinary_machine(tmp_path: Path) -> None:
    status, output = run_suite(tmp_path / "checkout", SUITE, require=False)
    assert status == 0, output
    assert "3 skipped, 1 xfailed" in output
    assert "needs the data sets in ../shared/data" in output


def test_a_skip_for_want_of_data_fails_where_data_are_required(tmp_path: Path) -> None:
    status, output = run_suite(tmp_path / "checkout", SUITE, require=True)
    assert status == 1, output
    assert "LARGEREC_REQUIRE_DATA=1, so this may not be skipped" in output
    assert "2 skipped, 1 xfailed, 1 error" in output  # the skip for want of a device and the expected failure stay


def test_required_data_that_are_there_pass(tmp_path: Path) -> None:
    file = tmp_path / "shared" / "data" / "set" / "file.csv"
    file.parent.mkdir(parents=True)
    file.write_text("user_id,item_id\n")
    status, output = run_suite(tmp_path / "checkout", SUITE, require=True)
    assert status == 0, output
    assert "1 passed, 2 skipped, 1 xfailed" in output


def test_every_way_to_skip_is_caught(tmp_path: Path) -> None:
    sources = (
        'import pytest\npytest.skip("no file of that name", allow_module_level=True)',
        'import pytest\n@pytest.mark.skipif(True, reason="folder is missing")\ndef test_it():\n    pass',
        'import pytest\npytest.importorskip("a_module_that_nobody_has")',
    )
    status, output = run_suite(tmp_path / "checkout", *sources, require=True)
    assert status != 0, output
    assert "= 3 errors in" in output, output
    for reason in ("no file of that name", "folder is missing", "a_module_that_nobody_has"):
        assert any("may not be skipped" in line and reason in line for line in output.splitlines()), output


@pytest.mark.parametrize(("reason", "status"), [("Triton is not installed", 0), ("Triton gives other numbers", 1)])
def test_a_missing_triton_is_a_reason_to_skip_and_nothing_else_of_it_is(tmp_path: Path, reason: str, status: int) -> None:
    source = f"import pytest\ndef test_it():\n    pytest.skip({reason!r})\ndef test_other():\n    pass"
    found, output = run_suite(tmp_path / "checkout", source, require=True)
    assert found == status, output
