"""The raw files of MovieLens that have no header: ``u.data``, ``u.item``, and the ``.dat`` files with ``::`` between fields."""

from __future__ import annotations

import polars as pl

from largerec.errors import LargeRecError
from largerec.readers.delimited import parse_delimited

RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip
ITEM_COLUMNS = ["item_id", "title", "release_date", "video_release_date", "imdb_url", *GENRES]
MOVIE_COLUMNS = ["item_id", "title", "genres"]
FIELD_MARK = "\x1f"  # ASCII's unit separator stands for '::', since the fast reader takes one byte


def parse_ratings(data: bytes, source: str, separator: str) -> pl.DataFrame:
    """Parse ``user item rating timestamp`` rows without a header, as strings; ``separator`` is a tab or ``::``."""
    return _parse(data, source, separator, RATING_COLUMNS, "ratings: user, item, rating, timestamp")


def parse_movies(data: bytes, source: str) -> pl.DataFrame:
    """Parse ``movies.dat``: item, title, genres joined by ``|``."""
    return _parse(data, source, "::", MOVIE_COLUMNS, "films: item, title, genres")


def parse_items(data: bytes, source: str) -> pl.DataFrame:
    """Parse ``u.item`` of MovieLens-100K; its nineteen 0/1 columns become ``genres`` joined by ``|``."""
    table = _parse(data, source, "|", ITEM_COLUMNS, "films: item, title, two dates, address, 19 genres as 0 or 1")
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    return table.select(*ITEM_COLUMNS[:5], genres=pl.concat_str(flags, separator="|", ignore_nulls=True))


def _parse(data: bytes, source: str, separator: str, names: list[str], meaning: str) -> pl.DataFrame:
    body = data.rstrip(b"\r\n")
    width, count = len(names), body.partition(b"\n")[0].count(separator.encode()) + 1
    if body and count != width:
        raise LargeRecError(
            f"{source}, row 1: {count} fields between {separator!r}, but a file of this name has {width} ({meaning}). "
            "Give another kind of table as CSV with a header line."
        )
    mark = separator if len(separator) == 1 else FIELD_MARK
    return parse_delimited(body.replace(separator.encode(), mark.encode()), source, mark, names=names, quoted=False)
