"""The page of an audit: what stands in it, that nothing breaks out of it, and that a browser shows it without asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from logs import MINUTE_MS, START_MS, log_of, random_log
from test_report import HOSTILE, assert_safe, needs_chromium, probe
from typer.testing import CliRunner

from largerec.audit import audit
from largerec.cli import app
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.faults import FaultOptions, with_faults
from largerec.report.audit import html, write
from largerec.simulate import SimulateOptions, simulate


def faulty() -> EventLog:
    faults = FaultOptions(bots=0.05, duplicates=0.05, misclicks=0.02, clock_errors=0.02)
    return with_faults(simulate(SimulateOptions(users=300, items=200, events=9000, seed=3)), faults)


def document(log: EventLog) -> dict[str, Any]:
    return audit(log, now=START_MS * 2, data=["my log.csv"]).to_json()


def test_the_page_tells_every_finding_with_what_mends_it() -> None:
    found = document(faulty())
    shown = assert_safe(html(found))
    assert f"{found['shape']['events']:,} events" in shown.words
    assert {"exact duplicates", "users like bots", "times out of order"} <= {one["name"] for one in found["findings"]}
    for one in found["findings"]:
        assert " ".join(one["said"].split()) in shown.words and f"{one['count']:,} " in shown.words
        assert one["command"] is None or one["command"] in shown.words
    for heading in ("Faults", "Leakage", "The shape of the log", "How much there is to learn", "Interests fade"):
        assert heading in shown.words


def test_hostile_ids_stay_text() -> None:
    rows = [(f"{HOSTILE}{n % 9}", f"{HOSTILE}{n % 7}", START_MS + n // 2 * MINUTE_MS) for n in range(300)]
    assert_safe(html(document(log_of(rows + rows[:9]))))


@pytest.mark.parametrize(
    "log",
    [log_of([("a", "x", START_MS)]), log_of([("a", "x", 0)], "order"), log_of([("a", "x", -1), ("b", "y", -1)]), random_log()],
    ids=["one event", "a rank", "no times", "random"],
)
def test_logs_of_which_little_can_be_said_have_a_page(log: EventLog) -> None:
    assert_safe(html(document(log)))


def test_the_command_writes_a_page_and_json(tmp_path: Path) -> None:
    faulty().write(tmp_path / "log.parquet")
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "log.parquet"), "--out", str(tmp_path / "found"), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.output.splitlines()[-1])
    written = json.loads((tmp_path / "found" / "audit.json").read_text())
    assert printed["report"] == str(tmp_path / "found" / "audit.html") and written["findings"] == printed["findings"]
    assert (tmp_path / "found" / "audit.html").read_text() == html(written)
    (tmp_path / "file").write_text("")
    with pytest.raises(LargeRecError, match="cannot be written"):
        write(written, tmp_path / "file")


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page_without_overflow_and_asks_for_nothing(tmp_path: Path, width: int) -> None:
    found = probe(tmp_path, html(document(faulty())), width)
    assert found["inner"] == width and found["scroll"] <= width and found["wide"] == []
    assert found["asked"] == []
