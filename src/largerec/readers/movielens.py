"""The raw files of MovieLens that have no header: ``u.data``, ``u.item``, and the ``.dat`` files with ``::`` between fields."""

from __future__ import annotations

import polars as pl

from largerec.readers.delimited import Layout

RATING_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip
ITEM_COLUMNS = ["item_id", "title", "release_date", "video_release_date", "imdb_url", *GENRES]
MOVIE_COLUMNS = ["item_id", "title", "genres"]
RATINGS = "ratings: user, item, rating, timestamp"
READ_IN_ORDER = ("the file has no header: user, item, rating, timestamp are read in this order",)
LAYOUTS = {
    "u.data": Layout("\t", tuple(RATING_COLUMNS), quoted=False, meaning=RATINGS, notes=READ_IN_ORDER),
    "ratings.dat": Layout("::", tuple(RATING_COLUMNS), quoted=False, meaning=RATINGS, notes=READ_IN_ORDER),
    "movies.dat": Layout("::", tuple(MOVIE_COLUMNS), quoted=False, meaning="films: item, title, genres"),
    "u.item": Layout(
        "|", tuple(ITEM_COLUMNS), quoted=False, meaning="films: item, title, two dates, address, 19 genres as 0 or 1"
    ),
}


def join_genres(table: pl.DataFrame) -> pl.DataFrame:
    """Turn the nineteen 0/1 columns of ``u.item`` into ``genres`` joined by ``|``."""
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    return table.select(*ITEM_COLUMNS[:5], genres=pl.concat_str(flags, separator="|", ignore_nulls=True))
