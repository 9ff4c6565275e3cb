"""Diginetica as the works on session recommendation exchange it: ``period_0.txt`` ... of ``session item`` lines in time order."""

from __future__ import annotations

import re
from pathlib import Path

from largerec.readers.delimited import Layout

LAYOUT = Layout(
    " ",
    ("session_id", "item_id"),
    quoted=False,
    meaning="clicks: session, item, between spaces",
    notes=("the files have no header: session, item are read in this order; a session counts as a user",),
    columns={"user": "session_id", "item": "item_id"},
    time_kind="order",
)


def periods(folder: Path) -> list[tuple[int, Path]]:
    """Return the period files of a folder with their numbers, in order."""
    found = [(re.fullmatch(r"period_(\d+)\.txt(?:\.gz)?", file.name), file) for file in folder.iterdir()]
    return sorted((int(match[1]), file) for match, file in found if match is not None)
