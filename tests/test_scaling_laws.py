"""Laws on made-up points whose law is known: recovered, chosen, sure of themselves as much as they should be, and refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scaling_points import FLOOR, chinchilla, kaplan, made, quality, repeated

from largerec.scaling import choice, fitting, forms, laws
from largerec.scaling.choice import BLENDED, NEAR, Measured, Place, cells_of, coordinates, fit_form
from largerec.scaling.forms import FORMS, Form
from largerec.scaling.points import Point

NOISELESS = made(noise=1e-6, quality_noise=1e-6)
AT = Place.of(next(point for point in NOISELESS if point.held_out))


@pytest.fixture(scope="module")
def noisy() -> list[Point]:
    return made(seed=5)


@pytest.fixture(scope="module")
def fitted(noisy: list[Point]) -> list[laws.Law]:
    found, refused = laws.fit_all(noisy, ["ndcg@10"])
    assert not refused
    return found


def test_a_known_law_is_recovered() -> None:
    law = laws.fit_law(NOISELESS)
    assert law.form.name == "chinchilla"
    found = law.to_json()["parameters"]
    for name, true in {"E": FLOOR, "A": 60, "alpha": 0.38, "B": 300, "beta": 0.42}.items():
        assert found[name] == pytest.approx(true, rel=0.01)
    assert law.floor is not None and law.floor.value == pytest.approx(FLOOR, rel=1e-3)
    assert law.predict(AT).value == pytest.approx(chinchilla(AT.params, AT.tokens), rel=1e-4)


@pytest.mark.parametrize("name", ["chinchilla", "onset", "size-alone", "data-alone", "compute", "repeated", "saturating"])
def test_printed_parameters_are_those_of_the_formula(name: str) -> None:
    """Where the coordinates are not divided by their centre they give what the fitted ones give where they are."""
    form = FORMS[name]
    centre = {"params": 1e5, "tokens": 3e6, "unique": 2e5, "flops": 1e12}
    plain = {key: 2.0 * value for key, value in centre.items()} | {"passes": 15.0}
    theta_P = np.array([-1.5 - 0.1 * at if one.startswith("log ") else 0.4 for at, one in enumerate(form.parameters)])
    found = form.natural(theta_P, centre)
    natural_P = [np.log(found[one.removeprefix("log ")]) if one.startswith("log ") else found[one] for one in form.parameters]
    told, given = (
        form.value(np.array([theta]), {key: np.array([value / by.get(key, 1.0)]) for key, value in plain.items()})
        for theta, by in ((natural_P, {}), (theta_P, centre))
    )
    assert told.item() == pytest.approx(given.item(), rel=1e-9)


def test_the_form_is_chosen_by_what_was_hidden(fitted: list[laws.Law]) -> None:
    assert fitted[0].form.name == "chinchilla"
    other = laws.fit_law(made(kaplan, seed=4))
    assert other.form.name == "kaplan"
    errors = {trial.form.name: trial.error for trial in reversed(other.choice.trials)}
    assert errors["chinchilla"] > 2 * errors["kaplan"]
    assert [trial.error for trial in other.choice.trials] == sorted(trial.error for trial in other.choice.trials)


def test_a_floor_is_not_told_from_a_term_that_hardly_falls() -> None:
    """Halving the size's part takes two to the power of 33 times the parameters: whatever E is said to be, no run can tell."""

    def slow(params: float, tokens: float) -> float:
        return float(1.0 + 3.5 / params**0.03 + 300 / tokens**0.42)

    law = laws.fit_law(made(slow, seed=3))
    assert law.floor is None and law.predict(AT).value == pytest.approx(slow(AT.params, AT.tokens), rel=0.01)


def apart(law: laws.Law) -> laws.Law:
    """The law, three to seven with itself a twentieth higher."""
    up_P = np.where([name.startswith("log ") for name in law.form.parameters], 0.05, 0.0)
    blended = tuple(replace(law.choice.blended[0], error=error) for error in (0.01, 0.01 * (3 / 7) ** 0.5))
    moved = replace(law.fit, theta_P=law.fit.theta_P + up_P, draws_BP=law.fit.draws_BP + up_P)
    return replace(law, choice=replace(law.choice, blended=blended), fits=(law.fit, moved))


def test_blended_forms_have_a_say_by_their_error(noisy: list[Point]) -> None:
    """The value is their mean in logs, weighed by 1 / error ** 2, and so many draws are around the value of each."""
    law = apart(laws.fit_law(noisy))
    assert law.choice.weights == pytest.approx([0.3, 0.7])
    own, other = (float(fit.value(coordinates([AT]))[0]) for fit in law.fits)
    assert other == pytest.approx(own * np.exp(0.05)) and law.fit.noise < 0.01, "far apart beside the noise"
    drawn, said = law.samples(AT), law.predict(AT)
    assert said.value == pytest.approx(np.exp(0.3 * np.log(own) + 0.7 * np.log(other)))
    middle = (own * other) ** 0.5
    assert (drawn < middle).mean() == pytest.approx(0.3, abs=0.01)
    assert np.median(drawn[drawn < middle]) == pytest.approx(own, rel=0.003)
    assert np.median(drawn[drawn > middle]) == pytest.approx(other, rel=0.003)
    assert said.low < own and said.high > other


def test_forms_of_the_loss_stand_on_each_of_the_losses(noisy: list[Point]) -> None:
    """Each draw lies around what its own form of the quality says of its own form of the loss."""
    below = apart(laws.fit_law(noisy))
    law = laws.fit_law([replace(p, metrics={"ndcg@10": float(np.exp(1 - p.loss / 3))}) for p in noisy], "ndcg@10", loss=below)
    assert law.form.name == "of-loss" and law.fit.noise < 1e-4
    x = coordinates([AT])
    values = [float(law.fit.value(x | {"loss": fit.value(x)})[0]) for fit in below.fits]
    drawn, middle = law.samples(AT), (values[0] * values[1]) ** 0.5
    assert (drawn > middle).mean() == pytest.approx(0.3, abs=0.01), "the lower loss, of weight .3, is the higher quality"
    assert np.median(drawn[drawn > middle]) == pytest.approx(values[0], rel=0.003)
    assert np.median(drawn[drawn < middle]) == pytest.approx(values[1], rel=0.003)


def test_what_is_blended_was_nearly_as_near(fitted: list[laws.Law]) -> None:
    for law in fitted:
        own, *others = law.choice.blended
        assert (own.form, own.share) == (law.choice.form, law.choice.share) and len(law.fits) == 1 + len(others)
        least, taken = law.choice.trials[0].error, {own.form.name}
        for trial in law.choice.trials:
            inside = trial.error <= BLENDED * least and set(trial.form.uses) == set(own.form.uses)
            assert (trial in others) == (inside and trial.form.name not in taken)
            taken |= {trial.form.name} if inside else set()
        assert sum(one["weight"] for one in law.to_json()["blend"]) == pytest.approx(1)
    assert len(fitted[0].fits) > 1


def test_the_floor_is_of_the_form_taken_and_spans_the_others(noisy: list[Point]) -> None:
    law = laws.fit_law(noisy)
    lowest = float(law.measured.y_n.min())
    assert law.floor is not None and law.floor.value == pytest.approx(FLOOR, rel=0.02)
    moved = replace(law.fit, theta_P=law.fit.theta_P - 0.2, draws_BP=law.fit.draws_BP - 0.2)
    both = laws._floor((law.fit, moved), 1.0, lowest)
    assert both is not None and both.value == law.floor.value and both.low < np.exp(moved.theta_P[0]) < law.floor.low
    plain = fit_form(FORMS["kaplan"], law.measured, draws=laws.DRAWS)
    assert laws._floor((law.fit, plain), 1.0, lowest) is None, "a form without one was as near"


def test_a_form_that_foretells_better_than_all_others_speaks_alone() -> None:
    assert laws.fit_law(NOISELESS).choice.weights.tolist() == [1.0]


def test_of_near_forms_those_come_first_that_know_size_and_data() -> None:
    """Runs whose size says little: data alone foretells hidden ones as well, and could not be asked about another width."""
    law = laws.fit_law(made(lambda params, tokens: float(FLOOR + 0.5 / params**0.4 + 300 / tokens**0.42), seed=3))
    least = law.choice.trials[0].error
    near = {trial.form.name: len(trial.form.parameters) for trial in law.choice.trials if trial.error <= NEAR * least}
    assert min(near, key=lambda name: near[name]) == "data-alone", "the simplest of near ones"
    assert {"params", "tokens"} <= set(law.form.uses)


def test_runs_before_learning_sets_in_are_told_from_a_power_law() -> None:
    """Losses that are flat at first, as those of a model of few steps: the floor is found all the same."""

    def onset(params: float, tokens: float) -> float:
        return float(3.5 + 40 / params**0.45 + 3 / (1 + tokens / 5e5) ** 1.1)

    law = laws.fit_law(made(onset, seed=2))
    assert law.form.name == "onset" and law.floor is not None
    assert law.floor.value == pytest.approx(3.5, rel=0.03) and law.floor.low < 3.5 < law.floor.high
    assert law.to_json()["parameters"]["D0"] == pytest.approx(5e5, rel=0.3)
    assert law.predict(AT).value == pytest.approx(onset(AT.params, AT.tokens), rel=0.01)


def test_larger_runs_are_foretold_and_the_metric_with_them(fitted: list[laws.Law], noisy: list[Point]) -> None:
    rows, refused = laws.check(fitted, noisy)
    found = laws.summary([row.to_json() for row in rows])
    far = [row for row in rows if row.factor >= 8 and row.quantity == "loss"]
    assert found["loss"]["far"]["runs"] == len(far) < 6 and found["loss"]["runs"] == 6
    assert not refused and {row.quantity for row in rows} == {"loss", "ndcg@10"} and len(rows) == 12
    assert found["loss"]["largest_error"] < 0.01 and found["loss"]["widest"] < 0.02
    assert found["ndcg@10"]["largest_error"] < 0.03 and found["ndcg@10"]["widest"] < 0.06
    assert min(found[name]["coverage"] for name in found) >= 0.8
    assert max(row.factor for row in rows) > 8
    predicted = fitted[1].predict(AT)
    assert predicted.value == pytest.approx(quality(chinchilla(AT.params, AT.tokens)), rel=0.02)
    json.dumps([law.to_json() for law in fitted] + [row.to_json() for row in rows], allow_nan=False)


def test_what_a_seed_changes_is_what_the_runs_were_made_with() -> None:
    """Noise of a known size; runs without a repetition and quantities that nothing was measured of say nothing."""
    points = made(noise=0.02, seed=5)
    found = laws.between_seeds(points, ("loss", "recall@10"))
    assert found.keys() == {"loss"} and found["loss"]["cells"] == len(points) / 2 > 10
    assert found["loss"]["noise"] == pytest.approx(0.02, rel=0.4)
    assert found["loss"]["least_error"] == pytest.approx(found["loss"]["noise"] * np.sqrt(2 / np.pi))
    assert laws.between_seeds([point for point in points if point.seed == 0], ("loss",)) == {}


def test_runs_on_other_logs_are_no_repetitions() -> None:
    """A version of a log with as many tokens, or another share of its users: what they change is nothing that a seed does."""
    one = made(seed=5, seeds=1)
    version = [replace(point, data_hash="1" * 64, name=f"{point.name[:-3]}-thin-s0") for point in one]
    share = [replace(point, name=f"{point.name[:-3]}-u0.5-s0") for point in one]
    assert len(np.unique(cells_of([*one, *version, *share]))) == 3 * len(one)


def test_a_metric_s_interval_knows_what_its_loss_may_be_off() -> None:
    """NDCG that follows each run's loss to the hair, which a seed changes by one in a hundred: that is what one run's is off."""
    points = []
    for point in made(noise=0.01, quality_noise=0.0, seed=3):
        points.append(replace(point, metrics={"ndcg@10": quality(point.loss)}))
    fitted = laws.fit_all(points, ["ndcg@10"])[0]
    law = next(one for one in fitted if one.quantity == "ndcg@10")
    assert law.loss is not None and "loss" in law.form.uses and law.fit.noise < 0.001
    place = Place.of(law.measured.points[-1])
    loss = float(law.loss.values([place])[0])
    noise = choice.noise_of_a_run(law.fit, [place], law.loss.fit)[0]
    slope = abs(np.log(quality(loss * 1.001)) - np.log(quality(loss))) / 0.001
    assert noise == pytest.approx(slope * law.loss.fit.noise, rel=0.1)
    said = law.predict(place)
    assert said.width > 3.2 * slope * 0.01 * 0.7, "1.6 to each side, of noise that is known to a third"


def test_intervals_cover_what_they_say() -> None:
    """Ninety of a hundred new runs, over twenty grids: within what so few repetitions can tell."""
    inside, x_new = [], coordinates([AT])
    for seed in range(20):
        points = made(seed=100 + seed)
        measured = Measured.of([point for point in points if not point.held_out], "loss")
        own = fit_form(forms.CHINCHILLA, measured, draws=100, seed=seed)
        drawn = np.log(own.values(x_new))[:, 0] + own.noise * np.random.default_rng(seed).standard_t(own.dof, 100)
        low, high = np.quantile(drawn, [0.05, 0.95])
        same = [np.log(p.loss) for p in points if p.held_out]
        true = np.log(chinchilla(AT.params, AT.tokens))
        inside += [low <= true + off <= high for off in np.random.default_rng(seed).normal(0, 0.002, 50)]
        assert len(same) == 6
    assert 0.8 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("form", [forms.CHINCHILLA, forms.KAPLAN, forms.KAPLAN_WITH_FLOOR], ids=lambda form: form.name)
def test_the_fast_search_finds_what_scipy_finds(form: Form, noisy: list[Point]) -> None:
    measured = Measured.of([point for point in noisy if not point.held_out], "loss")
    x = coordinates(measured.points)
    inside, log_n = fitting.centred(x, fitting.centre_of(x)), np.log(measured.y_n)
    starts = form.starts(inside, measured.y_n)
    slow_P, least = fitting.solve_slowly(form, inside, log_n, starts[::9], 0.003, 0.002)
    fast_SP, cost_S = fitting.solve(form, inside, np.broadcast_to(log_n, (len(starts), len(log_n))), starts, 0.003, 0.002)
    best = int(np.argmin(cost_S))
    assert cost_S[best] == pytest.approx(least, rel=1e-4)
    slow, fast = (np.log(form.value(theta[None], inside)[0]) for theta in (slow_P, fast_SP[best]))
    assert np.abs(slow - fast).max() < 1e-4


@pytest.mark.parametrize("name", list(FORMS))
def test_every_form_fits_what_it_made(name: str) -> None:
    """Values of a form inside its bounds are fitted to within a thousandth, whatever other parameters also give them."""
    form = FORMS[name]
    points = repeated(NOISELESS, 300_000) if form.repeated else NOISELESS
    measured = Measured.of(points, "loss")
    x = coordinates(measured.points) | {"loss": measured.y_n}
    inside = fitting.centred(x, fitting.centre_of(x))
    theta = form.starts(inside, measured.y_n)[1]
    made_n = form.value(theta[None], inside)[0]
    found = fitting.fit(form, x, made_n, measured.cell_n)
    assert np.abs(found.residual_n).max() < 1e-3


def test_large_forms_take_no_cut_from_the_others(noisy: list[Point]) -> None:
    """The Performance Law has seven parameters; of few cells it cannot be told, and the others are judged as without it."""
    fit = [point for point in noisy if not point.held_out and point.size != "base"][:22:2]
    law = laws.fit_law(fit, "ndcg@10", loss=laws.fit_law(fit))
    assert law.measured.cells == 11
    assert all(trial.cells >= 7 for trial in law.choice.trials)
    assert not any(trial.form.name.startswith("performance") for trial in law.choice.trials)


def test_one_wild_run_does_not_move_the_law(noisy: list[Point]) -> None:
    spoilt = [replace(point, loss=point.loss * 1.3) if point.name == "hstu-tiny-800000-s1" else point for point in noisy]
    assert spoilt != noisy
    at = [fit_form(forms.CHINCHILLA, Measured.of([p for p in ps if not p.held_out], "loss")) for ps in (noisy, spoilt)]
    before, after = (float(one.value(coordinates([AT]))[0]) for one in at)
    assert after == pytest.approx(before, rel=0.004)


def test_the_order_of_points_says_nothing(noisy: list[Point], fitted: list[laws.Law]) -> None:
    shuffled = [noisy[at] for at in np.random.default_rng(0).permutation(len(noisy))]
    assert laws.fit_law(shuffled).to_json() == fitted[0].to_json()


def test_held_out_and_failed_runs_are_not_fitted(noisy: list[Point], fitted: list[laws.Law]) -> None:
    failed = replace(noisy[0], name="failed", loss=float("nan"), state="failed")
    changed = [replace(point, loss=point.loss / 2) if point.held_out else point for point in noisy]
    assert laws.fit_law([*changed, failed]).to_json() == fitted[0].to_json()


def _refusal(law: laws.Law, **changes: object) -> str:
    with pytest.raises(laws.Refused) as error:
        law.predict(replace(AT, **changes))  # type: ignore[arg-type]
    return error.value.code


def test_a_law_refuses_what_it_cannot_know(fitted: list[laws.Law]) -> None:
    law = fitted[0]
    assert _refusal(law, regime="repeated") == "regime"
    assert _refusal(law, family="sasrec") == _refusal(law, history=200) == _refusal(law, catalogue=4_000) == "other"
    assert _refusal(law, flops=AT.flops * 100, tokens=AT.tokens * 100) == "far"
    assert law.refusal(AT) is None


def test_points_that_make_no_law_are_refused(noisy: list[Point]) -> None:
    def code(points: list[Point]) -> str:
        with pytest.raises(laws.Refused) as error:
            laws.fit_law(points)
        return error.value.code

    fit = [point for point in noisy if not point.held_out]
    assert code(fit[:8]) == "few"
    assert code([replace(point, flops=1e12 + at) for at, point in enumerate(fit)]) == "span"
    assert code(fit + repeated(fit, 100_000)) == code([*fit[1:], replace(fit[0], catalogue=9_000)]) == "mixed"
    assert code([replace(p, params=100_000, tokens=1_000_000) for p in fit]) == "form"
    assert code([replace(p, popularity=min(p.loss for p in fit) / 0.951) for p in fit]) == "plateau"


def test_a_law_of_one_size_says_nothing_of_another(noisy: list[Point]) -> None:
    wide = [replace(p, params=100_000, tokens=p.tokens * (p.params // 25_000)) for p in noisy if not p.held_out]
    law = laws.fit_law([replace(p, loss=5 + 300 / p.tokens**0.42, flops=6e5 * p.tokens) for p in wide])
    assert law.form.name == "data-alone"
    assert _refusal(law, params=400_000.0, tokens=1e6, flops=6e11) == "along"


def test_regimes_are_fitted_apart() -> None:
    again = [
        replace(p, loss=chinchilla(p.params, p.unique_tokens * (1 + 5 * -np.expm1(-max(p.epochs - 1, 0) / 5))))
        for p in repeated(NOISELESS, 200_000)
    ]
    found, refused = laws.fit_all([*NOISELESS, *again], [])
    assert not refused and [law.key.regime for law in found] == ["repeated", "single-epoch"]
    assert found[0].form.name == "repeated" and found[1].form.name == "chinchilla"
    assert found[0].to_json()["parameters"]["R"] == pytest.approx(5, rel=0.1)
    assert laws.law_for(found, replace(AT, regime="repeated"), "loss") is found[0]
