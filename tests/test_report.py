"""The report: what stands in the page, that nothing from a log breaks out of it, and that a browser shows it without asking."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from logs import MINUTE_MS, START_MS, log_of
from runs import copy_of_run, tiny_recipe, trained_run

from largerec import metrics
from largerec.engine import Engine, PopularityScorer
from largerec.errors import LargeRecError
from largerec.evaluate import compare_runs, evaluate
from largerec.recipe import recipe_from
from largerec.report import _event, charts, glance, page, report
from largerec.report.lineage import as_toml, recipe_toml
from largerec.report.results import calibration, thinned
from largerec.report.runs import Run, paired_baselines, read_run
from largerec.sequences import TRAIN, SplitOptions, build_sequences
from largerec.tokenizers import AtomicTokenizer
from largerec.train import train

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = """<script>alert("x")</script>'"><img src=https://evil.example/x onerror=alert(1)></svg></title></style> & \u202egnp"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DAY = 86_400


class Page(HTMLParser):
    """Tags with their attributes, the words, and whether every tag is closed where it should be."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.open, self.wrong = "", list[str](), list[str]()
        self.feed(source)
        self.close()
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += f" {data}" if data[:1].isalpha() and "bdi" not in self.open else data

    def values(self, name: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags if name in attributes]


def assert_safe(source: str) -> Page:
    """Balanced markup without a script, a handler or a request to anywhere, and a policy that would stop one."""
    found = Page(source)
    assert found.wrong == [] and found.open == []
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "form", "base", "image", "use", "foreignobject"}
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert all(
        value.startswith(("#", "data:")) for name in ("href", "src", "xlink:href", "srcset") for value in found.values(name)
    )
    assert not re.search(r"url\(|@import|expression\(", source)
    (policy,) = [a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    ids = found.values("id")
    assert len(ids) == len(set(ids)) and {value[1:] for value in found.values("href") if value[0] == "#"} <= set(ids)
    return found


def made(run: Path, to: Path, *more: Path) -> tuple[dict[str, Any], Page]:
    found = report([run, *more], to)
    source = to.read_text(encoding="utf-8")
    assert found["bytes"] == len(source.encode()) < 400_000
    return found, assert_safe(source)


def write_log(path: Path, *, times: bool = True, users: int = 30, items: int = 12, length: int = 9) -> Path:
    """Item i is followed by item i + 1; two behaviours, ids that are numbers and, beside it, titles of which one is hostile."""
    rows = []
    for user in range(users):
        for step in range(length):
            kind = "buy" if step % 3 == 0 else "<b>view</b>"
            rows.append([100 + user, (user + step) % items, 1_700_000_000 + (user * 3 + step) * DAY, kind])
    head = ["user_id", "item_id", "timestamp", "event_type"]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row if times else [row[0], row[1], row[3]] for row in [head, *rows]])
    with path.with_name(f"{path.stem}.items.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["item_id", "title"], *([item, f"{HOSTILE} {item}"] for item in range(items))])
    return path


# --- one run --------------------------------------------------------------------------------------------------------------


def test_a_page_holds_the_numbers_of_the_run(tmp_path: Path) -> None:
    run = trained_run()
    found, shown = made(run, tmp_path / "page.html")
    result = json.loads((run / "result.json").read_text())
    sequences = read_run(run).bundle.sequences()
    assert f"{len(sequences.item_N):,} events of 80 users" in shown.words
    assert f"learned from {(sequences.stage_N == TRAIN).sum():,} training events of 80 users" in shown.words
    for name, rows in (("ndcg@10", result["test"]), ("recall@10", result["test"]), ("ndcg@10", result["test_unmasked"])):
        assert page.number(rows[name]) in shown.words
    assert "best possible" in shown.words and page.number(result["best_possible"]["ndcg@10"]) in shown.words
    low, high = result["intervals"]["ndcg@10"]
    assert f"[{page.number(low)}, {page.number(high)}]" in shown.words
    assert "On the 80 test targets of 80 users" in shown.words and "The test has only 80 users" in shown.words
    assert result["data"] in shown.words and "The log is generated" in shown.words
    for heading in ("The log at a glance", "Paired differences", "Slices", "Calibration of the scores", "Example users"):
        assert heading in shown.words
    assert found["metric"] == "ndcg@10" and found["runs"] == [{"dir": str(run), "name": "tiny", "evaluated": True}]
    assert any("80 test targets" in line for line in found["summary"]) and all("<" not in line for line in found["summary"])
    assert result["n_test_evaluations"] == json.loads((run / "result.json").read_text())["n_test_evaluations"]


def test_hostile_titles_ids_that_are_numbers_and_behaviours(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", f"data.path={write_log(tmp_path / 'log.csv')}", "train.max_epochs=2")
    train(recipe, quiet=True)
    evaluate(tmp_path / "run")
    _, shown = made(tmp_path / "run", tmp_path / "page.html")
    assert '<script>alert("x")</script>' in shown.words, "as text, not as markup"
    assert "270 events of 30 users on 12 items, from 2023-11-14 to 2024-02-17" in shown.words
    assert re.search(r"<b>view</b>\s*180\s*67 %", shown.words) and re.search(r"buy\s*90\s*33 %", shown.words)
    labels = " ".join(shown.values("aria-label"))
    assert "Events per day from 2023-11-14" in labels and "9 to 16 events: 30 users" in labels
    assert re.search(r"User 1[0-2][0-9]", shown.words)


def test_a_page_of_a_log_without_a_clock(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", times=False)
    train(tiny_recipe(tmp_path / "run", f"data.path={log}", "data.time_kind=order", "train.max_epochs=1"), quiet=True)
    evaluate(tmp_path / "run")
    found, shown = made(tmp_path / "run", tmp_path / "page.html")
    assert "no clock, so there is no time axis" in shown.words
    assert "Events: 210 training, 30 validation, 30 test" in shown.words
    assert any("nothing here knows of time" in warning for warning in found["warnings"])
    assert "19" not in re.findall(r"\b(\d\d)\d\d-\d\d-\d\d\b", shown.words), "no dates are made up"


def test_a_run_that_was_only_trained_says_what_is_missing_and_keeps_the_test_unseen(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", "train.max_epochs=1"), quiet=True)
    before = (tmp_path / "run" / "result.json").read_bytes()
    found, shown = made(tmp_path / "run", tmp_path / "page.html")
    assert "The test part has not been looked at yet" in shown.words
    assert f"largerec evaluate {tmp_path / 'run'}" in shown.words
    assert "Metrics on the validation part" in shown.words and "Slices" not in shown.words
    assert found["runs"][0]["evaluated"] is False
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert not list((tmp_path / "run").glob("ranks-*"))
    (tmp_path / "run" / "result.json").unlink()
    _, shown = made(tmp_path / "run", tmp_path / "page.html")
    assert "Training has not finished" in shown.words and "Example users" not in shown.words


def test_an_example_shows_history_lists_and_truth_as_they_were(tmp_path: Path) -> None:
    """No item of the history is recommended, and the mark stands exactly where the truth is in the list."""
    from largerec.engine import load
    from largerec.report import _examples

    run = read_run(trained_run())
    examples = _examples(load(run.bundle.path), run)
    assert 0 < len(examples) <= 6
    frame = run.bundle.read_parquet("ranks-test.parquet")
    for one in examples:
        kept = frame.filter((pl.col("user_id") == one["user_id"]) & (pl.col("item_id") == one["truth"]["item_id"]))["rank"].item()
        assert one["rank"] == kept
        listed = [item["item_id"] for item in one["recommendations"]]
        assert len(listed) == 10 and not set(listed) & {item["item_id"] for item in one["history"]}
        assert (one["truth"]["item_id"] in listed) == (kept <= 10)
        assert all(item["title"] for item in one["history"])
    _, shown = made(run.bundle.path, tmp_path / "page.html")
    assert shown.words.count("✓") == sum(one["rank"] <= 10 for one in examples)


def test_the_default_place_and_the_places_that_cannot_be(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    assert report([run])["report"] == str(run / "report.html")
    assert (run / "report.html").is_file()
    assert report([run], tmp_path / "new" / "page.html")["report"] == str(tmp_path / "new" / "page.html")
    for to, message in ((tmp_path, "is a folder; name a file in it"), (run / "result.json" / "page.html", "cannot be written")):
        with pytest.raises(LargeRecError, match=message):
            report([run], to)
    with pytest.raises(LargeRecError, match="is named twice; give each run once"):
        report([run, run])
    with pytest.raises(LargeRecError, match="name at least one run"):
        report([])
    overwrite = tiny_recipe(run, "run.overwrite=true", "train.max_epochs=1")
    train(overwrite, quiet=True)
    assert not (run / "report.html").exists(), "a report goes with the run that it is about"


# --- several runs ---------------------------------------------------------------------------------------------------------


def test_runs_on_one_split_are_set_side_by_side_with_paired_differences(tmp_path: Path) -> None:
    first, second = copy_of_run(tmp_path / "a"), copy_of_run(tmp_path / "b", "seed=1")
    found, shown = made(first, tmp_path / "page.html", second)
    test = compare_runs(second, first)["ndcg@10"]
    assert re.search(rf"b minus a\s*{re.escape(page.signed(test['difference']))}", shown.words)
    assert f"to a {page.signed(test['difference'])}, " in found["summary"][1]
    assert "Where the recipes differ" in shown.words and re.search(r"seed\s*0\s*1\b", shown.words)
    assert "Part 1: " not in shown.words
    assert report([first, second])["report"] == str(tmp_path / "report.html"), "beside the first run"


def test_runs_on_different_logs_stand_apart(tmp_path: Path) -> None:
    first, other = copy_of_run(tmp_path / "a"), tmp_path / "b"
    train(tiny_recipe(other, "data.simulate.seed=5", "train.max_epochs=1"), quiet=True)
    evaluate(other)
    found, shown = made(first, tmp_path / "page.html", other)
    assert "measured on 2 different logs" in shown.words and "Part 1: a" in shown.words and "Part 2: b" in shown.words
    assert "b minus a" not in shown.words and "a minus b" not in shown.words
    assert "a minus popularity" in shown.words and "b minus popularity" in shown.words
    assert len(found["runs"]) == 2


def test_a_family_trained_beside_stands_in_the_page_of_the_run(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    copy_of_run(run / "compare" / "twin", "seed=1")
    copy_of_run(run / "compare" / "foreign", "data.simulate.seed=7")
    _, shown = made(run, tmp_path / "page.html")
    assert "hstu minus twin" in shown.words and "foreign" not in shown.words


# --- parts ----------------------------------------------------------------------------------------------------------------


def test_the_paired_test_with_a_baseline_is_that_of_its_ranks() -> None:
    run = read_run(trained_run())
    own, beside = (run.bundle.read_parquet(f"ranks-{name}.parquet") for name in ("test", "baselines"))
    assert beside.columns == list(run.result["baselines"]) and beside.height == own.height
    for name, found in run.result["baselines"].items():
        assert metrics.ndcg(beside[name].to_numpy(), 10).mean() == pytest.approx(found["ndcg@10"])
    tests = {one.second: one.tests["ndcg@10"] for one in paired_baselines(run)}
    gap = run.result["test"]["ndcg@10"] - run.result["baselines"]["popularity"]["ndcg@10"]
    assert tests["popularity"]["difference"] == pytest.approx(gap)


def test_a_run_of_an_older_version_has_no_paired_baselines_and_says_why(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    (run / "ranks-baselines.parquet").unlink()
    _, shown = made(run, tmp_path / "page.html")
    assert "There is no paired test of the two" in shown.words and "by an older version kept no ranks" in shown.words


def calibrated(run: Run, predicted: float, observed: float) -> str:
    one = {"n": 10, "predicted": predicted, "observed": observed, "low": observed / 2, "high": min(1.0, 2 * observed)}
    found = {"targets": 5, "k": 10, "expected": predicted, "observed": observed, "interval": [observed / 2, 2 * observed]}
    return calibration([(0, run, found | {"bins": [one]})])


def test_calibration_says_what_it_finds_and_what_scores_mean() -> None:
    run = read_run(trained_run())
    assert "too sure of itself" in calibrated(run, 0.5, 0.1) and "too modest" in calibrated(run, 0.1, 0.5)
    assert "right within the noise" in calibrated(run, 0.11, 0.1)
    assert "only approximately" in calibrated(run, 0.1, 0.1), "the tiny recipe samples its negatives"
    said = calibrated(read_run(trained_run("objective={name='bce'}")), 0.1, 0.1)
    assert "not meant as probabilities" in said
    said = calibrated(read_run(trained_run("objective={name='softmax'}")), 0.1, 0.0)
    assert "meant as probabilities" in said and "lies on the lower edge" in said


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 37, [0, 10, 20, 30]),
        (-0.012, 0.021, [-0.01, 0, 0.01, 0.02]),
        (990, 1010, [990, 995, 1000, 1005, 1010]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert charts.linear_ticks(low, high) == ticks


def test_ticks_on_logarithms_and_of_time() -> None:
    assert charts.log_ticks(1, 9_547) == [1, 10, 100, 1000]
    assert charts.log_ticks(2, 30) == [2, 5, 10, 20]
    start = 1_704_067_200_000  # 2024-01-01
    assert [text for _, text in charts.time_ticks(start, start + 90 * 86_400_000)] == ["Jan 2024", "Feb 2024", "Mar 2024"]
    assert [text for _, text in charts.time_ticks(0, start)][:2] == ["1980", "2000"]
    assert [text for _, text in charts.time_ticks(start, start + 3 * 3_600_000)][:2] == ["00:00", "01:00"]


@pytest.mark.parametrize(
    ("days", "name", "bins"),
    [
        ([0, 0, 0], "minute", 1),
        ([0, 1], "hour", 25),
        ([0, 100], "day", 101),
        ([3, 365 * 2], "week", 105),
        ([0, 365 * 9], "month", 108),
    ],
)
def test_activity_is_counted_in_the_finest_bins_that_fit(days: list[int], name: str, bins: int) -> None:
    time_N = np.array(days) * 86_400_000
    found, bin_N, edge_B1 = glance.activity(time_N)
    assert (found, len(edge_B1) - 1) == (name, bins)
    assert bin_N[0] == 0 and bin_N[-1] == bins - 1
    assert all(edge_B1[b] <= t < edge_B1[b + 1] for b, t in zip(bin_N, time_N, strict=True))


def test_a_glance_counts_untimed_events_and_does_not_date_them() -> None:
    rows = [(user, "early", -1) for user in range(4) for _ in range(2)]
    rows += [(user, "late", START_MS + step * MINUTE_MS) for user in range(4) for step in range(5)]
    sequences = build_sequences(log_of(rows), SplitOptions())
    said = glance.at_a_glance(sequences, "a log", [])
    assert "from 2020-09-13 to 2020-09-13 (UTC), 8 of them without a time" in said
    assert "Events per minute" in said and "Events without a time, which are left out: 8." in said
    assert "1969" not in said and "1970" not in said
    tokenizer = AtomicTokenizer.fit(sequences)
    engine = Engine(PopularityScorer(tokenizer.counts_V), tokenizer, sequences)
    dates = [_event(engine, row).get("date") for row in range(7)]
    assert dates == [None] * 2 + ["2020-09-13"] * 5
    untimed = replace(sequences, time_N=np.full_like(sequences.time_N, -1))
    said = glance.at_a_glance(untimed, "a log", [])
    assert "at unknown times" in said and "None of the 28 events has a time" in said


def test_weeks_begin_on_mondays() -> None:
    _, _, edge_B1 = glance.activity(np.array([0, 365 * 2]) * 86_400_000)
    assert {(edge.item().weekday()) for edge in edge_B1.astype("datetime64[ms]")} == {0}


def test_a_chart_draws_its_points_inside_and_says_them() -> None:
    dot = charts.Point(5, 1e9, "a < b", 1e8, 2e9)
    drawn = charts.lines([charts.Line("a&b", [0, 10], [0, 1e9], 7, [dot])], charts.Axis("x"), charts.Axis("y"), 'alt "text"')
    found = Page(drawn)
    assert found.wrong == [] and found.values("aria-label") == ['alt "text"'] and "a < b" in found.words
    assert "line c1 d1" in found.values("class"), "a seventh series and on: its own dash"
    places = [tuple(map(float, pair.split(","))) for points in found.values("points") for pair in points.split()]
    assert places and all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in places)
    for empty in (
        charts.lines([], charts.Axis("x", "log"), charts.Axis("y"), ""),
        charts.columns([], [], "x", charts.Axis("y"), "", []),
    ):
        assert Page(empty).wrong == []


def test_a_long_curve_is_thinned_to_means() -> None:
    xs, ys = thinned(range(10_000), [1.0] * 5_000 + [3.0] * 5_000)
    assert len(xs) == 240 and np.mean(ys) == pytest.approx(2.0, abs=0.02) and ys[0] == 1.0 and ys[-1] == 3.0


def test_the_recipe_in_the_page_makes_the_same_run() -> None:
    run = read_run(trained_run())
    again = recipe_from(tomllib.loads(recipe_toml(run)))
    assert again.run.dir == f"{run.recipe.run.dir}-again"
    assert again.model_copy(update={"run": run.recipe.run}) == run.recipe
    odd = {"name": 'a "b" \\ \n\t\x7f é', "group": {"inner": {"list": [1, 2.5, "x"], "yes": True}, "none": None}}
    assert tomllib.loads(as_toml(odd)) == {"name": odd["name"], "group": {"inner": {"list": [1, 2.5, "x"], "yes": True}}}
    keys = {"my col": {"a.b": 1, "plain-1": {"é": 2}}, 'x"\n': [1], "": 3}
    assert tomllib.loads(as_toml(keys)) == keys


def test_texts_and_numbers() -> None:
    assert page.text("<&>\"'") == "<bdi>&lt;&amp;&gt;&quot;&#x27;</bdi>"
    assert len(page.plain(page.text("x" * 10_000))) == page.LONGEST
    assert [page.number(value) for value in (0.05391, -0.0012, 1.0, 0.0, 1234.5, None, float("nan"))] == [
        *(".0539", "-.0012", "1.0000", ".0000", "1,234.5000", "-", "-")
    ]
    assert [page.p_value(p) for p in (0.0001, 0.0312, 1.0)] == ["p < .001", "p = .031", "p = 1.000"]
    assert (page.signed(0.01), page.signed(-0.01), page.share(1, 3), page.share(1, 300)) == ("+.0100", "-.0100", "33 %", "0.3 %")


# --- in a browser ---------------------------------------------------------------------------------------------------------

# The page stands in a frame of its own, whole and with its policy; the page around it is what measures. (A window would do, but
# Chromium makes none narrower than 500 pixels.)
PROBE = """<!doctype html><html style="color-scheme: light dark"><body><iframe style="width: WIDTHpx; height: 900px; border: 0"
srcdoc="PAGE"></iframe><script>onload = () => {
  const inner = document.querySelector("iframe").contentWindow, page = inner.document, root = page.documentElement;
  const wide = [...page.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > inner.innerWidth + 1);
  document.documentElement.dataset.probe = JSON.stringify({inner: inner.innerWidth, scroll: root.scrollWidth,
    asked: inner.performance.getEntriesByType("resource").map(e => e.name), ran: "ran" in root.dataset,
    paper: inner.getComputedStyle(page.body).backgroundColor, wide: wide.map(e => e.outerHTML.slice(0, 90)),
    charts: [...page.querySelectorAll("svg.chart")].map(e => e.getBoundingClientRect().width)});
}</script></body></html>"""


def chromium(folder: Path, *arguments: str) -> str:
    """Run a headless Chromium on nothing but its arguments; what it prints."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(
        [str(CHROMIUM), *flags, *arguments], capture_output=True, text=True, check=True, timeout=100, env=environment
    )
    return done.stdout


def probe(folder: Path, source: str, width: int, *flags: str) -> dict[str, Any]:
    """What a browser makes of a page of this width."""
    around = PROBE.replace("WIDTH", str(width)).replace("PAGE", escape(source))
    (folder / "probe.html").write_text(around, encoding="utf-8")
    shown = chromium(folder, *flags, "--dump-dom", (folder / "probe.html").as_uri())
    (found,) = [attributes["data-probe"] for tag, attributes in Page(shown).tags if "data-probe" in attributes]
    document: dict[str, Any] = json.loads(str(found))
    return document


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@needs_chromium
@pytest.mark.parametrize(("width", "scheme", "paper"), [(390, 1, "rgb(255, 255, 255)"), (1200, 0, "rgb(20, 23, 27)")])
def test_a_browser_shows_the_page_without_overflow_and_asks_for_nothing(
    tmp_path: Path, width: int, scheme: int, paper: str
) -> None:
    recipe = tiny_recipe(tmp_path / "run", f"data.path={write_log(tmp_path / 'log.csv')}", "train.max_epochs=1")
    train(recipe, quiet=True)
    evaluate(tmp_path / "run")
    made(tmp_path / "run", tmp_path / "page.html")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = probe(tmp_path, source, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert found["inner"] == width
    assert found["scroll"] <= width and found["wide"] == []
    assert found["asked"] == []
    assert found["paper"] == paper, "the page follows the system's light or dark"
    assert len(found["charts"]) == 6 and all(240 <= chart <= 460 for chart in found["charts"])


@needs_chromium
def test_the_policy_stops_what_might_get_into_the_page(tmp_path: Path) -> None:
    """A script put into the file does nothing with the policy, and does something without it."""
    report([trained_run()], tmp_path / "page.html")
    intruder = "<script>document.documentElement.dataset.ran = 1</script></body>"
    source = (tmp_path / "page.html").read_text(encoding="utf-8").replace("</body>", intruder)
    assert probe(tmp_path, source, 600)["ran"] is False
    assert probe(tmp_path, re.sub("<meta http-equiv[^>]*>", "", source), 600)["ran"] is True


@needs_chromium
def test_a_browser_prints_the_page(tmp_path: Path) -> None:
    report([trained_run()], tmp_path / "page.html")
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri())
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and len(printed) > 20_000


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("metrics.jsonl", lambda text: b"\xff\xfe", r"can't decode"),
        ("metrics.jsonl", lambda text: text + b"[1]\n", r"line \d+ is '\[1\]'"),
        ("metrics.jsonl", lambda text: text + b'{"validation": 5}\n', r"line \d+ is "),
        ("result.json", lambda text: with_key(text, "test", []), r"test is \[\]"),
        ("result.json", lambda text: with_key(text, "test", {"ndcg@7x": 0.5}), r"test holds 'ndcg@7x': 0.5"),
        ("result.json", lambda text: with_key(text, "test", {"ndcg@7": "much"}), r"test holds 'ndcg@7': 'much'"),
        ("result.json", lambda text: with_key(text, "targets", 5), r"targets is 5"),
        ("result.json", lambda text: with_key(text, "targets", None), r"targets is None"),
        ("result.json", lambda text: with_key(text, "intervals", None), r"intervals is None"),
        ("result.json", lambda text: with_key(text, "params", None), r"params is None"),
        ("lineage.json", lambda text: with_key(text, "code", []), r"code is \[\]"),
        ("lineage.json", lambda text: with_key(text, "notes", "abc"), r"notes is 'abc'"),
    ],
)
def test_a_damaged_document_is_told_as_such(name: str, change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    (run / name).write_bytes(change((run / name).read_bytes()))
    with pytest.raises(LargeRecError, match=rf"{re.escape(str(run / name))} is damaged \(.*{said}.*\); restore the file"):
        report([run])


def with_key(text: bytes, key: str, value: Any) -> bytes:
    """The document with another value of a key, or with None without it."""
    old = {name: found for name, found in json.loads(text).items() if name != key}
    return json.dumps(old if value is None else {**old, key: value}).encode()


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = copy_of_run(tmp_path / "run")
    whole = read_run(run).log
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 9')
    assert read_run(run).log == whole
