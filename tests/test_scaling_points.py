"""Points of a grid come back as they were written; damage is named by file and line."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from largerec.errors import LargeRecError
from largerec.scaling.points import FILE, Point, read_points, write_point


def point(name: str = "hstu-nano-s0", **changes: object) -> Point:
    """A point with plausible numbers."""
    one = Point(
        name=name,
        family="hstu",
        size="nano",
        seed=0,
        dir=f"grid/{name}",
        data_hash="0" * 64,
        layers=2,
        width=48,
        params=23_780,
        params_embedding=96_000,
        tokens=400_000,
        unique_tokens=100_000,
        epochs=4.0,
        steps=98,
        history=50,
        catalogue=2_000,
        flops=1.5e11,
        seconds=3.25,
        cores=2,
        loss=6.125,
        loss_interval=(6.0, 6.25),
        metrics={"ndcg@10": 0.04, "recall@10": 0.08},
        entropy=5.5,
        regime="repeated",
        held_out=False,
        state="finished",
        irreducible=5.75,
        popularity=6.75,
    )
    return dataclasses.replace(one, **changes)  # type: ignore[arg-type]


def test_points_come_back_in_order_and_are_replaced_by_name(tmp_path: Path) -> None:
    assert read_points(tmp_path) == []
    for name in ("b", "a", "c"):
        write_point(tmp_path, point(name, loss_interval=None, entropy=None))
    again = point("a", loss=5.5, held_out=True)
    write_point(tmp_path, again)
    found = read_points(tmp_path)
    assert [one.name for one in found] == ["b", "a", "c"]
    assert found[1] == again
    assert found[0].loss_interval is None and found[0].entropy is None


def test_a_failed_run_has_no_loss(tmp_path: Path) -> None:
    write_point(tmp_path, point(loss=math.nan, state="failed", loss_interval=None))
    assert "NaN" not in (tmp_path / FILE).read_text()
    (found,) = read_points(tmp_path)
    assert math.isnan(found.loss) and found.state == "failed"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda line: line[:40], "line 2, is damaged"),
        (lambda line: "[]", "no JSON object"),
        (lambda line: line.replace('"tokens"', '"token"'), "'token'"),
        (lambda line: line.replace('"finished"', '"ended"'), "state='ended'"),
        (lambda line: line.replace('"y"', '"x"'), "repeats the point 'x'"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: object, words: str) -> None:
    for name in ("x", "y"):
        write_point(tmp_path, point(name))
    first, second = (tmp_path / FILE).read_text().splitlines()
    (tmp_path / FILE).write_text(f"{first}\n{damage(second)}\n")  # type: ignore[operator]
    with pytest.raises(LargeRecError, match=words.replace("[", r"\[")):
        read_points(tmp_path)
