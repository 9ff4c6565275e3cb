"""Made-up points of a grid whose law is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from largerec.scaling import laws
from largerec.scaling.points import Point

Loss = Callable[[float, float], float]
Shape = tuple[int, int, int, float]
"""Parameters, layers, width, operations a token."""
SIZES: dict[str, Shape] = {
    name: (params, layers, width, 6.0 * params + 2e5)
    for name, params, layers, width in (
        ("nano", 25_000, 2, 48), ("tiny", 100_000, 2, 100), ("small", 400_000, 4, 140), ("base", 1_600_000, 4, 284)
    )
}  # fmt: skip
LENGTHS = (200_000, 400_000, 800_000, 1_600_000, 3_200_000)
LARGEST = (("base", 3_200_000), ("small", 12_800_000), ("base", 6_400_000))
FLOOR = 4.2


def chinchilla(params: float, tokens: float) -> float:
    return float(FLOOR + 60 / params**0.38 + 300 / tokens**0.42)


def kaplan(params: float, tokens: float) -> float:
    return float(((2e13 / params) ** (0.076 / 0.095) + 1.5e13 / tokens) ** 0.095)


def quality(loss: float) -> float:
    return float(0.35 * np.exp(-0.55 * (loss - 4)))


def made(
    law: Loss = chinchilla,
    *,
    seed: int = 0,
    noise: float = 0.002,
    quality_noise: float = 0.006,
    family: str = "hstu",
    seeds: int = 2,
    rate: float = 1e9,
    sizes: dict[str, Shape] = SIZES,
    shorter: int = 1,
) -> list[Point]:
    """A grid of four sizes and up to five lengths, the larger of them held out; noise is relative, of one run.

    ``rate``: operations a second. ``shorter``: the lengths are divided by it, and each token is worth so many.
    """
    random = np.random.default_rng(seed)
    fit = [(size, d) for size, own in sizes.items() for d in LENGTHS if own[0] * d <= 4e5 * 1.6e6 * 1.1]
    found = []
    for held_out, cells in ((False, fit), (True, LARGEST)):
        for size, length in cells:
            for at in range(seeds):
                params, layers, width, each = sizes[size]
                tokens = length // shorter
                true, flops = law(params, length), each * tokens
                name = f"{family}-{size}-{tokens}-s{at}"
                loss = true * float(np.exp(random.normal(0, noise)))
                ndcg = quality(true) * float(np.exp(random.normal(0, quality_noise)))
                found.append(
                    Point(
                        name=name, family=family, size=size, seed=at, dir=name, data_hash="0" * 64,
                        layers=layers, width=width, params=params,
                        params_embedding=20_000, tokens=tokens, unique_tokens=tokens, epochs=1.0,
                        steps=-(-tokens // 1000), history=50, catalogue=2_000, flops=flops, seconds=flops / rate, cores=1,
                        loss=loss, loss_interval=None, metrics={"ndcg@10": ndcg}, entropy=5.1, regime="single-epoch",
                        held_out=held_out, state="finished", irreducible=FLOOR, popularity=7.5,
                    )
                )  # fmt: skip
    return found


def repeated(points: list[Point], unique: int) -> list[Point]:
    """The same points over so few different events that they come again."""
    return [replace(p, unique_tokens=unique, epochs=p.tokens / unique, regime="repeated", name=f"again-{p.name}") for p in points]


FITTED: dict[str, laws.Law] = {}


@pytest.fixture(autouse=True)
def fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is made of laws: those of the same points are the same, so each is fitted once in a process."""
    fit_law = laws.fit_law

    def once(points: Sequence[Point], quantity: str = "loss", *, loss: laws.Law | None = None, seed: int = 0) -> laws.Law:
        known = [point.to_json() for point in points if not point.held_out]
        key = json.dumps([known, quantity, loss is None, seed])
        if key not in FITTED:
            FITTED[key] = fit_law(points, quantity, loss=loss, seed=seed)
        return FITTED[key]

    monkeypatch.setattr(laws, "fit_law", once)
