"""Public logs: where they are, under which terms, and how to get them here - downloaded with resume, or copied, and verified."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import re
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largerec.errors import LargeRecError, nearest
from largerec.options import expanded

BLOCK = 1 << 20
WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class PublicFile:
    """One file to download; ``checksum`` is ``md5:...`` or ``sha256:...`` as its publisher gives it, ``size`` is in bytes."""

    url: str
    checksum: str | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class PublicSet:
    """A public log. Without ``files`` it must be got by hand from ``page`` (a login, or terms to accept)."""

    title: str
    events: str
    terms: str
    page: str
    files: tuple[PublicFile, ...] = ()
    hint: str = ""


GROUPLENS = "https://files.grouplens.org/datasets/movielens"
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
RESEARCH = "research; do not redistribute"
GROUPLENS_TERMS = "research; no commercial use or redistribution without permission (GroupLens)"
AMAZON_TERMS = "research (UC San Diego, McAuley Lab)"


def _movielens(name: str, title: str, events: str, checksum: str | None, size: int | None) -> PublicSet:
    file = PublicFile(f"{GROUPLENS}/{name}.zip", checksum, size)
    return PublicSet(title, events, GROUPLENS_TERMS, "https://grouplens.org/datasets/movielens/", (file,))


def _amazon_2014(category: str, events: str) -> PublicSet:
    files = (PublicFile(f"{SNAP}/reviews_{category}_5.json.gz"), PublicFile(f"{SNAP}/meta_{category}.json.gz"))
    title = f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core, with metadata"
    return PublicSet(title, events, AMAZON_TERMS, "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html", files)


SETS: dict[str, PublicSet] = {
    "ml-100k": _movielens("ml-100k", "MovieLens 100K", "100,000", "md5:0e33842e24a9c977be4e0107933c0723", 4_924_029),
    "ml-1m": _movielens("ml-1m", "MovieLens 1M", "1,000,209", "md5:c4d9eecfca2ab87c1945afe126590906", None),
    "ml-10m": _movielens("ml-10m", "MovieLens 10M", "10,000,054", "md5:ce571fd55effeba0271552578f2648bd", 65_566_137),
    "ml-20m": _movielens("ml-20m", "MovieLens 20M", "20,000,263", "md5:cd245b17a1ae2cc31bb14903e1204af3", 198_702_078),
    "ml-25m": _movielens("ml-25m", "MovieLens 25M", "25,000,095", "md5:6b51fb2759a8657d3bfcbfc42b592ada", 261_978_986),
    "ml-32m": _movielens("ml-32m", "MovieLens 32M", "32,000,204", "md5:d472be332d4daa821edc399621853b57", 238_950_008),
    "ml-latest-small": _movielens("ml-latest-small", "MovieLens latest, small (it changes)", "about 100,000", None, None),
    "amazon-2014-beauty": _amazon_2014("Beauty", "198,502"),
    "amazon-2014-sports": _amazon_2014("Sports_and_Outdoors", "296,337"),
    "amazon-2014-toys": _amazon_2014("Toys_and_Games", "167,597"),
    "amazon-2018-all-beauty": PublicSet(
        "Amazon reviews 2018, All Beauty, 5-core, with metadata",
        "not counted here",
        AMAZON_TERMS,
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        (
            PublicFile(f"{UCSD}/amazon_v2/categoryFilesSmall/All_Beauty_5.json.gz"),
            PublicFile(f"{UCSD}/amazon_v2/metaFiles2/meta_All_Beauty.json.gz"),
        ),
    ),
    "amazon-2023-all-beauty": PublicSet(
        "Amazon reviews 2023, All Beauty, with metadata",
        "not counted here",
        AMAZON_TERMS,
        "https://amazon-reviews-2023.github.io/",
        (
            PublicFile(f"{UCSD}/amazon_2023/raw/review_categories/All_Beauty.jsonl.gz"),
            PublicFile(f"{UCSD}/amazon_2023/raw/meta_categories/meta_All_Beauty.jsonl.gz"),
        ),
    ),
    "kuairand-pure": PublicSet(
        "KuaiRand-Pure, short videos with many behaviours",
        "not counted here",
        "CC BY-SA 4.0",
        "https://kuairand.com/",
        (PublicFile("https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"),),
    ),
    "yambda-50m": PublicSet(
        "Yambda 50M, music listens, flat edition",
        "about 50 million with all kinds of events",
        "Apache-2.0",
        "https://huggingface.co/datasets/yandex/yambda",
        (PublicFile("https://huggingface.co/datasets/yandex/yambda/resolve/main/flat/50m/listens.parquet"),),
    ),
    "globo": PublicSet(
        "Globo.com news clicks of October 2017",
        "2,988,181",
        RESEARCH,
        "https://www.kaggle.com/datasets/gspmoreira/news-portal-user-interactions-by-globocom",
        hint="unpack the archive; clicks/ holds clicks_hour_000.csv and its like, which are read as one log",
    ),
    "trivago": PublicSet(
        "trivago hotel sessions, RecSys Challenge 2019",
        "about 19 million actions",
        RESEARCH,
        "https://recsys.trivago.cloud/challenge/dataset/",
        hint="train.csv is the log; item_metadata.csv beside it describes the hotels",
    ),
    "diginetica": PublicSet(
        "Diginetica e-commerce sessions, CIKM Cup 2016",
        "about 1 million clicks",
        RESEARCH,
        "https://competitions.codalab.org/competitions/11161",
        hint="the seventeen files period_0.txt ... period_16.txt of the works on continual learning go into one folder",
    ),
}


def table() -> list[dict[str, Any]]:
    """Return a row for each set: name, title, events, size in bytes (None where it is not known), terms, and how it is got."""
    rows = []
    for name, found in SETS.items():
        sizes = [file.size for file in found.files]
        size = sum(size for size in sizes if size is not None) if sizes and None not in sizes else None
        checked = "yes" if found.files and all(file.checksum for file in found.files) else "no"
        get = f"largerec data fetch {name}" if found.files else found.page
        rows.append({"name": name, "title": found.title, "events": found.events, "bytes": size, "checksum": checked}
                    | {"terms": found.terms, "get": get, "page": found.page})  # fmt: skip
    return rows


Report = Callable[[str, int, int | None], None]  # name of the file, bytes so far, bytes in all where known


def fetch(
    name: str, to: str | Path | None = None, *, given: str | Path | None = None, report: Report | None = None
) -> dict[str, Any]:
    """Get a public set into a folder (``data/<name>``), verified and unpacked; return where and how it was verified.

    Args:
        to: the folder. What is there already and right is not fetched again; what is there in part is taken up.
        given: a local copy: the file itself, or a folder that holds the set's files. Nothing is then downloaded.

    Raises:
        LargeRecError: no such set, it must be got by hand, no connection, a download that breaks off, or a wrong checksum.
    """
    if name not in SETS:
        raise LargeRecError(f"there is no public set {name!r}{nearest(name, SETS)} Known: {', '.join(SETS)}.")
    found = SETS[name]
    folder = Path(to) if to is not None else Path("data") / name
    if not found.files:
        raise LargeRecError(
            f"{name}: its publisher gives it by hand only (login or terms). Get it from {found.page}; {found.hint}. "
            f"Put the files into {folder} and give data.path={folder}. Terms: {found.terms}."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LargeRecError(
            f"--to {folder}: there can be no folder ({error.strerror}). Give a new or existing folder."
        ) from error
    verified = {}
    for file in found.files:
        target = folder / file.name
        if not target.is_file():
            if given is not None:
                _copy(file, expanded(given, "--from"), target, len(found.files))
            else:
                _download(file, target, report or (lambda *_: None))
        verified[file.name] = verify(file, target)
        _unpack(target, folder)
    return {"name": name, "dir": str(folder), "files": verified, "terms": found.terms, "use": f"data.path={folder}"}


def verify(file: PublicFile, path: Path) -> str:
    """Compare a file with its published checksum and size; return in words what was found.

    Raises:
        LargeRecError: it is another file or damaged; it is moved to ``<name>.wrong``, so that the next fetch starts anew.
    """
    size = path.stat().st_size
    kind, _, expected = (file.checksum or "").partition(":")
    problem = f"it has {size:,} bytes, not {file.size:,}" if file.size is not None and size != file.size else ""
    if not problem and kind:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, kind).hexdigest()
        if found != expected:
            problem = f"its {kind} is {found}, not {expected}"
    if problem:
        wrong = path.with_name(f"{path.name}.wrong")
        path.replace(wrong)
        raise LargeRecError(f"{path}: this is not the published file: {problem}. It is now {wrong.name}; fetch it again.")
    return f"{kind} as published" if kind else "not verified: no published checksum"


def _copy(file: PublicFile, given: Path, target: Path, count: int) -> None:
    source = given / file.name if given.is_dir() else given
    if not source.is_file() or (count > 1 and not given.is_dir()):
        needed = "a folder with all the set's files" if count > 1 else "the file itself, or a folder that holds it"
        raise LargeRecError(f"--from {given}: {file.name} is not there. Give {needed}; it is published at {file.url}.")
    part = target.with_name(f"{target.name}.copy")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LargeRecError(f"{source} cannot be copied to {target} ({error}). Give --to FOLDER where there is room.") from error


def _download(file: PublicFile, target: Path, report: Report) -> None:
    """Download into ``<name>.part``, going on where an earlier try broke off, and rename it when it is whole."""
    part = target.with_name(f"{target.name}.part")
    try:
        try:
            done, total = _receive(file, part, report)
        except _NoRangeError:
            part.unlink(missing_ok=True)
            done, total = _receive(file, part, report)
    except urllib.error.HTTPError as error:
        raise LargeRecError(f"{file.url}: the server answers {error.code} {error.reason}. {_by_hand(file, target)}") from None
    except (OSError, http.client.HTTPException, _NoRangeError) as error:  # URLError, timeouts, broken connections among them
        reason = getattr(error, "reason", error) or type(error).__name__
        raise LargeRecError(f"{file.url} cannot be reached or broke off ({reason}). {_by_hand(file, target)}") from None
    if total is not None and done != total:
        raise LargeRecError(
            f"{file.url}: the connection broke off after {done:,} of {total:,} bytes. The same command goes on from there."
        )
    part.replace(target)


class _NoRangeError(Exception):
    """The part at hand is none of the file that the server has, or the server sends another range than was asked for."""


def _receive(file: PublicFile, part: Path, report: Report) -> tuple[int, int | None]:
    """Ask for what the part lacks and append it; return the bytes at hand, and in all where the server says so."""
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(file.url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=WAIT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if (error.headers.get("Content-Range") or "").strip() == f"bytes */{start}":  # nothing is left to send: the part is whole
            return start, start
        raise _NoRangeError(f"the server has no bytes from {start:,} on") from None
    with answer:
        sent = re.match(r"\s*bytes\s+(\d+)-", answer.headers.get("Content-Range") or "")
        if answer.status == 206 and (sent is None or int(sent[1]) != start):
            raise _NoRangeError(f"the server sends {answer.headers.get('Content-Range')}, not the bytes from {start:,} on")
        start = start if answer.status == 206 else 0  # otherwise the server gives the whole file
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        done = start
        with part.open("ab" if start else "wb") as stream:
            while block := answer.read(BLOCK):
                stream.write(block)
                done += len(block)
                report(file.name, done, total)
    return done, total


def _by_hand(file: PublicFile, target: Path) -> str:
    return (
        f"Without a connection: get {file.name} from {file.url} on another machine and put it at {target}, or give --from PATH; "
        "then the same command verifies and unpacks it. A connection that comes back goes on where it broke off."
    )


def _unpack(path: Path, folder: Path) -> None:
    """Unpack an archive beside itself; entries that would lie outside the folder are refused.

    Raises:
        LargeRecError: the archive is damaged or would write elsewhere.
    """
    try:
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if not (folder / entry).resolve().is_relative_to(folder.resolve()):
                        raise LargeRecError(f"{path}: entry {entry!r} would be written outside {folder}. Nothing is unpacked.")
                archive.extractall(folder)
        elif path.name.endswith((".tar.gz", ".tgz")):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError) as error:
        raise LargeRecError(f"{path}: the archive cannot be unpacked ({error}). Take it away and fetch it again.") from error
