"""Public sets: downloads from a local server with resume, checksums, copies, archives, and what is said to do by hand."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import http.server
import io
import lzma
import re
import socket
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from largerec import publicsets
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.publicsets import SETS, PublicFile, PublicSet, fetch, table

LOG = b"user_id,item_id,timestamp\n" + b"".join(b"%d,%d,1300000000\n" % (n, n % 7) for n in range(4000))


class Server(http.server.ThreadingHTTPServer):
    """Gives ``files``; says what was asked for; may ignore ranges, or break off after some bytes."""

    files: dict[str, bytes]
    asked: list[tuple[str, str | None]]
    ranges = True
    break_after: int | None = None
    content_range: str | None = None  # in place of the right one

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.asked.append((name, wanted))
        if name not in self.server.files:
            self.send_error(404)
            return
        data = self.server.files[name]
        start = int(re.sub(r"\D", "", wanted)) if wanted and self.server.ranges else 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", self.server.content_range or f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", self.server.content_range or f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = None if self.server.break_after is None else start + self.server.break_after
        self.wfile.write(data[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        found.files, found.asked = {}, []
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def offer(monkeypatch: pytest.MonkeyPatch, *files: PublicFile) -> None:
    monkeypatch.setitem(SETS, "mine", PublicSet("Mine", "4,000", "free", "http://127.0.0.1/page", files))


def md5(data: bytes) -> str:
    return f"md5:{hashlib.md5(data).hexdigest()}"


def test_a_download_is_verified_reported_and_not_repeated(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(LOG)
    server.files["events.csv.gz"] = packed
    offer(monkeypatch, PublicFile(server.url("events.csv.gz"), md5(packed), len(packed)))
    said: list[tuple[str, int, int | None]] = []
    for _ in range(2):
        found = fetch("mine", tmp_path / "x", report=lambda *what: said.append(what))
        assert found["files"] == {"events.csv.gz": "md5 as published"}
    assert said[-1] == ("events.csv.gz", len(packed), len(packed))
    assert server.asked == [("events.csv.gz", None)]
    assert load_log(DataOptions(path=str(tmp_path / "x"))).events.height == 4000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    server.files["events.csv"], server.ranges, server.break_after = LOG, ranges, 10_000
    offer(monkeypatch, PublicFile(server.url("events.csv"), md5(LOG)))
    with pytest.raises(LargeRecError, match=r"broke off after 10,000 of [\d,]+ bytes. The same command goes on from there"):
        fetch("mine", tmp_path)
    assert (tmp_path / "events.csv.part").stat().st_size == 10_000
    server.break_after = None
    fetch("mine", tmp_path)
    assert server.asked[-1] == ("events.csv", "bytes=10000-")
    assert (tmp_path / "events.csv").read_bytes() == LOG


def test_a_part_that_is_whole_is_taken(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["events.csv"] = LOG
    offer(monkeypatch, PublicFile(server.url("events.csv"), md5(LOG)))
    (tmp_path / "events.csv.part").write_bytes(LOG)
    assert fetch("mine", tmp_path)["files"] == {"events.csv": "md5 as published"}


@pytest.mark.parametrize(
    ("part", "said"),
    [(LOG[:10_000], "bytes 0-9999/20000"), (b"x" * (len(LOG) + 1), None), (b"x" * len(LOG), "bytes */7"), (LOG[:9], "nonsense")],
)
def test_a_part_that_the_server_does_not_go_on_from_is_begun_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bytes, said: str | None
) -> None:
    server.files["events.csv"], server.content_range = LOG, said
    offer(monkeypatch, PublicFile(server.url("events.csv")))
    (tmp_path / "events.csv.part").write_bytes(part)
    fetch("mine", tmp_path)
    assert (tmp_path / "events.csv").read_bytes() == LOG
    assert [wanted for _, wanted in server.asked] == [f"bytes={len(part)}-", None]


def test_an_answer_that_is_no_http_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise http.client.BadStatusLine("SSH-2.0")

    monkeypatch.setattr("urllib.request.urlopen", broken)
    offer(monkeypatch, PublicFile("http://127.0.0.1/events.csv"))
    with pytest.raises(LargeRecError, match=r"cannot be reached or broke off \(SSH-2\.0\)\. Without a connection"):
        fetch("mine", tmp_path)


def test_a_folder_that_cannot_be_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, PublicFile("http://127.0.0.1/events.csv"))
    (tmp_path / "some.file").write_bytes(b"keep")
    for to in ("some.file", "some.file/x"):
        with pytest.raises(LargeRecError, match="there can be no folder"):
            fetch("mine", tmp_path / to, given=tmp_path)
    (tmp_path / "events.csv").write_bytes(LOG)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(LargeRecError, match=r"cannot be copied to .*No space left"):
        fetch("mine", tmp_path / "x", given=tmp_path)


@pytest.mark.parametrize("error", [zlib.error, lzma.LZMAError, RuntimeError, NotImplementedError, EOFError])
def test_whatever_an_archive_raises_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def broken(*_: object) -> None:
        raise error("odd")

    offer(monkeypatch, PublicFile("http://127.0.0.1/mine.zip"))
    (tmp_path / "mine.zip").write_bytes(archive("zip", "mine/events.csv"))
    monkeypatch.setattr(zipfile.ZipFile, "extractall", broken)
    with pytest.raises(LargeRecError, match=r"the archive cannot be unpacked \(odd\)"):
        fetch("mine", tmp_path / "x", given=tmp_path)


@pytest.mark.parametrize("file", [PublicFile("u/e.csv", md5(b"other")), PublicFile("u/e.csv", None, 3)])
def test_another_file_than_the_published_one_is_put_aside(tmp_path: Path, file: PublicFile) -> None:
    (tmp_path / "e.csv").write_bytes(LOG)
    with pytest.raises(LargeRecError, match="this is not the published file: it"):
        publicsets.verify(file, tmp_path / "e.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["e.csv.wrong"]


def test_without_a_published_checksum_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, PublicFile("http://127.0.0.1/events.csv"))
    (tmp_path / "given.csv").write_bytes(LOG)
    found = fetch("mine", tmp_path / "x", given=tmp_path / "given.csv")
    assert found["files"] == {"events.csv": "not verified: no published checksum"}
    assert (tmp_path / "x" / "events.csv").read_bytes() == LOG
    assert (tmp_path / "given.csv").exists()


def test_copies_of_several_files_come_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, PublicFile("http://127.0.0.1/events.csv"), PublicFile("http://127.0.0.1/items.csv"))
    (tmp_path / "events.csv").write_bytes(LOG)
    for given in (tmp_path, tmp_path / "events.csv"):
        with pytest.raises(LargeRecError, match=r"is not there\. Give a folder with all the set's files"):
            fetch("mine", tmp_path / "x", given=given)
    (tmp_path / "items.csv").write_bytes(b"item_id,title\n1,One\n")
    fetch("mine", tmp_path / "x", given=tmp_path)
    assert (tmp_path / "x" / "items.csv").is_file()


def archive(kind: str, name: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr(name, LOG)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as packed_tar:
            entry = tarfile.TarInfo(name)
            entry.size = len(LOG)
            packed_tar.addfile(entry, io.BytesIO(LOG))
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked_but_not_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    offer(monkeypatch, PublicFile(f"http://127.0.0.1/mine.{kind}"))
    (tmp_path / f"mine.{kind}").write_bytes(archive(kind, "mine/events.csv"))
    found = fetch("mine", tmp_path / "x", given=tmp_path)
    assert load_log(DataOptions(path=found["use"].removeprefix("data.path="))).events.height == 4000
    (tmp_path / f"mine.{kind}").write_bytes(archive(kind, "../evil.csv"))
    with pytest.raises(LargeRecError):
        fetch("mine", tmp_path / "y", given=tmp_path)
    assert not (tmp_path / "evil.csv").exists()
    (tmp_path / f"mine.{kind}").write_bytes(b"no archive")
    with pytest.raises(LargeRecError, match="the archive cannot be unpacked"):
        fetch("mine", tmp_path / "z", given=tmp_path)


def test_without_a_connection_it_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/events.csv"
    offer(monkeypatch, PublicFile(url))
    with pytest.raises(LargeRecError) as caught:
        fetch("mine", tmp_path)
    assert f"get events.csv from {url} on another machine and put it at {tmp_path / 'events.csv'}, or give --from PATH" in str(
        caught.value
    )


def test_what_the_server_does_not_have(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, PublicFile(server.url("gone.csv")))
    with pytest.raises(LargeRecError, match=r"the server answers 404 Not Found\. Without a connection"):
        fetch("mine", tmp_path)


def test_sets_that_are_got_by_hand_and_unknown_ones(tmp_path: Path) -> None:
    with pytest.raises(LargeRecError, match=r"trivago: its publisher gives it by hand only .* train.csv is the log"):
        fetch("trivago", tmp_path)
    with pytest.raises(LargeRecError, match=r"there is no public set 'ml-1n'; did you mean 'ml-1m'\?"):
        fetch("ml-1n", tmp_path)


def test_the_table_is_whole() -> None:
    rows = table()
    assert len(rows) == len(SETS) and {"ml-1m", "kuairand-pure", "yambda-50m"} <= {row["name"] for row in rows}
    for row, found in zip(rows, SETS.values(), strict=True):
        assert row["terms"] and row["title"] and row["page"].startswith("https://")
        assert bool(found.files) != bool(found.hint), "a set is fetched, or it is said what to do by hand"
        for file in found.files:
            assert file.url.startswith("https://") and "/" not in file.name
            assert file.checksum is None or re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", file.checksum)
