"""Files that are there whole or not at all; where one cannot be written, one message says which and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError

from largerec.errors import LargeRecError

MAKE_ROOM = "Make room there, or choose a place where you may write."


@contextmanager
def writing(path: Path, fix: str = MAKE_ROOM) -> Iterator[None]:
    """Around what writes ``path``; ``fix`` says what to do where it cannot be written.

    Raises:
        LargeRecError: it cannot be written: no room, no permission, a folder of that name.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, SafetensorError) as error:
        raise LargeRecError(f"{path} cannot be written ({_reason(error)}). {fix}") from None


@contextmanager
def plain_errors() -> Iterator[None]:
    """Around what writes a table: what polars raises where a disk is full becomes an OSError, as of any other file."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error)) from error


@contextmanager
def replacing(path: Path, fix: str = MAKE_ROOM) -> Iterator[Path]:
    """Give a name beside ``path`` to write to. It is synced and takes the place in one step, or is gone.

    Raises:
        LargeRecError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path, fix):
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str, fix: str = MAKE_ROOM) -> None:
    """Replace a file by a text, with its folder if need be.

    Raises:
        LargeRecError: it cannot be written.
    """
    with writing(path, fix):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, fix) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a file by a document, as :func:`write_text` does."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def make_folder(path: Path, option: str) -> None:
    """Make a folder that an option names.

    Raises:
        LargeRecError: there can be none.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LargeRecError(f"{option}={str(path)!r} cannot be made ({_reason(error)}); choose another folder.") from None


def check_file(path: Path, option: str, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold, or that is one of its ``inputs``.

    Raises:
        LargeRecError: it is a folder or an input, or there is no folder for it in which one may write.
    """
    if any(path.resolve() == Path(one).resolve() for one in inputs):
        raise LargeRecError(f"{option} {str(path)!r} would be written over what is read; name another file.")
    make_folder(path.parent, f"the folder of {option}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "is a folder" if path.is_dir() else "lies in a folder where you may not write"
        raise LargeRecError(
            f"{option} {str(path)!r} {why}; name a file, for example {option} {path.stem or 'found'}.json in a folder of yours."
        )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
