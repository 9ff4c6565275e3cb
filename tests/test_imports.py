"""``data import``: the folder reads back as the same log, its hash depends on content only, and what changed is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from logs import put

from largerec import manifest
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.imports import import_log
from largerec.sequences import SplitOptions, build_sequences
from largerec.steps import Steps

EVENTS = b"user_id,item_id,rating,timestamp,shop\nann,10,4,1300000000,a\nbob,20,3.5,1300000060,\nann,20,5,1300000120,b\n"
ITEMS = b"item_id,title,category\n10,Ten,A\n20,Twenty,B\n30,Thirty,C\n"


@pytest.fixture
def shop(tmp_path: Path) -> DataOptions:
    folder = tmp_path / "shop"
    folder.mkdir()
    put(folder, log__csv=EVENTS, log__items__csv=ITEMS)
    return DataOptions(path=str(folder / "log.csv"))


def test_an_import_reads_back_as_the_same_log(shop: DataOptions, tmp_path: Path) -> None:
    found = import_log(shop, tmp_path / "out")
    before, after = load_log(shop), load_log(DataOptions(path=str(tmp_path / "out")))
    assert after.events.equals(before.events)
    assert after.items is not None and before.items is not None and after.items.equals(before.items)
    assert (found["events"], found["users"], found["items"], found["steps"]) == (3, 2, 2, [])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == found
    assert set(found["files"]) == {"events.parquet", "events.items.parquet"}


def test_the_hash_is_that_of_the_content(shop: DataOptions, tmp_path: Path) -> None:
    first = import_log(shop, tmp_path / "one")["content"]
    assert import_log(DataOptions(path=str(tmp_path / "one")), tmp_path / "two")["content"] == first
    Path(str(shop.path)).write_bytes(EVENTS.replace(b"3.5", b"3.0"))
    assert import_log(shop, tmp_path / "three")["content"] != first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pl.Series("x", [1, None]), pl.Series("x", [1, 0])),
        (pl.Series("x", ["ab", "c"]), pl.Series("x", ["a", "bc"])),
        (pl.Series("x", [[1, 2], [3]]), pl.Series("x", [[1], [2, 3]])),
        (pl.Series("x", [[], [1]]), pl.Series("x", [None, [1]])),
        (pl.Series("x", [1, 2]), pl.Series("y", [1, 2])),
        (pl.Series("x", [1, 2]), pl.Series("x", [1.0, 2.0])),
        (pl.Series("x", [True, False]), pl.Series("x", [False, True])),
        (pl.Series("x", [{"a": 1}]), pl.Series("x", [{"a": 2}])),
    ],
)
def test_different_columns_have_different_hashes(one: pl.Series, other: pl.Series) -> None:
    hashes = {manifest.content_hash(pl.DataFrame([series])) for series in (one, other)}
    assert len(hashes) == 2
    assert manifest.content_hash(pl.DataFrame([one])) in hashes


def test_a_file_that_changed_since_is_refused(shop: DataOptions, tmp_path: Path) -> None:
    import_log(shop, tmp_path / "out")
    path = tmp_path / "out" / "events.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(LargeRecError, match=r"events\.parquet: the file has changed since it was imported"):
        load_log(DataOptions(path=str(tmp_path / "out")))
    path.unlink()
    with pytest.raises(LargeRecError, match="the manifest names this file, but it is not there"):
        load_log(DataOptions(path=str(tmp_path / "out")))
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(LargeRecError, match="no whole manifest"):
        load_log(DataOptions(path=str(tmp_path / "out")))


def test_steps_and_dropped_rows_are_in_the_manifest(shop: DataOptions, tmp_path: Path) -> None:
    Path(str(shop.path)).write_bytes(EVENTS + b"cid,10,1,never,c\n" + EVENTS.splitlines(keepends=True)[1])
    options = shop.model_copy(update={"on_bad_rows": "drop"})
    found = import_log(options, tmp_path / "out", Steps(dedupe=True, k_core=1, sample_users=1, seed=3))
    assert found["dropped_rows"] == {"column 'timestamp' is no number, though the other times are": 1}
    assert [step["step"] for step in found["steps"]] == ["dedupe", "sample-users", "k-core"]
    assert found["options"] == {"on_bad_rows": "drop"}
    assert json.loads((tmp_path / "out" / "dropped.jsonl").read_text())["content"]["user_id"] == "cid"
    log = load_log(DataOptions(path=str(tmp_path / "out")))
    assert log.items is not None and set(log.items["item_id"]) == set(log.events["item_id"])


def test_a_folder_with_something_in_it_is_not_touched(shop: DataOptions, tmp_path: Path) -> None:
    put(tmp_path, mine__txt=b"keep")
    for overwrite in (False, True):
        with pytest.raises(LargeRecError, match="there is something already"):
            import_log(shop, tmp_path, overwrite=overwrite)
    import_log(shop, tmp_path / "out")
    with pytest.raises(LargeRecError, match="--overwrite if it is an earlier import"):
        import_log(shop, tmp_path / "out")
    again = import_log(shop, tmp_path / "out", Steps(k_core=1), overwrite=True)
    assert [step["step"] for step in again["steps"]] == ["k-core"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("source", "to"), [("out", "out"), ("out/events.parquet", "out"), ("out", "out/in")])
def test_an_import_never_takes_the_place_of_its_source(shop: DataOptions, tmp_path: Path, source: str, to: str) -> None:
    import_log(shop, tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(LargeRecError, match=r"--to .*out.* what is imported \(data\.path="):
        import_log(DataOptions(path=str(tmp_path / source)), tmp_path / to, overwrite=True)
    assert contents(tmp_path) == before


def test_an_items_file_in_the_folder_is_not_overwritten(shop: DataOptions, tmp_path: Path) -> None:
    import_log(shop, tmp_path / "out")
    items = shop.model_copy(update={"items": str(tmp_path / "out" / "events.items.parquet")})
    with pytest.raises(LargeRecError, match=r"holds what is imported \(data\.items="):
        import_log(items, tmp_path / "out", overwrite=True)


def test_an_import_that_fails_leaves_things_as_they_were(shop: DataOptions, tmp_path: Path) -> None:
    Path(str(shop.path)).write_bytes(EVENTS + b"cid,10,1,never,c\n")
    options, before = shop.model_copy(update={"on_bad_rows": "drop"}), contents(tmp_path)
    with pytest.raises(LargeRecError, match=r"leaves none of"):
        import_log(options, tmp_path / "out", Steps(k_core=99))
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()
    found = import_log(options, tmp_path / "out")
    assert any(str(tmp_path / "out" / "dropped.jsonl") in note for note in found["notes"])
    before = contents(tmp_path)
    with pytest.raises(LargeRecError, match=r"leaves none of"):
        import_log(options, tmp_path / "out", Steps(k_core=99), overwrite=True)
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shop"]


def test_the_earlier_import_comes_back_when_the_new_one_cannot_take_its_place(
    shop: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_log(shop, tmp_path / "out")
    before, rename = contents(tmp_path), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith("-new"):
            raise OSError("no room")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(LargeRecError, match=r"the import cannot be written there \(no room\)"):
        import_log(shop, tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before


def test_a_folder_below_a_file_is_explained(shop: DataOptions, tmp_path: Path) -> None:
    put(tmp_path, mine__csv=b"keep")
    for to, expected in (("mine.csv/x", "cannot be written there"), ("mine.csv/x/y", "cannot be written there"),
                         ("shop/log.csv/x", "lies inside what is imported")):  # fmt: skip
        with pytest.raises(LargeRecError, match=expected):
            import_log(shop, tmp_path / to)


@pytest.mark.parametrize("name", ["../victim.txt", "/victim.txt", "..", ".", "a/b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(shop: DataOptions, tmp_path: Path, name: str) -> None:
    put(tmp_path, victim__txt=b"keep")
    import_log(shop, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name.replace("/victim", f"{tmp_path}/victim") if name[0] == "/" else name] = {"bytes": 4, "sha256": "x"}
    path.write_text(json.dumps(document))
    with pytest.raises(LargeRecError, match="damaged or foreign manifest"):
        import_log(shop, tmp_path / "out", overwrite=True)
    with pytest.raises(LargeRecError, match="damaged or foreign manifest"):
        manifest.verify(tmp_path / "out")
    assert (tmp_path / "victim.txt").read_bytes() == b"keep"


def test_an_earlier_import_with_other_files_beside_it_is_not_overwritten(shop: DataOptions, tmp_path: Path) -> None:
    import_log(shop, tmp_path / "out")
    put(tmp_path / "out", notes__txt=b"mine")
    before = contents(tmp_path)
    with pytest.raises(LargeRecError, match=r"the earlier import did not write \(notes\.txt\)"):
        import_log(shop, tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before


def test_recbole_files_have_the_name_of_the_folder(shop: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert set(import_log(shop, ".", target="recbole")["files"]) == {"here.inter", "here.item"}


def test_recbole_files_read_back(shop: DataOptions, tmp_path: Path) -> None:
    put(tmp_path / "shop", log__items__csv=ITEMS.replace(b"Twenty", b'"Twenty\tone"'))
    found = import_log(shop, tmp_path / "shop-rb", target="recbole")
    text = (tmp_path / "shop-rb" / "shop-rb.inter").read_text().splitlines()
    assert text[0] == "user_id:token\titem_id:token\ttimestamp:float\trating:float\tshop:token"
    assert text[2] == "bob\t20\t1300000060000\t3.5\t"
    assert (tmp_path / "shop-rb" / "shop-rb.item").read_text().startswith("item_id:token\ttitle:token_seq\tcategory:token_seq\n")
    assert any("1 values held tabs" in note for note in found["notes"])
    log = load_log(DataOptions(path=str(tmp_path / "shop-rb")))
    assert log.events.drop("shop").equals(load_log(shop).events.drop("shop"))
    assert log.items is not None and log.items["title"].to_list() == ["Ten", "Twenty one", "Thirty"]


def test_bytes_that_are_no_text_are_kept_and_hashed_and_are_refused_for_recbole(tmp_path: Path) -> None:
    events = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 3], "timestamp": [10**9] * 3})
    path, hashes = tmp_path / "log.parquet", set()
    for values in ([b"\xff", b"a", None], [b"\xffa", b"", None], [b"\xff", b"a", b""]):
        events.with_columns(pl.Series("mark", values)).write_parquet(path)
        document = import_log(DataOptions(path=str(path)), tmp_path / "to", overwrite=True)
        hashes.add(document["content"])
        assert load_log(DataOptions(path=str(tmp_path / "to"))).events["mark"].to_list() == values
    assert len(hashes) == 3
    with pytest.raises(LargeRecError, match="column 'mark' holds bytes that are no UTF-8 text"):
        import_log(DataOptions(path=str(path)), tmp_path / "recbole", target="recbole")
    events.with_columns(pl.Series("mark", [[b"\xff"], [], None])).write_parquet(path)
    import_log(DataOptions(path=str(path)), tmp_path / "lists")
    with pytest.raises(LargeRecError, match="column 'mark' holds bytes"):
        import_log(DataOptions(path=str(path)), tmp_path / "recbole", target="recbole")
    events.with_columns(pl.Series("mark", [b"a", b"b", None])).write_parquet(path)
    import_log(DataOptions(path=str(path)), tmp_path / "recbole", target="recbole")


def test_a_folder_of_items_becomes_item_tables(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    put(tmp_path / "in", A__item__json__gz=b'{"0": {"title": "Pen"}, "1": {"title": "Ink"}}', A__index__json=b'{"1": ["<a_1>"]}')
    found = import_log(DataOptions(path=str(tmp_path / "in")), tmp_path / "out")
    assert found["kind"] == "items"
    assert found["tables"] == {"A": {"items": 2, "columns": ["item_id", "title", "codes"]}}
    table = pl.read_parquet(tmp_path / "out" / "A.items.parquet")
    assert table.rows() == [(0, "Pen", None), (1, "Ink", ["<a_1>"])]


FOLDERS = ["amazon2014/beauty", "amazon2018-items", "diginetica", "globo-news", "kuairand", "ml-100k", "ml-1m", "ml-latest-small",
           "movielens-latest-206k", "trivago"]  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_every_real_folder_is_imported_and_reads_back(name: str, shared_data: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = import_log(DataOptions(path=str(shared_data / name)), tmp_path / "out")
    if found["kind"] == "items":
        assert {table["items"] for table in found["tables"].values()} == {3459, 3686}
        return
    log = load_log(DataOptions(path=str(tmp_path / "out")))
    assert (log.events.height, log.time_kind) == (found["events"], found["time_kind"])
    assert manifest.content_hash(log.events, log.items) == found["content"]
    assert len(build_sequences(log, SplitOptions()).item_N) == found["events"]
