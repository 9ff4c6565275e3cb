"""The log at a glance: activity over time, popularity, history lengths, behaviours; from the histories that a run keeps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from largerec.audit.periods import activity
from largerec.columns import UNTIMED
from largerec.report import charts, page
from largerec.sequences import AFTER, TEST, TRAIN, VALIDATION, Sequences

STAGE_NAMES = {TRAIN: "training", VALIDATION: "validation", TEST: "test", AFTER: "after the test"}
STAGE_COLOURS = {TRAIN: 0, VALIDATION: 4, TEST: 1, AFTER: 5}


def date(moment_ms: int | float) -> str:
    return f"{datetime.fromtimestamp(float(moment_ms) / 1000, UTC):%Y-%m-%d}"


def length_bins(longest: int) -> list[tuple[int, int]]:
    """1, 2, 3-4, 5-8, 9-16, ...: bins of history lengths up to ``longest``."""
    found = [(1, 1)]
    while found[-1][1] < longest:
        found.append((found[-1][1] + 1, found[-1][1] * 2))
    return found


def at_a_glance(sequences: Sequences, source: str, notes: Sequence[str]) -> str:
    """Markup of the section about a log."""
    drawn = [_activity(sequences), _popularity(sequences), _lengths(sequences)]
    said = "".join(f"<li>{page.text(note)}</li>" for note in notes)
    heard = page.details(f"What was noticed while the log was read ({len(notes)})", f'<ul class="plain">{said}</ul>')
    return (
        f"<p>{_in_words(sequences, source)}</p>"
        f'<div class="charts">{"".join(drawn)}</div>{_behaviours(sequences)}{heard if notes else ""}'
    )


def _in_words(sequences: Sequences, source: str) -> str:
    events, users, items = len(sequences.item_N), sequences.n_users, len(sequences.item_ids)
    length_U = np.diff(sequences.offsets_U1)
    timed = sequences.time_N[sequences.time_N != UNTIMED]
    if sequences.time_kind == "timestamp":
        when = f"from {date(timed.min())} to {date(timed.max())} (UTC)" if len(timed) else "at unknown times"
        if len(timed) < events and len(timed):
            when += f", {events - len(timed):,} of them without a time"
    else:
        when = "in an order without a clock"
    known = int((sequences.train_counts() > 0).sum())
    return (
        f"{page.text(source)}: <strong>{events:,} events</strong> of {users:,} users on {items:,} items, {when}. "
        f"{known:,} items have a training event and make the catalogue. The median user has {np.median(length_U):,.0f} events, "
        f"the busiest {length_U.max():,}; the density is {100 * events / (users * items):.3g} %."
    )


def _activity(sequences: Sequences) -> str:
    present = [stage for stage in STAGE_NAMES if (sequences.stage_N == stage).any()]
    names = [(STAGE_NAMES[stage], STAGE_COLOURS[stage]) for stage in present]
    if sequences.time_kind != "timestamp":
        counts = ", ".join(f"{int((sequences.stage_N == s).sum()):,} {STAGE_NAMES[s]}" for s in present)
        return page.figure(
            "Activity over time", "", f"This log has an order of events and no clock, so there is no time axis. Events: {counts}."
        )
    timed = sequences.time_N != UNTIMED
    untimed = int((~timed).sum())
    if not timed.any():
        return page.figure("Activity over time", "", f"None of the {untimed:,} events has a time, so there is no time axis.")
    name, bin_N, edge_B1 = activity(sequences.time_N[timed])
    size = len(edge_B1) - 1
    layers = [np.bincount(bin_N[sequences.stage_N[timed] == stage], minlength=size) for stage in present]
    total = np.sum(layers, axis=0)
    parts = [charts.Part(n, layer.tolist(), c) for (n, c), layer in zip(names, layers, strict=True)]
    busiest = int(total.argmax())
    alt = (
        f"Events per {name} from {date(edge_B1[0])} to {date(edge_B1[-1])}; most in the {name} from {date(edge_B1[busiest])}: "
        f"{int(total[busiest]):,}."
    )
    drawn = charts.spans(total.tolist(), edge_B1[:-1].tolist(), float(edge_B1[-1]), charts.Axis(f"events per {name}"), parts, alt)
    note = f"Events per {name}, by what they are used for."
    if untimed:
        note += f" Events without a time, which are left out: {untimed:,}."
    return page.figure("Activity over time", drawn, note, names)


def _popularity(sequences: Sequences) -> str:
    count_R = np.sort(np.bincount(sequences.item_N))[::-1]
    places = np.unique(np.geomspace(1, len(count_R), 160).astype(int))
    head = max(1, round(0.2 * len(count_R)))
    part = page.share(float(count_R[:head].sum()), float(count_R.sum()))
    alt = f"Events of an item by its rank: {count_R[0]:,} for the most popular, {count_R[-1]:,} for the last of {len(count_R):,}."
    line = charts.Line("events of the item at this rank", places.tolist(), count_R[places - 1].tolist())
    drawn = charts.lines([line], charts.Axis("rank of the item", "log"), charts.Axis("events", "log"), alt)
    return page.figure("Popularity", drawn, f"The most popular fifth of the items has {part} of the events.")


def _lengths(sequences: Sequences) -> str:
    length_U = np.diff(sequences.offsets_U1)
    bins = length_bins(int(length_U.max()))
    count_B = [int(((length_U >= low) & (length_U <= high)).sum()) for low, high in bins]
    while len(bins) > 1 and count_B[0] == 0:
        bins, count_B = bins[1:], count_B[1:]
    labels = [f"{low}+" if high > low else str(low) for low, high in bins]
    tips = [f"{low} to {high} events: {count:,} users" for (low, high), count in zip(bins, count_B, strict=True)]
    short = int((length_U < 3).sum())
    alt = "Users by number of events. " + "; ".join(tips)
    drawn = charts.columns(labels, [charts.Part("users", count_B)], "events of a user", charts.Axis("users"), alt, tips)
    note = f"{short:,} users have fewer than three events." if short else "Every user has at least three events."
    return page.figure("History lengths", drawn, note)


def _behaviours(sequences: Sequences) -> str:
    if sequences.behaviour_N is None:
        return '<p class="soft">The log names no behaviours: every event counts as the same kind.</p>'
    counts = np.bincount(sequences.behaviour_N, minlength=len(sequences.behaviours))
    rows = []
    for at in np.argsort(-counts, kind="stable")[:20]:
        name, part = sequences.behaviours[int(at)], counts[at] / counts.sum()
        bar = f'<span class="share"><i style="width:{100 * part:.1f}%"></i></span>'
        rows.append(
            [page.text("(none given)" if name is None else name), f"{counts[at]:,}", page.share(counts[at], counts.sum()), bar]
        )
    more = f'<p class="soft">{len(counts) - 20} rarer behaviours are left out.</p>' if len(counts) > 20 else ""
    shown = page.table(["behaviour", "events", "share", ""], rows, words=(3,), label="Behaviours")
    return f"<h3>Behaviours</h3>{shown}{more}"
