"""A folder that `largerec data import` wrote: what it was made from and how, and that nothing in it has changed since."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import polars as pl

from largerec.errors import LargeRecError

MANIFEST = "manifest.json"
BLOCK = 1 << 22
OURS = "largerec"  # in the names of folders that may be removed after a kill


class Digest(Protocol):
    """What ``hashlib`` gives."""

    def update(self, data: Any, /) -> None: ...


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*tables: pl.DataFrame | None) -> str:
    """Return a SHA-256 over names, types and values of tables: it does not depend on a file format, its version or packing."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update(b"no table\n" if table is None else f"{table.height} rows\n".encode())
        for series in [] if table is None else table.get_columns():
            digest.update(f"{series.name}\x1f{series.dtype}\n".encode())
            _update(digest, series)
    return digest.hexdigest()


def _update(digest: Digest, series: pl.Series) -> None:
    """Feed a column: which values are missing, then lengths and contents, so that no two columns feed the same bytes."""
    missing = series.is_null()
    digest.update(missing.arg_true().cast(pl.Int64).to_numpy().data if missing.any() else b"none missing")
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if isinstance(series.dtype, pl.List):
        digest.update(series.list.len().fill_null(0).cast(pl.Int64).to_numpy().data)
        _update(digest, series.filter((series.list.len() > 0).fill_null(False)).explode())
    elif isinstance(series.dtype, pl.Struct):
        for name in series.struct.fields:
            digest.update(name.encode() + b"\n")
            _update(digest, series.struct.field(name))
    elif series.dtype.is_numeric() and series.dtype not in (pl.Int128, pl.UInt128) and not series.dtype.is_decimal():
        digest.update(series.fill_null(0).to_physical().rechunk().to_numpy().data)
    elif series.dtype == pl.Binary:  # bytes that need be no text
        held = series.fill_null(b"")
        digest.update(held.bin.size().cast(pl.Int64).to_numpy().data)
        for start in range(0, held.len(), BLOCK):
            digest.update(b"".join(held.slice(start, BLOCK)))
    else:
        text = series.cast(pl.String).fill_null("")
        digest.update(text.str.len_bytes().cast(pl.Int64).to_numpy().data)
        for start in range(0, text.len(), BLOCK):
            digest.update("".join(text.slice(start, BLOCK)).encode())


def read(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a folder, or None where there is none of ours.

    Raises:
        LargeRecError: the manifest is broken.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LargeRecError(f"{path}: no whole manifest ({error}). Import the log again.") from error
    return found if isinstance(found, dict) and "largerec" in found else None


def listed(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Return the files that a manifest of ``folder`` names, each with its size and hash.

    Raises:
        LargeRecError: a name would lead out of the folder, or the list is none of ours.
    """
    files = document.get("files")
    for name, facts in files.items() if isinstance(files, dict) else [(files, None)]:
        plain = isinstance(name, str) and name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")
        if not plain or not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
            raise LargeRecError(
                f"{folder / MANIFEST}: a damaged or foreign manifest: files has {name!r}, but each must be the plain name of a "
                f"file in this folder with its sha256. Import the log again into another folder, or take {MANIFEST} away."
            )
    return dict(files or {})


def verify(folder: Path) -> None:
    """Check that the files that a manifest names are there, unchanged. A folder without a manifest passes.

    Raises:
        LargeRecError: a file is missing or has changed since the import, or the manifest is broken.
    """
    document = read(folder)
    for name, expected in ({} if document is None else listed(folder, document)).items():
        path = folder / name
        if not path.is_file():
            raise LargeRecError(f"{path}: the manifest names this file, but it is not there. Import the log again.")
        if file_hash(path) != expected["sha256"]:
            raise LargeRecError(
                f"{path}: the file has changed since it was imported ({MANIFEST} has another SHA-256). "
                f"Import the log again, or take {MANIFEST} away if the change is meant."
            )


def write(folder: Path, facts: dict[str, Any], files: list[Path]) -> dict[str, Any]:
    """Write a manifest of facts about a log and the sizes and hashes of its files; return it."""
    listed = {file.name: {"bytes": file.stat().st_size, "sha256": file_hash(file)} for file in files}
    document = {**facts, "files": listed}
    (folder / MANIFEST).write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
    return document


def other_name(folder: Path, word: Literal["new", "old"]) -> Path:
    """The name of a folder while it is written, or while another takes its place; :func:`own_name` leads back."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.{OURS}-{word}")


def own_name(path: Path) -> tuple[str, str] | None:
    """The name of the folder that a kill left under its :func:`other_name`, and the word; None: this is no such name."""
    found = re.fullmatch(rf"\.(.+)\.\d+\.{OURS}-(new|old)", path.name)
    return None if found is None else (found[1], found[2])


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder``, to be filled; it takes that name at the end or is gone, so nobody sees a part of it."""
    fresh = other_name(folder, "new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
