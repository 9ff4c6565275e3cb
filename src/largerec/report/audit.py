"""An audit as one HTML page to look at and one JSON file to act on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from largerec.forgetting import SHOWS_EVENTS
from largerec.report import charts, page
from largerec.report.glance import date
from largerec.writing import write_text

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FOOT = f"Made by LargeRec. This page is one file and asks for nothing outside it. {SHOWS_EVENTS}"


def write(document: dict[str, Any], folder: str | Path) -> dict[str, str]:
    """Write ``audit.html`` and ``audit.json`` of an audit's document into a folder; return where they are.

    Raises:
        LargeRecError: the folder cannot be written to.
    """
    target = Path(folder)
    contents = {"audit.html": html(document), "audit.json": json.dumps(document, default=str, indent=1) + "\n"}
    for name, content in contents.items():
        write_text(target / name, content, "Give another folder with --out.")
    return {"report": str(target / "audit.html"), "json": str(target / "audit.json")}


def html(document: dict[str, Any]) -> str:
    """The page of an audit's document (see ``Audit.to_json``)."""
    shape, findings = document["shape"], document["findings"]
    found = {kind: [one for one in findings if one["kind"] == kind] for kind in ("fault", "leakage", "information")}
    sections = [
        ("faults", "Faults", _findings(found["fault"], "No fault was found.")),
        (
            "leakage",
            "Leakage",
            f"<p>Looked at for {page.text(document['protocol'])}.</p>" + _findings(found["leakage"], "None was found."),
        ),
        ("shape", "The shape of the log", _shape(shape)),
        (
            "information",
            "How much there is to learn",
            _information(document["information"]) + _findings(found["information"], ""),
        ),
    ]
    if "order" in document:
        sections.append(("order", "Whether order matters", _order(document["order"])))
    if document["drift"] is not None:
        sections.append(("drift", "How it changes", _drift(document["drift"])))
    notes = "".join(f"<li>{page.text(note)}</li>" for note in document["notes"])
    if notes:
        sections.append(("notes", "What was noticed while the log was read", f'<ul class="plain">{notes}</ul>'))
    return page.document(f"Audit of {document['source']}", _head(document), [("", sections)], FOOT)


def _order(found: dict[str, Any]) -> str:
    """The shuffle test: its verdict, and a row for each way of learning and asking."""
    seeds = ", ".join(map(str, found["seeds"]))
    rows = [
        ("in order", "in order", found["ordered"], None),
        ("shuffled", "shuffled", found["shuffled"], found["loss"]["relative"]),
        ("in order", "shuffled", found["asked_shuffled"], found["loss_asked"]["relative"]),
    ]
    cells = "".join(
        f"<tr><td>{learned}</td><td>{asked}</td><td>{value:.4f}</td><td>{page.text(_share(loss))}</td></tr>"
        for learned, asked, value, loss in rows
    )
    return (
        f"<p>{escape(found['said'])} {found['targets']:,} questions (each user's last training event), seeds {seeds}; "
        "validation and test were not read.</p><table><thead><tr><th>histories learned</th><th>histories asked</th>"
        f"<th>NDCG@10</th><th>lost</th></tr></thead><tbody>{cells}</tbody></table>"
    )


def _share(loss: dict[str, float | None] | None) -> str:
    if loss is None or loss["value"] is None or loss["low"] is None or loss["high"] is None:
        return ""
    return f"{loss['value']:.1%} [{loss['low']:.1%}, {loss['high']:.1%}]"


def _head(document: dict[str, Any]) -> str:
    shape, counts = document["shape"], document["counts"]
    when = "in an order without a clock"
    if "time" in shape:
        when = f"from {date(shape['time']['first_ms'])} to {date(shape['time']['last_ms'])} (UTC), wrong times left out"
    said = (
        f"<strong>{shape['events']:,} events</strong> of {shape['users']:,} users on {shape['items']:,} items, {when}. The audit "
        f"trains nothing and changes nothing."
    )
    cards = [
        (f"{counts[one]:,}", word) for one, word in (("serious", "serious"), ("warn", "to look at"), ("info", "good to know"))
    ]
    cards.append((f"{100 * shape['density']:.3g} %", "density"))
    markup = "".join(f"<div class=card><b>{value}</b><span>{name}</span></div>" for value, name in cards)
    worst = [one for one in document["findings"] if one["severity"] == "serious"]
    listed = "".join(f"<li>{escape(one['said'])}</li>" for one in worst)
    warned = f'<div class="warnings"><strong>Mend before you train</strong><ul>{listed}</ul></div>' if worst else ""
    return f'<p class="lead">{said}</p><div class="cards">{markup}</div>{warned}'


def _findings(found: Sequence[dict[str, Any]], nothing: str) -> str:
    """Each finding: what it is, how much of it, what mends it, and examples on a click."""
    parts = []
    for one in found:
        share = f"{100 * one['share']:.3g} %"
        more = ""
        if one["examples"]:
            head = list(dict.fromkeys(name for example in one["examples"] for name in example))
            rows = [[page.text(example.get(name, "")) for name in head] for example in one["examples"]]
            table = page.table([page.text(name.replace("_", " ")) for name in head], rows, label=f"Examples of {one['name']}")
            more = page.details("Examples", table)
        command = f"<pre><code>{escape(one['command'])}</code></pre>" if one["command"] else ""
        parts.append(
            f"<article><h3>{page.text(one['name'])} <small>{one['severity']}: {one['count']:,} {page.text(one['unit'])}, "
            f"{share}</small></h3><p>{escape(one['said'])}</p>"
            f'<p class="soft">{escape(one["cure"])}</p>{command}{more}</article>'
        )
    return "".join(parts) or (f"<p>{nothing}</p>" if nothing else "")


def _shape(shape: dict[str, Any]) -> str:
    drawn = [_popularity(shape["popularity"]), _lengths(shape["history_length"])]
    if "time" in shape:
        time = shape["time"]
        drawn += [
            _spans(time, "events", "Activity over time", f"Events per {time['bin']}."),
            _columns([str(hour) for hour in range(24)], time["by_hour"], "Activity by hour", "hour of the day (UTC)"),
            _columns(WEEKDAYS, time["by_weekday"], "Activity by weekday", "day (UTC)"),
            _spans(time, "new_users", "New users", f"{_rate(time['new_users_a_week'])} cold starts of users a week."),
            _spans(time, "new_items", "New items", f"{_rate(time['new_items_a_week'])} cold starts of items a week."),
        ]
    return f'<div class="charts">{"".join(drawn)}</div>{_quantiles(shape)}'


def _popularity(popularity: dict[str, Any]) -> str:
    ranks, counts = zip(*popularity["rank_curve"], strict=True)
    alt = f"Events of an item by its rank: {counts[0]:,} for the most popular, {counts[-1]:,} for the last of {ranks[-1]:,}."
    series = [charts.Line("events of the item at this rank", ranks, counts)]
    note, fit = (
        f"The most popular fifth has {page.share(popularity['top_20_percent_share'], 1)} of the events.",
        popularity["power_law"],
    )
    if fit is not None:
        note += (
            f" Power law from {fit['from']:,.0f} events on ({fit['items']:,.0f} items): exponent of the ranks {fit['zipf']:.2f}, "
            f"largest distance {fit['ks']:.2f}."
        )
        last = max(1.0, fit["items"])
        fitted = [rank for rank in ranks if rank <= last]
        series.append(charts.Line("fit", fitted, [fit["from"] * (last / rank) ** fit["zipf"] for rank in fitted], None))
    axes = charts.Axis("rank of the item", "log"), charts.Axis("events", "log", low=1.0, high=max(2.0, float(counts[0])))
    return page.figure("Popularity", charts.lines(series, *axes, alt), note)


def _lengths(lengths: dict[str, Any]) -> str:
    bins = [one for one in lengths["bins"] if one[2]]
    labels = [f"{low}+" if high > low else str(low) for low, high, _ in bins]
    tips = [f"{low} to {high} events: {count:,} users" for low, high, count in bins]
    part = charts.Part("users", [count for *_, count in bins])
    drawn = charts.columns(
        labels, [part], "events of a user", charts.Axis("users"), "Users by number of events. " + "; ".join(tips), tips
    )
    return page.figure("History lengths", drawn, f"{lengths['fewer_than_3']:,} users have fewer than three events.")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _spans(time: dict[str, Any], what: str, title: str, note: str) -> str:
    values, edges, name = time[what], time["edges_ms"], what.replace("_", " ")
    alt = f"{title}: {sum(values):,} {name} from {date(edges[0])} to {date(edges[-1])}, at most {max(values):,} a {time['bin']}."
    axis = charts.Axis(f"{name} per {time['bin']}")
    return page.figure(title, charts.spans(values, edges[:-1], float(edges[-1]), axis, [charts.Part(name, values)], alt), note)


def _columns(labels: Sequence[str], values: Sequence[int], title: str, x: str) -> str:
    tips = [f"{label}: {value:,} events" for label, value in zip(labels, values, strict=True)]
    alt = f"{title}, {x}. " + "; ".join(tips)
    return page.figure(title, charts.columns(labels, [charts.Part("events", values)], x, charts.Axis("events"), alt, tips))


def _quantiles(shape: dict[str, Any]) -> str:
    """Histories, items, sessions and pauses by their quantiles."""
    lines = [("events of a user", shape["history_length"]), ("events of an item", shape["popularity"])]
    said = ""
    if "sessions" in shape:
        sessions = shape["sessions"]
        lines += [("events of a session", sessions["events"]), ("seconds of a session", sessions["seconds"])]
        lines += [("seconds between its events", sessions["pause_seconds"])] if sessions["pause_seconds"] else []
        said = (
            f"<p>{sessions['count']:,} sessions, cut at pauses of 30 minutes, {sessions['a_user']:.1f} a user; "
            f"{page.share(sessions['single_event_share'], 1)} have one event.</p>"
        )
    names = ("min", "p10", "p25", "p50", "p75", "p90", "p99", "max", "mean")
    rows = [
        [label, *(f"{found[name]:,.4g}" if found[name] < 1000 else f"{found[name]:,.0f}" for name in names)]
        for label, found in lines
    ]
    return said + page.table(["", *names], rows, label="Quantiles")


def _information(found: dict[str, Any]) -> str:
    def bits(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} bits"

    (after_one, after_two), (sample_one, sample_two) = found["approximate_entropy_bits"], found["sample_entropy_bits"]
    compression, parsed = found["compression"], found["lempel_ziv"]
    rows = [
        ["an event's item, knowing popularity only", bits(found["popularity_bits"])],
        ["after one item: approximate entropy, sample entropy", f"{bits(after_one)}, {bits(sample_one)}"],
        ["after two items: approximate entropy, sample entropy", f"{bits(after_two)}, {bits(sample_two)}"],
        ["compression ratio; with each user's events shuffled", f"{compression['ratio']:.2f}; {compression['shuffled']:.2f}"],
        ["bytes that the order saves", page.share(max(compression["saved_by_order"], 0), 1)],
    ]
    if parsed is not None:
        rows.append([f"entropy rate of a user's own sequence (median of {parsed['users']:,})", bits(parsed["median_bits"])])
        rows.append(["highest share of right guesses among the user's own items", page.share(parsed["median_predictability"], 1)])
    sampled = f" From a random sample of users with {found['events']:,} events." if found["sampled"] else ""
    said = (
        "<p>Approximate entropy is low both where the next item is known and where too few runs repeat; sample entropy counts "
        f"only runs that do. None of these numbers depends on how items are numbered.{sampled}</p>"
    )
    return said + page.table(["", ""], rows, label="Information")


def _drift(found: dict[str, Any]) -> str:
    starts, count = found["periods_from_ms"], len(found["new_item_share"])
    numbers = list(range(1, count))
    chance = found["divergence_by_chance"]
    series = [
        charts.Line("to the next period", numbers, found["divergence_to_next"]),
        charts.Line("by chance", numbers, [chance] * len(numbers), None),
    ]
    alt = f"Jensen-Shannon divergence of popularity from period to period, by chance {chance:.2f} bits."
    drawn = charts.lines(series, charts.Axis("period"), charts.Axis("bits", low=0.0, high=1.0), alt)
    said = f"From the first period to the last: {found['divergence_first_to_last']:.2f} bits of 1; by chance {chance:.2f}."
    figures = [page.figure("Popularity drifts", drawn, said)]
    labels = [str(number + 1) for number in range(count)]
    tips = [f"from {date(start)}: {share:.1%}" for start, share in zip(starts, found["new_item_share"], strict=True)]
    axis = charts.Axis("share of events", high=1.0, form=charts.percent)
    columns = charts.columns(labels, [charts.Part("new items", found["new_item_share"])], "period", axis, "; ".join(tips), tips)
    figures.append(page.figure("Events on items new in their period", columns, "Eight periods with as many events each."))
    life = found["item_half_life_days"]
    words = (
        [f"Half of an item's events are done {life:,.1f} days after its first (median over events)."] if life is not None else []
    )
    if found["interest"] is not None:
        curve = found["interest"]["curve"]
        lags, excess = zip(*curve, strict=True)
        alt = f"Share of pairs of one category beyond chance: {excess[0]:.2f} at one event apart, {excess[-1]:.2f} at {lags[-1]}."
        line = charts.Line("same category beyond chance", lags, excess)
        drawn = charts.lines(
            [line], charts.Axis("events apart", "log"), charts.Axis("share beyond chance", low=min(0.0, *excess)), alt
        )
        half = found["interest"]["half_life_events"]
        said = f"Halved after {half:.1f} events." if half is not None else "Does not fall to its half within what can be seen."
        figures.append(page.figure("Interests fade", drawn, said))
    else:
        words.append("Items have no categories here, so that nothing is said of how long interests last.")
    return f'<div class="charts">{"".join(figures)}</div><p>{" ".join(words)}</p>'
