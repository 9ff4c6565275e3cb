"""``largerec data import``: any log to a folder of our own, with a manifest that says what was done and a hash of the content."""

from __future__ import annotations

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
from largerec.readers import format_of, read_table

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
    only describes items becomes item tables.

    Raises:
        LargeRecError: the folder holds something already; whatever reading and the steps raise.
    """
    folder = Path(to).expanduser()
    wanted = wanted or steps.Steps()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite or not folder.is_dir() or manifest.read(folder) is None:
            hint = "Give another folder" if overwrite else "Give another folder, or --overwrite if it is an earlier import"
            raise LargeRecError(f"--to {to}: there is something already that this would mix with. {hint}.")
        for name in [*(manifest.read(folder) or {}).get("files", {}), manifest.MANIFEST]:
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {"largerec": version("largerec"), "source": options.path}
    only_items = item_files(Path(options.path).expanduser()) if options.path is not None else []
    if only_items:
        return _import_items(only_items, folder, facts)
    log = load_log(options.model_copy(update={"dropped": str(folder / DROPPED)}))
    log, reports = steps.apply(log, wanted)
    if reports and log.items is not None:
        log = replace(log, items=log.items.filter(pl.col("item_id").is_in(log.events["item_id"].unique().implode())))
    files, said = _write_recbole(log, folder) if target == "recbole" else (_write_parquet(log, folder), ())
    files += [folder / DROPPED] if log.dropped else []
    facts |= {
        "kind": "log",
        "options": options.model_dump(mode="json", exclude_defaults=True, exclude={"dropped", "path"}),
        "time_kind": log.time_kind,
        "events": log.events.height,
        "users": log.events["user_id"].n_unique(),
        "items": log.events["item_id"].n_unique(),
        "dropped_rows": count_reasons(log.dropped),
        "steps": reports,
        "content": manifest.content_hash(log.events, log.items),
        "notes": [*log.notes, *said],
    }
    return manifest.write(folder, facts, files)


DROPPED = "dropped.jsonl"


def _write_parquet(log: EventLog, folder: Path) -> list[Path]:
    log.write(folder / "events.parquet")
    return [folder / "events.parquet"] + ([folder / "events.items.parquet"] if log.items is not None else [])


def _import_items(files: list[Path], folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
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
        table.write_parquet(written[-1])
    facts |= {
        "kind": "items",
        "tables": {name: {"items": table.height, "columns": table.columns} for name, table in sorted(sets.items())},
        "content": manifest.content_hash(*(table for _, table in sorted(sets.items()))),
        "notes": ["item tables only: there are no events, so there is nothing to train on; use one with data.items=FILE"],
    }
    return manifest.write(folder, facts, written)


def _write_recbole(log: EventLog, folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Write ``<folder>.inter`` and ``<folder>.item``: tab-separated, each column with its type; times as they are inside (ms)."""
    name, notes = (
        folder.name,
        ["RecBole files: times are milliseconds UTC" if log.time_kind == "timestamp" else "times are ranks"],
    )
    renamed = log.events.rename({"value": "rating"} if {"value"} <= set(log.events.columns) - {"rating"} else {})
    written = [folder / f"{name}.inter"]
    changed = _write_atomic(renamed, written[0], ())
    if log.items is not None:
        written.append(folder / f"{name}.item")
        changed += _write_atomic(log.items, written[1], ("title", "category"))
    if changed:
        notes.append(f"{changed:,} values held tabs or line ends, which RecBole's files cannot: blanks stand there")
    return written, tuple(notes)


def _write_atomic(table: pl.DataFrame, path: Path, sequences: tuple[str, ...]) -> int:
    """Write one atomic file; return how many values had characters replaced."""
    columns, changed = [], 0
    for series in table.get_columns():
        numeric = series.dtype.is_numeric() and series.name not in ("user_id", "item_id")
        many = series.name in sequences or series.dtype.is_nested()
        kind = "token_seq" if many else "float" if numeric else "token"
        if not numeric:
            text = convert_text(series)
            text = text.str.replace_all("|", " ", literal=True) if many else text
            broken = text.str.contains(r"[\t\r\n]").fill_null(False)
            changed += int(broken.sum())
            series = text.str.replace_all(r"[\t\r\n]+", " ")
        columns.append(series.alias(f"{series.name}:{kind}"))
    pl.DataFrame(columns).write_csv(path, separator="\t", quote_style="never")
    return changed
