"""Erasure: one person out of every import and version of a log, and out of the tables of runs, which are marked.

What a model learned cannot be taken out of its weights; a run that was trained on the person says so until it is trained again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import polars as pl

from largerec import manifest
from largerec.bundle import FORGOTTEN, Bundle, data_hash
from largerec.columns import ALIASES, TimeKind, find_columns
from largerec.curate import versions
from largerec.curate.versions import ROW, Version
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.options import expanded
from largerec.sequences import TRAIN

SHOWS_PEOPLE = "It shows histories of users: share it only where you could share the log."
"""The last words of a page about runs, which tell it from pages that show nobody."""
SHOWS_EVENTS = "Its examples are events of users: share it only where you could share the log."
"""Likewise of the page of an audit."""
LARGEST_AUDIT = 64 * 2**20
"""Bytes; an audit has few examples of each finding, whatever the log."""
TEXT = (".json", ".jsonl", ".csv", ".tsv", ".html", ".toml", ".md", ".txt", ".inter", ".item")


def forget(folder: str | Path, user_id: str, runs: str | Path | None = None) -> dict[str, Any]:
    """Remove a person from every import and version below a folder, removed rows too, and mark the runs below another.

    Each folder is written anew beside itself and takes its own place; its manifest gets the new hashes and says when so many rows
    were forgotten, not whose. A run whose histories have the person, or whose data hash is that of such a run, loses the
    person's rows of its tables and its report, and is marked where it was trained on them; pages about several runs below that
    folder go too, and audits below both. Call it again after a kill.

    Args:
        folder: an import, a version, a folder of versions, or one above them.
        user_id: the id, compared as text.
        runs: a folder with runs anywhere below it.

    Raises:
        LargeRecError: nothing that LargeRec wrote is there, or the person is in none of it.
    """
    folder = expanded(folder, "DATA").resolve()
    below = [folder, *([expanded(runs, "--runs").resolve()] if runs is not None else [])]
    _remove_leftovers(folder)  # first: a kill may have left the folder itself under its other name
    for place in below:
        if not place.is_dir():
            raise LargeRecError(
                f"{place}: there is no such folder; give one that `largerec data import` or `largerec curate` wrote."
            )
    ours = sorted((path.parent for path in folder.rglob(manifest.MANIFEST)), key=_by_number)
    ours = [
        place for place in ours if (document := manifest.read(place)) is not None and document.get("kind") in ("log", "version")
    ]
    if not ours:
        raise LargeRecError(
            f"{folder}: there is no import and no version of a log below it. A log that LargeRec did not write is yours to "
            "change: remove the person there, then import or curate it again."
        )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    contents: dict[Path, str] = {}
    other_ids = _other_ids(ours, user_id)
    paths = [] if runs is None else _runs_below(below[-1])
    ids = {path: _ids_in(path, user_id, other_ids) for path in paths}
    held = {path: own for path in paths if (own := _histories_of(path, ids[path])) is not None and own.height}
    audits = []
    if held or any(_has(place, user_id) for place in ours):
        audits = [path for place in below for path in _forget_audits(place)]
    # Runs next: only versions know which ids the steps of a chain gave to the person, so they go last.
    marked, pages = _forget_in_runs(below[-1], ids, held, now)
    changed = [found for place in ours if (found := _forget_in_folder(place, user_id, now, contents)) is not None]
    if not changed and not marked:
        raise LargeRecError(f"no row of user {user_id!r} is in any import or version below {folder}, nor in a run.")
    sources = {str(document["source"]) for place in ours if (document := manifest.read(place)) and document.get("source")}
    return {
        "folders": changed,
        "runs": marked,
        "pages": [*audits, *pages],
        "links_not_followed": [str(path) for place in below for path in _links(place)],
        "still_named_in": [str(path) for place in below for path in _naming(place, user_id)],
        "sources_to_mend_yourself": sorted(
            source for source in sources if Path(source).expanduser().exists() and not _within(source, ours)
        ),
    }


def _within(source: str, ours: list[Path]) -> bool:
    return any(Path(source).expanduser().resolve().is_relative_to(place) for place in ours)


def _by_number(place: Path) -> tuple[str, str]:
    """Versions of a chain in their order, so that parents come first."""
    return str(place.parent), place.name


def _remove_leftovers(folder: Path) -> None:
    """Remove what a kill left beside folders that were being replaced: it may still hold the person."""
    for place in (folder.parent, folder, *(path for path in folder.rglob("*") if path.is_dir())):
        for path in place.glob(".*"):
            known = manifest.own_name(path)
            if known is None or not path.is_dir() or (place == folder.parent and known[0] != folder.name):
                continue
            if known[1] == "old" and not (place / known[0]).exists():
                path.rename(place / known[0])  # killed between the two renames: the old one is all there is
            else:
                shutil.rmtree(path)


def _has(place: Path, user_id: str) -> bool:
    """Whether a row of an import or a version is the person's, one that was removed or dropped too."""
    document = manifest.read(place)
    assert document is not None
    for file in (place / name for name in manifest.listed(place, document)):
        if file.suffix == ".parquet":
            rows, column = pl.scan_parquet(file, glob=False), "user_id"
        elif file.suffix == ".inter":
            rows, column = pl.scan_csv(file, separator="\t", infer_schema=False, quote_char=None, glob=False), "user_id:token"
        else:
            if file.suffix == ".jsonl" and any(
                _names(line, user_id, document) for line in file.read_text("utf-8").split("\n") if line
            ):
                return True
            continue
        if column not in rows.collect_schema().names():
            continue
        if rows.filter(pl.col(column).cast(pl.String) == user_id).select(column).head(1).collect().height:
            return True
    return False


def _forget_audits(folder: Path) -> list[str]:
    """Remove every audit below a folder, page and JSON: its examples are events of users, and it cannot be told which of several
    logs it is about. They go before the person's rows do, by which another call would know that there is something to do."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".html", ".json")):
        if path.stat().st_size > LARGEST_AUDIT:
            continue
        content = path.read_text(encoding="utf-8", errors="replace")
        if SHOWS_EVENTS in content if path.suffix == ".html" else _is_audit(content):
            path.unlink()
            found.append(str(path))
    return found


def _is_audit(content: str) -> bool:
    if '"findings"' not in content:
        return False
    try:
        document = json.loads(content)
    except ValueError:
        return False
    return isinstance(document, dict) and {"findings", "shape", "information"} <= document.keys()


# --- imports and versions


def _forget_in_folder(place: Path, user_id: str, now: str, contents: dict[Path, str]) -> dict[str, Any] | None:
    """Write one folder anew without the person; None where nothing of them was there and no parent changed."""
    document = manifest.read(place)
    assert document is not None
    parent = document.get("version", {}).get("parent")
    moved = parent is not None and contents.get(place.parent / parent["name"], parent["content"]) != parent["content"]
    if moved:
        parent["content"] = contents[place.parent / parent["name"]]
    fresh, old = manifest.other_name(place, "new"), manifest.other_name(place, "old")
    fresh.mkdir()
    try:
        rows = (_version if document["kind"] == "version" else _import)(place, fresh, user_id, now, document)
        if not rows and not moved:
            return None
        _bring_along(place, fresh, document)
        made = manifest.read(fresh)
        assert made is not None
        place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    contents[place] = made["content"]
    return {"folder": str(place), "rows": rows, "content_before": document["content"], "content": made["content"]}


def _bring_along(place: Path, fresh: Path, document: dict[str, Any]) -> None:
    """Link what else stands in a folder (versions, runs, notes) into the one that replaces it: a kill loses none of it."""
    own = {manifest.MANIFEST, *manifest.listed(place, document)}
    for path in sorted(path for path in place.iterdir() if path.name not in own):
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, fresh / path.name, symlinks=True, copy_function=_linked)
        else:
            _linked(str(path), str(fresh / path.name))


def _linked(source: str, to: str) -> None:
    try:
        os.link(source, to, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, to, follow_symlinks=False)


def _noted(document: dict[str, Any], rows: int, now: str) -> dict[str, Any]:
    """The facts of a manifest with one more line on what was forgotten; sizes and hashes of files are made anew."""
    lines = [
        *document.get("forgotten", []),
        *([{"when": now, "rows": rows, "content_before": document["content"]}] if rows else []),
    ]
    return {name: value for name, value in document.items() if name != "files"} | {"forgotten": lines}


def _version(place: Path, fresh: Path, user_id: str, now: str, document: dict[str, Any]) -> int:
    """A version without the person; returns how many rows went, removed ones among them.

    Rows that a step made have no number and nothing says of whom; since they may repeat the person's events, they all go.
    """
    events, removed, changed = (
        pl.read_parquet(place / f"{name}.parquet", glob=False) for name in ("events", "removed", "changed")
    )
    named = changed.filter((pl.col("column") == "user_id") & ((pl.col("before") == user_id) | (pl.col("after") == user_id)))
    own = [table.filter(pl.col("user_id").cast(pl.String) == user_id)[ROW] for table in (events, removed)]
    rows = pl.concat([*own, named[ROW]]).unique()
    others = (~pl.col(ROW).is_in(rows.drop_nulls().implode())).fill_null(rows.is_empty())
    generated = 0 if rows.is_empty() else events[ROW].null_count() + removed[ROW].null_count()
    went = rows.drop_nulls().len() + generated
    items = place / "events.items.parquet"
    kind: TimeKind = document["time_kind"]
    log = EventLog(events.filter(others), pl.read_parquet(items, glob=False) if items.is_file() else None, kind, (), str(place))
    version = Version(log, removed.filter(others), changed.filter(others))
    versions.write_tables(fresh, version, _noted(document, went, now))
    return went


def _import(place: Path, fresh: Path, user_id: str, now: str, document: dict[str, Any]) -> int:
    """An import without the person, its rows that were dropped among them."""
    gone, files = 0, []
    tables: dict[str, pl.DataFrame] = {}
    for name in manifest.listed(place, document):
        file, to = place / name, fresh / name
        files.append(to)
        if name.endswith(".parquet"):
            table = pl.read_parquet(file, glob=False)
            kept = table.filter(pl.col("user_id").cast(pl.String) != user_id) if "user_id" in table.columns else table
            tables[name] = kept
            gone += table.height - kept.height
        elif name.endswith(".inter"):
            table = pl.read_csv(file, separator="\t", infer_schema=False, quote_char=None, glob=False)
            kept = table.filter(pl.col("user_id:token") != user_id)
            gone += table.height - kept.height
            kept.write_csv(to, separator="\t", quote_style="never")
        elif name.endswith(".jsonl"):
            # At line feeds alone: values may hold other characters that end a line.
            lines = [line + "\n" for line in file.read_text(encoding="utf-8").split("\n") if line]
            others = [line for line in lines if not _names(line, user_id, document)]
            gone += len(lines) - len(others)
            to.write_text("".join(others), encoding="utf-8")
        else:
            shutil.copyfile(file, to)
    if not gone:
        return 0
    facts = _noted(document, gone, now)
    if (events := tables.get("events.parquet")) is not None:
        items = tables.get("events.items.parquet")
        EventLog(events, items, document["time_kind"], (), str(place)).write(fresh / "events.parquet")
        facts |= {
            "events": events.height,
            "users": events["user_id"].n_unique(),
            "items": events["item_id"].n_unique(),
            "content": manifest.content_hash(events, items),
        }
    else:  # another format: its content is that of the files
        facts["content"] = "".join(manifest.file_hash(file)[:32] for file in files[:2])
    manifest.write(fresh, facts, files)
    return gone


def _names(line: str, user_id: str, document: dict[str, Any]) -> bool:
    """Whether a dropped row is the person's, or its raw line has the id as a word, in quotes as CSV writes them too.

    The column of users is the one that the import was told, or the one that reading takes for it; where neither is there, every
    value is looked at.
    """
    content = json.loads(line).get("content")
    if isinstance(content, dict):
        told = document.get("options", {}).get("columns", {}).get("user")
        users = [told] if told in content else find_columns([str(name) for name in content], ALIASES["user"])
        return any(str(content[name]) == user_id for name in (users[:1] or content))
    forms = {user_id, user_id.replace('"', '""')}
    return any(_word(form).search(str(content)) is not None for form in forms)


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(text)}(?![\w-])")


# --- runs


def _other_ids(ours: list[Path], user_id: str) -> dict[Path, set[str]]:
    """Ids that steps of each version gave to the person's events (``sessions`` makes users of them)."""
    found = {}
    for place in ours:
        if (place / "changed.parquet").is_file():
            lines = pl.read_parquet(place / "changed.parquet", glob=False).filter(pl.col("column") == "user_id")
            first = lines.group_by(ROW, maintain_order=True).first()  # whose a row was in the log that was read first
            rows = first.filter(pl.col("before") == user_id)[ROW]
            found[place] = set(lines.filter(pl.col(ROW).is_in(rows.implode()))["after"])
    return found


def _ids_in(run: Path, user_id: str, other_ids: dict[Path, set[str]]) -> set[str]:
    """The person's ids in a run: new integers mean them only in a run on the version that gave them."""
    source = str(_lineage(run).get("source"))
    known = {one for ids in other_ids.values() for one in ids if one.startswith(f"{user_id}~")}
    # A source is as it was written where training ran; a version's name has a hash in it, and tells it from anywhere.
    own = (ids for place, ids in other_ids.items() if _within(source, [place]) or place.name in Path(source).parts)
    return {user_id, *known, *(one for ids in own for one in ids)}


def _lineage(run: Path) -> dict[str, Any]:
    """What a run was trained on; nothing where a kill came before that was written."""
    file = run / "lineage.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _runs_below(folder: Path) -> list[Path]:
    """Runs, those among them of which a kill left no more than some tables."""
    whole = {path.parent for path in folder.rglob("lineage.json") if path.with_name("recipe.json").is_file()}
    return sorted(whole | {path.parent for path in folder.rglob("histories.parquet")})


def _forget_in_runs(
    folder: Path, ids: dict[Path, set[str]], held: dict[Path, pl.DataFrame], now: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Take the person out of the tables of every run below a folder, and mark those that were trained on them.

    ``ids``: the person's in each run; ``held``: their rows of histories, of the runs that have some.
    Returns what was done to each run, and which pages went."""
    paths = list(ids)
    hashes = {_lineage(path).get("data_hash") for path in held} - {None}
    # Before the tables, by which another call would know that there is something to do.
    pages = _forget_pages(folder, paths) if held else []
    found = []
    for path in sorted(paths, key=lambda path: path in held):  # those known by a hash alone first, while a run still tells it
        bundle = Bundle(path)
        own, hashed = held.get(path), _lineage(path).get("data_hash")
        if own is None and (hashed not in hashes or bundle.file("histories.parquet").is_file()):
            continue
        trained = own is None or (hashed is not None and bool((own["stage"] == TRAIN).any()))
        rows = 0 if own is None else own.height
        if trained:  # before anything goes: a kill must not leave a run without its mark
            marks = json.loads(bundle.file(FORGOTTEN).read_text(encoding="utf-8")) if bundle.file(FORGOTTEN).is_file() else []
            bundle.write_text(FORGOTTEN, json.dumps([*marks, {"when": now, "rows": rows, "data_hash": hashed}], indent=1) + "\n")
        _forget_in_tables(bundle, ids[path])
        after = data_hash(bundle.sequences()) if own is not None and hashed is not None else None
        found.append({"run": str(path), "trained_on": trained, "rows": rows, "data_hash_before": hashed, "data_hash": after})
    return found, pages


def _forget_pages(folder: Path, runs: list[Path]) -> list[str]:
    """Remove every page below a folder that shows histories of users, but for the reports that runs hold of themselves.

    Of a page it cannot be told whom it shows (an id may be a number, and a long one is cut), and it is soon made again."""
    own, found = {run / "report.html" for run in runs}, []
    for path in sorted(folder.rglob("*.html")):
        if path.is_file() and path not in own and SHOWS_PEOPLE in path.read_text(encoding="utf-8", errors="replace"):
            path.unlink()
            found.append(str(path))
    return found


def _histories_of(path: Path, ids: set[str]) -> pl.DataFrame | None:
    file = path / "histories.parquet"
    return pl.read_parquet(file, glob=False).filter(pl.col("user_id").cast(pl.String).is_in(ids)) if file.is_file() else None


def _forget_in_tables(bundle: Bundle, ids: set[str]) -> None:
    """Rows of the person out of every table of a run, histories last; its report, which may show them, goes.

    Some tables name nobody, but have a row for each row of another one, or for each user of the histories.
    """
    bundle.file("report.html").unlink(missing_ok=True)
    bundle.remove_partial_files()
    files = sorted(bundle.path.glob("*.parquet"), key=lambda file: file.name == "histories.parquet")
    others: dict[str, pl.Series] = {}
    for file in files:
        table = pl.read_parquet(file, glob=False)
        if "user_id" in table.columns and not file.name.startswith("features-"):
            others[file.name] = ~table["user_id"].cast(pl.String).is_in(ids)
    beside = {"ranks-baselines.parquet": others.get("ranks-test.parquet")}
    if (kept := others.get("histories.parquet")) is not None:
        users = pl.read_parquet(bundle.file("histories.parquet"), glob=False)["user_id"].unique(maintain_order=True)
        beside |= {"features-context.parquet": kept, "features-user.parquet": ~users.cast(pl.String).is_in(ids)}
    for name, mask in beside.items():
        file = bundle.file(name)
        if mask is not None and file.is_file() and (table := pl.read_parquet(file, glob=False)).height == mask.len():
            bundle.write_parquet(name, table.filter(mask))
    for name, kept in others.items():
        if not kept.all():
            bundle.write_parquet(name, pl.read_parquet(bundle.file(name), glob=False).filter(kept))


# --- what is left


def _links(folder: Path) -> list[Path]:
    """Folders that stand elsewhere: nothing in them was looked at."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() and path.is_dir())


def _naming(folder: Path, user_id: str) -> Iterator[Path]:
    """Text files that still have the id as a word; a number is not looked for, since it may mean anything there."""
    if user_id.isdigit():
        return
    # As it stands in pages and in JSON too.
    written = (user_id, user_id.replace('"', '""'), escape(user_id))
    forms = {form: None for one in written for form in (one, json.dumps(one)[1:-1])}
    word = re.compile("|".join(_word(form).pattern for form in forms))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in TEXT and word.search(path.read_text(encoding="utf-8", errors="replace")):
            yield path
