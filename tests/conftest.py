"""What all tests share: quiet threads, deterministic hypothesis, the shared data sets, and no silent skip where they are."""

from __future__ import annotations

import os

# Read once, when torch is first imported, so they must be set before any test module is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Set by .ci/run where the data sets are: from then on a skipped test is a failure, because a skip would hide that a test
# which needs them did not run. Only what the machine itself lacks may still be a reason, and Triton, which only those install
# who have a CUDA device or want to check its kernels without one.
REQUIRE_DATA = "LARGEREC_REQUIRE_DATA"
MACHINE_REASONS = ("cuda", "gpu", "needs a processor with", "triton is not installed")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

hypothesis.settings.register_profile("largerec", deadline=None, derandomize=True)
hypothesis.settings.load_profile("largerec")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; the test is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the data sets in ../shared/data, and {SHARED_DATA} is not there")
    return SHARED_DATA


def skip_is_allowed(reason: str) -> bool:
    """Whether a test may skip for this reason when the data sets are required."""
    return any(word in reason.lower() for word in MACHINE_REASONS)


def refuse_skip(report: Report) -> Report:
    """Turn a skip that is not allowed into a failure; leave every other outcome (an expected failure, too) as it is."""
    if os.environ.get(REQUIRE_DATA) != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not skip_is_allowed(reason):
        report.outcome = "failed"
        report.longrepr = f"{REQUIRE_DATA}=1, so this may not be skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Apply the rule to tests and fixtures."""
    return refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Apply the rule to modules that skip as a whole."""
    return refuse_skip((yield))
