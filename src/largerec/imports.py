"""``largerec data import``: any log to a folder of our own, with a manifest that says what was done and a hash of the content."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import polars as pl

from largerec import manifest, steps
from largerec.badrows import count_reasons
from largerec.columns import convert_text
from largerec.datasets import DataOptions, item_files, load_log
from largerec.errors import LargeRecError
from largerec.events import EventLog
from largerec.options import expanded
from largerec.readers import format_of, read_table
from largerec.writing import plain_errors

Target = Literal["parquet", "recbole"]


def import_log(
    options: DataOptions,
    to: str | Path,
    wanted: steps.Steps | None = None,
    *,
    target: Target = "parquet",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Read a log, take the wanted steps, and write it into the folder ``to``; return the manifest.

    The same log, options and steps give the same content hash. Dropped rows go to ``dropped.jsonl`` in the folder. A folder that
    only describes items becomes item tables. Everything is written beside the folder first and takes its place at the end, so
    that an import that fails leaves things as they were.

    Raises:
        LargeRecError: the folder holds something already, or the log itself; it cannot be written; whatever reading and the
            steps raise.
    """
    folder = expanded(to, "--to")
    try:
        _check_free(folder, overwrite)
        _check_apart(folder, options)
        target_folder = folder.resolve()
        fresh = manifest.other_name(target_folder, "new")
        fresh.mkdir(parents=True)
        try:
            facts, files = _write(options, wanted or steps.Steps(), target, fresh, target_folder.name)
            if "notes" in facts:
                facts["notes"] = [note.replace(str(fresh), str(folder)) for note in facts["notes"]]
            document = manifest.write(fresh, facts, files)
            _check_free(folder, overwrite)
            _swap(fresh, target_folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise LargeRecError(
            f"--to {to}: the import cannot be written there ({error}). Give a folder with room where you may write."
        ) from error
    return document


def write_log(log: EventLog, folder: Path, source: str | None) -> dict[str, Any]:
    """Write a log at hand as an import of ``source``, and return its manifest; the folder appears whole or not at all.

    Raises:
        LargeRecError: it cannot be written, or there is something already.
    """
    facts = {"largerec": version("largerec"), "source": source, "kind": "log", **_facts(log), "notes": list(log.notes)}
    try:
        with manifest.appearing(folder) as fresh:
            return manifest.write(fresh, facts, _write_parquet(log, fresh))
    except OSError as error:
        raise LargeRecError(f"{folder}: the log cannot be written there ({error}). Give a folder where you may write.") from error


def _facts(log: EventLog) -> dict[str, Any]:
    """What a manifest says of a log's tables."""
    events = log.events
    counts = {"events": events.height, "users": events["user_id"].n_unique(), "items": events["item_id"].n_unique()}
    return {"time_kind": log.time_kind, **counts, "content": manifest.content_hash(events, log.items)}


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but, with ``overwrite``, the files of an earlier import."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite or not folder.is_dir() or (earlier := manifest.read(folder)) is None:
        hint = "Give another folder" if overwrite else "Give another folder, or --overwrite if it is an earlier import"
        raise LargeRecError(f"--to {folder}: there is something already that this would mix with. {hint}.")
    ours = {*manifest.listed(folder, earlier), manifest.MANIFEST}
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in ours or not entry.is_file())
    if others:
        raise LargeRecError(
            f"--to {folder}: there is something already that the earlier import did not write ({', '.join(others[:5])}"
            f"{', ...' if len(others) > 5 else ''}), so nothing is overwritten. Move it elsewhere, or give another folder."
        )


def _check_apart(folder: Path, options: DataOptions) -> None:
    """Refuse to import a log into itself, into a folder of its own, or over a folder that holds it."""
    target = folder.resolve()
    for flag, given in (("data.path", options.path), ("data.items", options.items)):
        source = None if given is None else expanded(given, flag).resolve()
        if source is not None and (target.is_relative_to(source) or source.is_relative_to(target)):
            how = "is" if source == target else "lies inside" if target.is_relative_to(source) else "holds"
            raise LargeRecError(
                f"--to {folder} {how} what is imported ({flag}={given}), which must stay as it is. Give a folder apart from it."
            )


def _swap(fresh: Path, folder: Path) -> None:
    """Put a finished import into its place; the earlier one goes only when the new one is there."""
    old = manifest.other_name(folder, "old")
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(
    options: DataOptions, wanted: steps.Steps, target: Target, folder: Path, name: str
) -> tuple[dict[str, Any], list[Path]]:
    """Read the log, take the steps and write its files into ``folder``; return the facts for the manifest, and the files."""
    facts: dict[str, Any] = {"largerec": version("largerec"), "source": options.path}
    only_items = item_files(expanded(options.path, "data.path")) if options.path is not None else []
    if only_items:
        return _import_items(only_items, folder, facts)
    log = load_log(options.model_copy(update={"dropped": str(folder / DROPPED)}))
    log, reports = steps.apply(log, wanted)
    if reports and log.items is not None:
        log = replace(log, items=log.items.filter(pl.col("item_id").is_in(log.events["item_id"].unique().implode())))
    files, said = _write_recbole(log, folder, name) if target == "recbole" else (_write_parquet(log, folder), ())
    files += [folder / DROPPED] if log.dropped else []
    facts |= {
        "kind": "log",
        "options": options.model_dump(mode="json", exclude_defaults=True, exclude={"dropped", "path"}),
        **_facts(log),
        "dropped_rows": count_reasons(log.dropped),
        "steps": reports,
        "notes": [*log.notes, *said],
    }
    return facts, files


DROPPED = "dropped.jsonl"


def _write_parquet(log: EventLog, folder: Path) -> list[Path]:
    log.write(folder / "events.parquet")
    return [folder / "events.parquet"] + ([folder / "events.items.parquet"] if log.items is not None else [])


def _import_items(files: list[Path], folder: Path, facts: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """Write the item tables of a folder without events, each with its ready-made codes where they lie beside it."""
    sets: dict[str, pl.DataFrame] = {}
    for kind in ("item.json", "index.json"):
        for file in files:
            if format_of(file) == kind:
                name, table = file.name.partition(f".{kind}")[0], read_table(file).frame
                sets[name] = sets[name].join(table, on="item_id", how="full", coalesce=True, maintain_order="left_right") if (
                    name in sets
                ) else table  # fmt: skip
    written = []
    for name, table in sorted(sets.items()):
        written.append(folder / f"{name}.items.parquet")
        with plain_errors():
            table.write_parquet(written[-1])
    facts |= {
        "kind": "items",
        "tables": {name: {"items": table.height, "columns": table.columns} for name, table in sorted(sets.items())},
        "content": manifest.content_hash(*(table for _, table in sorted(sets.items()))),
        "notes": ["item tables only: there are no events, so there is nothing to train on; use one with data.items=FILE"],
    }
    return facts, written


def _write_recbole(log: EventLog, folder: Path, name: str) -> tuple[list[Path], tuple[str, ...]]:
    """Write ``<name>.inter`` and ``<name>.item``: tab-separated, each column with its type; times as they are inside (ms)."""
    notes = ["RecBole files: times are milliseconds UTC" if log.time_kind == "timestamp" else "times are ranks"]
    renamed = log.events.rename({"value": "rating"} if {"value"} <= set(log.events.columns) - {"rating"} else {})
    written = [folder / f"{name}.inter"]
    changed = _write_atomic(renamed, written[0], ())
    if log.items is not None:
        written.append(folder / f"{name}.item")
        changed += _write_atomic(log.items, written[1], ("title", "category"))
    if changed:
        notes.append(f"{changed:,} values held tabs or line ends, which RecBole's files cannot: blanks stand there")
    return written, tuple(notes)


def _refuse_bytes(series: pl.Series, path: Path) -> None:
    """A value that is no text would otherwise be written as nothing."""
    while isinstance(series.dtype, pl.List | pl.Array):
        series = series.explode()
    if series.dtype != pl.Binary:
        return
    try:
        series.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise LargeRecError(
            f"{path.name}: column {series.name!r} holds bytes that are no UTF-8 text, which RecBole's files cannot. Leave it "
            "out of the log, write it as text (hexadecimal, say), or import with --to-format parquet."
        ) from None


def _write_atomic(table: pl.DataFrame, path: Path, sequences: tuple[str, ...]) -> int:
    """Write one atomic file; return how many values had characters replaced."""
    columns, changed = [], 0
    for series in table.get_columns():
        numeric = series.dtype.is_numeric() and series.name not in ("user_id", "item_id")
        many = series.name in sequences or series.dtype.is_nested()
        kind = "token_seq" if many else "float" if numeric else "token"
        if not numeric:
            _refuse_bytes(series, path)
            text = convert_text(series)
            text = text.str.replace_all("|", " ", literal=True) if many else text
            broken = text.str.contains(r"[\t\r\n]").fill_null(False)
            changed += int(broken.sum())
            series = text.str.replace_all(r"[\t\r\n]+", " ")
        columns.append(series.alias(f"{series.name}:{kind}"))
    with plain_errors():
        pl.DataFrame(columns).write_csv(path, separator="\t", quote_style="never")
    return changed
