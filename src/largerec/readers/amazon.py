"""Amazon's ratings-only files, CSV without a header: user, item (2014) or item, user (2018), then rating and time in seconds.

The reviews (2014, 2018: JSON lines with ``reviewerID``, ``asin``, ``overall``, ``unixReviewTime``; 2023: ``user_id``,
``parent_asin``, ``rating``, ``timestamp`` in milliseconds) need nothing special: their columns are known names. Their item
tables are ``meta_<category>`` beside them.
"""

from __future__ import annotations

import re

from largerec.readers.delimited import Layout

ITEM = r"(?:B[0-9A-Z]{9}|\d{9}[0-9X])"  # an ASIN, or an ISBN-10 for books
USER = r"A[0-9A-Z]{8,24}"
REST = r"[1-5]\.0,\d{9,10}"
MEANING = "ratings of Amazon: user or item, rating, time"


def headless_layout(line: str) -> Layout | None:
    """Return the layout of a ratings-only file by its first line, or None where it is another kind of file."""
    orders = ((("user_id", "item_id"), f"{USER},{ITEM},{REST}"), (("item_id", "user_id"), f"{ITEM},{USER},{REST}"))
    for names, pattern in orders:
        if re.fullmatch(pattern, line.strip()):
            columns = (*names, "rating", "timestamp")
            note = f"the file has no header, as Amazon's ratings: {', '.join(columns)} are read in this order"
            return Layout(",", columns, quoted=False, meaning=MEANING, notes=(note,))
    return None


def is_metadata_of(items: str, events: str) -> bool:
    """Say whether ``meta_Beauty.json.gz`` describes the items of ``reviews_Beauty_5.json.gz``, ``Beauty.jsonl`` and the like."""
    found = re.fullmatch(r"meta_(.+?)\.jsonl?(?:\.gz)?", items)
    return found is not None and re.match(rf"(?:reviews_|ratings_)?{re.escape(found[1])}(?:_5)?\.", events) is not None
