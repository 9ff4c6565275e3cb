"""Measure the Engine: what is evaluated is what serves.

Full ranking over the catalogue, no sampled candidates. "Masked" leaves out every item of the user's whole history, "unmasked"
leaves out nothing. Targets outside the training catalogue count as misses. Ties share the average rank. Popularity stands
beside, and the best possible where the log is a generated one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import polars as pl
import torch

from largerec import metrics
from largerec.bundle import RANDOM, Bundle, data_hash
from largerec.columns import UNTIMED
from largerec.engine import Engine, PopularityScorer, Scorer, load
from largerec.engine.scoring import Queries, mask_seen, query_blocks, ranks, top_k
from largerec.errors import LargeRecError
from largerec.evaluate_exposure import evaluate_exposure
from largerec.evaluate_lists import evaluate_lists
from largerec.evaluate_random import evaluate_random
from largerec.evaluate_tasks import evaluate_conditioned, evaluate_tasks
from largerec.metrics import EvaluateOptions
from largerec.oracle import Asking, Histories, negative_log, next_item_probabilities
from largerec.recipe import Recipe
from largerec.sequences import STAGES, TRAIN, Sequences, Stage, build_sequences
from largerec.simulate import log_of_world
from largerec.world import World, day_of

HOUR_MS = 3_600_000
KEYS = ("user_id", "item_id", "timestamp")
BASELINE_RANKS = "ranks-baselines.parquet"
RECENT_HOURS = {"1 h": 1, "6 h": 6, "1 d": 24, "7 d": 168, "30 d": 720, "90 d": 2160, "1 y": 8766}


@dataclass(frozen=True)
class Measurement:
    """Ranks of N targets: ``row_N`` in the sequences, ``user_N``, masked and unmasked ranks, and the top lists if asked for.

    ``baselines``: masked ranks of the same targets by each baseline, where those were measured too.
    """

    row_N: np.ndarray
    user_N: np.ndarray
    rank_N: np.ndarray
    unmasked_N: np.ndarray
    top_NK: np.ndarray
    baselines: dict[str, np.ndarray] = field(default_factory=dict)

    def values(self, options: EvaluateOptions) -> dict[str, np.ndarray]:
        """Value of every metric for each target, masked."""
        functions = {"recall": metrics.recall, "ndcg": metrics.ndcg, "mrr": metrics.mrr}
        return {f"{name}@{k}": function(self.rank_N, k) for k in options.k for name, function in functions.items()}


def measure(engine: Engine, row_N: np.ndarray, list_length: int = 0) -> Measurement:
    """Rank the targets ``row_N`` among the catalogue; ``list_length`` > 0 also keeps the masked top lists."""
    queries = engine.queries_at(row_N)
    target_N = torch.from_numpy(engine.token_of_item[engine.sequences.item_N[row_N]])
    masked, unmasked, lists = [], [], []
    for start, block in query_blocks(queries, engine.scorer.size):
        target_Q = target_N[start : start + len(block)]
        scores_QV = engine.scorer.scores(block)
        unmasked.append(ranks(scores_QV, target_Q))
        mask_seen(scores_QV, block)
        masked.append(ranks(scores_QV, target_Q))
        if list_length:
            value_QK, item_QK = top_k(scores_QV, list_length)
            lists.append(item_QK.masked_fill(torch.isneginf(value_QK), -1).cpu().numpy())
    return Measurement(
        row_N=row_N,
        user_N=np.searchsorted(engine.sequences.offsets_U1, row_N, side="right") - 1,
        rank_N=torch.cat(masked).numpy(),
        unmasked_N=torch.cat(unmasked).numpy(),
        top_NK=np.concatenate(lists) if lists else np.empty((len(row_N), 0), dtype=np.int64),
    )


def summary(engine: Engine, found: Measurement, options: EvaluateOptions, seed: int) -> dict[str, Any]:
    """The masked and unmasked metrics of a measurement, with bootstrap intervals over users and list statistics."""
    counts_V = engine.tokenizer.counts_V
    intervals = metrics.bootstrap_intervals(
        found.values(options), found.user_N, level=options.level, samples=options.bootstrap_samples, seed=seed
    )
    lists = {
        f"coverage@{found.top_NK.shape[1]}": metrics.coverage(found.top_NK, len(counts_V)),
    }
    if (found.top_NK >= 0).any():  # not where everybody has seen everything
        lists[f"gini@{found.top_NK.shape[1]}"] = metrics.gini(found.top_NK, len(counts_V))
        lists |= metrics.popularity_bias(found.top_NK, counts_V)
    return {
        "metrics": metrics.summarise(found.rank_N, options.k) | lists,
        "unmasked": metrics.summarise(found.unmasked_N, options.k),
        "intervals": intervals,
    }


def slices(engine: Engine, found: Measurement, options: EvaluateOptions, seed: int) -> dict[str, dict[str, Any]]:
    """Masked metrics of head, tail and cold targets and of short and long histories, with their number and intervals."""
    sequences, counts_V = engine.sequences, engine.tokenizer.counts_V
    token_N = engine.token_of_item[sequences.item_N[found.row_N]]
    count_N = np.where(token_N >= 0, counts_V[np.maximum(token_N, 0)], 0)
    history_N = found.row_N - sequences.offsets_U1[found.user_N]
    values, documents = found.values(options), dict[str, dict[str, Any]]()
    for name, mask in metrics.slice_masks(count_N, history_N, counts_V).items():
        own = {metric: value_N[mask] for metric, value_N in values.items()}
        intervals = metrics.bootstrap_intervals(
            own, found.user_N[mask], level=options.level, samples=options.bootstrap_samples, seed=seed
        )
        documents[name] = (
            {"targets": int(mask.sum())} | metrics.summarise(found.rank_N[mask], options.k) | {"intervals": intervals}
        )
    return documents


def recent_counts(sequences: Sequences, token_of_item: np.ndarray, size: int, hours: int) -> np.ndarray:
    """Training events of each token in the last ``hours`` of training [V]."""
    trained = (sequences.stage_N == TRAIN) & (sequences.time_N != UNTIMED)
    last = sequences.time_N[trained].max(initial=UNTIMED)
    recent = trained & (sequences.time_N > last - hours * HOUR_MS)
    if sequences.positive_N is not None:
        recent &= sequences.positive_N
    token_R = token_of_item[sequences.item_N[recent]]
    return np.bincount(token_R[token_R >= 0], minlength=size)


def popularity_scorers(engine: Engine) -> dict[str, Scorer]:
    """The baselines: overall popularity, and recent popularity where the log has a clock (window chosen on validation)."""
    counts_V = engine.tokenizer.target_counts(engine.sequences)
    found: dict[str, Scorer] = {"popularity": PopularityScorer(counts_V)}
    if engine.sequences.time_kind != "timestamp":
        return found
    trained_N = engine.sequences.time_N[engine.sequences.stage_N == TRAIN]
    trained_N = trained_N[trained_N != UNTIMED]
    span = np.ptp(trained_N) if len(trained_N) else 0
    rows = sample_targets(engine.sequences, "validation", 25_000, seed=0)
    best, best_name, best_scorer = -1.0, "", found["popularity"]
    for name, hours in RECENT_HOURS.items():
        if hours * HOUR_MS >= span:
            break
        recent_V = recent_counts(engine.sequences, engine.token_of_item, engine.scorer.size, hours)
        # The overall count breaks ties, so that a short window is not punished for its many zeros.
        scorer = PopularityScorer(recent_V + counts_V / (2.0 * max(1, counts_V.max())))
        got = float(metrics.ndcg(measure(Engine.beside(engine, scorer), rows).rank_N, 10).mean())
        if got > best:
            best, best_name, best_scorer = got, name, scorer
    return found | ({f"recent popularity ({best_name})": best_scorer} if best_name else {})


class OracleScorer:
    """The law of the next item in the world that generated the log, as scores: nothing ranks better on average.

    ``losses``: -log P of the items that really came, in nats, for everything that was asked so far, block by block; items outside
    the catalogue count too.
    """

    def __init__(self, engine: Engine, world: World, asking: Asking, *, exposed: bool = False) -> None:
        self.world, self.asking, self.size = world, asking, engine.tokenizer.size
        self.shown_W = world.exposure_V if exposed else None  # targets are only what the logging policy showed
        self.histories = Histories.of(world, engine.sequences)
        number = {item: n for n, item in enumerate(world.item_ids)}
        self.item_V = np.array([number[item] for item in engine.tokenizer.vocabulary["item_id"].to_list()])
        self.losses: list[np.ndarray] = []

    def scores(self, queries: Queries) -> torch.Tensor:
        assert queries.row_Q is not None, "the oracle answers at rows of the log only"
        law_QW = next_item_probabilities(self.world, self.histories, queries.row_Q, self.asking)  # of the world's items
        if self.shown_W is not None:
            law_QW *= self.shown_W
            law_QW /= law_QW.sum(axis=1, keepdims=True)
        self.losses.append(negative_log(law_QW, self.histories.item_N[queries.row_Q]))
        return torch.from_numpy(law_QW[:, self.item_V].astype(np.float32))


def _asks_by_law(recipe: Recipe) -> bool:
    """Whether the world's law says what comes next among the targets."""
    positives = recipe.split.positives
    return positives is None or (recipe.data.simulate.exposure > 0 and positives.replace(" ", "") == "exposed=1")


def generated_world(recipe: Recipe, data: str) -> World | None:
    """The world of a run's log, if the log is a generated one without faults; ``data`` is the hash of the split log.

    With ``split.positives`` there is none, but for those that the logging policy showed (``exposed = 1``): what it shows
    depends on the item alone. Of other conditions the law of the world says nothing.

    The log is generated again and compared, since a run may be older than the rules of this version.
    """
    if recipe.data.path is not None or recipe.data.faults.any or not _asks_by_law(recipe):
        return None
    world = World(recipe.data.simulate)
    return world if data_hash(build_sequences(log_of_world(world), recipe.split, recipe.tasks, recipe.lists)) == data else None


def asking_of(recipe: Recipe, sequences: Sequences, stage: Stage) -> Asking:
    """What a recipe's model and split let be known about the moment of the next event."""
    query_time = bool(getattr(recipe.model, "query_time", False))
    if recipe.split.protocol != "timeline":
        return Asking(query_time)
    day_N = day_of(sequences.time_N[sequences.stage_N == STAGES[stage]])
    return Asking(query_time, int(day_N.min()), int(day_N.max()))


def best_possible(engine: Engine, world: World, recipe: Recipe, stage: Stage, options: EvaluateOptions) -> dict[str, Any]:
    """What no recommender can beat on average on the targets of a stage, as a baseline's document, with ``cross_entropy``.

    It knows the world's every number, reads whole histories with their times and behaviours, and the moment of asking only if
    the model does (``query_time``); under a timeline it knows from when until when is asked.
    """
    asking, exposed = asking_of(recipe, engine.sequences, stage), recipe.split.positives is not None
    scorer = OracleScorer(engine, world, asking, exposed=exposed)
    beside = Engine.beside(engine, scorer)
    rows = engine.sequences.targets(stage)
    found = summary(beside, measure(beside, rows, options.k[-1]), options, recipe.seed)
    kept = {name: found[name] for name in ("unmasked", "intervals")}
    return {**found["metrics"], **kept, "cross_entropy": float(np.concatenate(scorer.losses).mean())}


def sample_targets(sequences: Sequences, stage: Stage, most: int, seed: int) -> np.ndarray:
    """All targets of a stage, or a seeded sample of ``most`` of them in their order."""
    rows = sequences.targets(stage)
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def evaluate_engine(
    engine: Engine, stage: Stage, options: EvaluateOptions, seed: int, *, baselines: bool = True
) -> tuple[dict[str, Any], Measurement]:
    """Everything that ``result.json`` says of one stage, and the ranks behind it; ``baselines``: measure those too."""
    rows = engine.sequences.targets(stage)
    longest = options.k[-1]
    found = measure(engine, rows, longest)
    token_N = engine.token_of_item[engine.sequences.item_N[rows]]
    document = summary(engine, found, options, seed)
    document["slices"] = slices(engine, found, options, seed)
    document["targets"] = {"n": len(rows), "users": len(np.unique(found.user_N)), "outside_catalogue": int((token_N < 0).sum())}
    document["targets"]["masked_as_seen"] = int((np.isinf(found.rank_N) & np.isfinite(found.unmasked_N)).sum())
    document["baselines"], baseline_ranks = {}, dict[str, np.ndarray]()
    for name, scorer in popularity_scorers(engine).items() if baselines else ():
        beside = Engine.beside(engine, scorer)
        measured = measure(beside, rows, longest)
        baseline, baseline_ranks[name] = summary(beside, measured, options, seed), measured.rank_N
        document["baselines"][name] = baseline["metrics"] | {"unmasked": baseline["unmasked"], "intervals": baseline["intervals"]}
    return document, replace(found, baselines=baseline_ranks)


def calibration(engine: Engine, row_N: np.ndarray, k: int, options: EvaluateOptions, seed: int) -> dict[str, Any]:
    """Are the probabilities of the recommended items true? Those of the top k (masked, as served) beside the share of hits.

    The probability of an item is the softmax of the scores over the whole catalogue, seen items too: what training with the full
    softmax fits. Targets whose history holds no item of the catalogue are left out: their list is by popularity.
    Returns ``targets``, ``k``, ``expected`` and ``observed`` hits a list, the latter's ``interval``, and ``bins`` as of
    :func:`largerec.metrics.reliability`.
    """
    queries = engine.queries_at(row_N)
    asked = np.flatnonzero(queries.end_Q > queries.first_Q)
    row_N, user_N = row_N[asked], np.searchsorted(engine.sequences.offsets_U1, row_N[asked], side="right") - 1
    queries = engine.queries_at(row_N)
    target_N = torch.from_numpy(engine.token_of_item[engine.sequences.item_N[row_N]])
    probabilities, hits, users, found_N = [], [], [], []
    for start, block in query_blocks(queries, engine.scorer.size):
        scores_QV = engine.scorer.scores(block)
        total_Q1 = torch.logsumexp(scores_QV, 1, keepdim=True)
        mask_seen(scores_QV, block)
        value_QK, item_QK = top_k(scores_QV, k)
        listed_QK = ~torch.isneginf(value_QK)
        probabilities.append((value_QK - total_Q1).exp()[listed_QK].double().numpy())
        hit_QK = (item_QK == target_N[start : start + len(block), None]) & listed_QK
        hits.append(hit_QK[listed_QK].double().numpy())
        found_N.append(hit_QK.any(1).double().numpy())
        users.append(np.repeat(user_N[start : start + len(block)], listed_QK.sum(1).numpy()))
    found: dict[str, Any] = {"targets": len(row_N), "k": k, "expected": 0.0, "observed": 0.0, "interval": [0.0, 0.0], "bins": []}
    if not len(row_N):
        return found
    probability_M, hit_M, user_M = np.concatenate(probabilities), np.concatenate(hits), np.concatenate(users)
    found |= {"expected": float(probability_M.sum() / len(row_N)), "observed": float(hit_M.sum() / len(row_N))}
    lists = {"hits": np.concatenate(found_N)}
    found["interval"] = metrics.bootstrap_intervals(lists, user_N, level=options.level, samples=200, seed=seed)["hits"]
    if len(probability_M):  # none where everybody has seen everything
        found["bins"] = metrics.reliability(probability_M, hit_M, user_M, level=options.level, seed=seed)
    return found


def evaluate(
    path: str | Path,
    options: EvaluateOptions | None = None,
    stage: Stage = "test",
    *,
    beside: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run on its own split and write it into the run's ``result.json``; returns that document.

    Each evaluation of the test part is counted (``n_test_evaluations``). The ranks are kept in ``ranks-STAGE.parquet`` for
    :func:`compare_runs`, those of the baselines on the test part in ``ranks-baselines.parquet`` (same rows, a column each),
    predictions of tasks in ``predictions-STAGE.parquet``, ranks among shown lists in ``lists-STAGE.parquet``. ``beside``: an
    evaluated run; on the same test, its baselines and best possible are taken over instead of measured again.

    Raises:
        LargeRecError: the run is missing, foreign, unfinished or damaged, or has nothing to measure ``options.conditioned`` of.
    """
    bundle = Bundle.open(path)
    recipe = bundle.recipe()
    options = options or recipe.evaluate
    if options.conditioned != recipe.evaluate.conditioned and not (recipe.learned_tasks and recipe.ranking.retrieval > 0):
        raise LargeRecError(
            f"evaluate.conditioned={options.conditioned} measures retrieval conditioned on a task, and {bundle.path} did not "
            "learn both; leave it out, or train a recipe with tasks and ranking.retrieval above 0 (docs/rank.md)."
        )
    result = bundle.read_json("result.json")  # an unfinished run has none
    engine = load(path)
    if engine.retrieves:
        _evaluate_retrieval(engine, bundle, stage, options, result, beside)
    elif stage == "test":
        result |= {key: {} for key in ("test", "test_unmasked", "baselines", "intervals", "slices")}
        result["n_test_evaluations"] = int(result.get("n_test_evaluations", 0)) + 1
    if recipe.learned_tasks:
        key = "tasks" if stage == "test" else f"{stage}_tasks"
        result[key], predictions = evaluate_tasks(engine, stage, options, recipe.seed)
        bundle.write_parquet(f"predictions-{stage}.parquet", predictions)
    if stage == "test":
        result["level"] = options.level
    if stage == "test" and bundle.file(RANDOM).is_file():
        result["random"] = evaluate_random(engine, bundle.read_parquet(RANDOM), options, recipe.seed)
    bundle.write_json("result.json", result)
    return result


def _evaluate_retrieval(
    engine: Engine,
    bundle: Bundle,
    stage: Stage,
    options: EvaluateOptions,
    result: dict[str, Any],
    beside: str | Path | None,
) -> None:
    """Rank the targets of a stage; the ranks go to the bundle, all else into ``result``."""
    recipe = bundle.recipe()
    known = {} if beside is None or stage != "test" else _known_of(Bundle.open(beside), recipe, result, options)
    found, ranked = evaluate_engine(engine, stage, options, recipe.seed, baselines=not known)
    result[stage] = found["metrics"]
    result[f"{stage}_unmasked"] = found["unmasked"]
    if stage == "test":
        result |= {key: found[key] for key in ("targets", "baselines", "intervals", "slices")}
        result["n_test_evaluations"] = int(result.get("n_test_evaluations", 0)) + 1
        if "best_possible" not in known:
            world = generated_world(recipe, str(bundle.read_json("lineage.json").get("data_hash")))
            if world is not None:
                known["best_possible"] = best_possible(engine, world, recipe, stage, options)
        kept = pl.DataFrame(ranked.baselines) if found["baselines"] else Bundle(str(beside)).read_parquet(BASELINE_RANKS)
        bundle.write_parquet(BASELINE_RANKS, kept)
        result |= known
    name = "conditioned" if stage == "test" else f"{stage}_conditioned"
    if options.conditioned and recipe.learned_tasks and recipe.ranking.retrieval > 0:
        result[name] = evaluate_conditioned(engine, stage, options, recipe.seed)
    else:
        result.pop(name, None)  # of an earlier evaluation with other options
    if engine.sequences.lists is not None:
        key = "lists" if stage == "test" else f"{stage}_lists"
        result[key], listed = evaluate_lists(engine, stage, options, recipe.seed)
        bundle.write_parquet(f"lists-{stage}.parquet", listed)
    if options.exposure.by is not None:
        by_whom = {"model": ranked.rank_N, **ranked.baselines}
        result["exposure"] = evaluate_exposure(engine, stage, ranked.row_N, by_whom, options, recipe.seed) | {"stage": stage}
    else:
        result.pop("exposure", None)  # of an earlier evaluation with other options
    bundle.write_parquet(f"ranks-{stage}.parquet", ranks_frame(engine, ranked))


def _known_of(other: Bundle, recipe: Recipe, result: dict[str, Any], options: EvaluateOptions) -> dict[str, Any]:
    """What an evaluated run on the same test says of others than its model: the baselines; the best possible, if asked alike."""
    theirs, of = other.read_json("result.json"), other.recipe()
    same = theirs["data"] == result["data"] and of.split == recipe.split and of.evaluate == options
    same = same and interval_level(theirs, of) == options.level
    measured = other.file(BASELINE_RANKS).is_file() and all(f"ndcg@{k}" in theirs.get("test", {}) for k in options.k)
    if not same or not measured:
        return {}
    names = ["baselines"] + (["best_possible"] if theirs["query_time"] == result["query_time"] else [])
    return {name: theirs[name] for name in names if name in theirs}


def interval_level(result: Mapping[str, Any], recipe: Recipe) -> float:
    """The level of the intervals in a ``result.json``: what it was evaluated with, or the recipe's where it does not say."""
    return float(result.get("level", recipe.evaluate.level))


def measured_otherwise(result: Mapping[str, Any], recipe: Recipe) -> str | None:
    """The level or the cutoffs of a ``result.json`` where the recipe has others, as ``evaluate.k=[10]``; else None."""
    if (level := interval_level(result, recipe)) != recipe.evaluate.level:
        return f"evaluate.level={level:g}"
    measured = {int(name.partition("@")[2]) for name in result["test"] if name.startswith("recall@")}
    return f"evaluate.k={sorted(measured)}" if measured and measured != set(recipe.evaluate.k) else None


def ranks_frame(engine: Engine, found: Measurement) -> pl.DataFrame:
    return targets_frame(engine.sequences, found.row_N).with_columns(
        pl.Series("rank", found.rank_N), pl.Series("rank_unmasked", found.unmasked_N)
    )


def targets_frame(sequences: Sequences, row_N: np.ndarray) -> pl.DataFrame:
    """Whose and which the targets ``row_N`` are: the columns ``KEYS``."""
    user_N = np.searchsorted(sequences.offsets_U1, row_N, side="right") - 1
    return pl.DataFrame(
        {
            "user_id": sequences.user_ids.gather(user_N),
            "item_id": sequences.item_ids.gather(sequences.item_N[row_N]),
            "timestamp": sequences.time_N[row_N],
        }
    )


def with_ranks(path: str | Path, stage: Stage = "test") -> Bundle:
    """A run that was evaluated on ``stage``.

    Raises:
        LargeRecError: there is no run, it has no ranks yet, or it only ranks.
    """
    bundle = Bundle.open(path)
    _refuse_ranker(bundle)
    if not bundle.file(f"ranks-{stage}.parquet").is_file():
        command = f"largerec evaluate {quote(str(bundle.path))}"
        raise LargeRecError(f"{bundle.path} has no {stage} ranks to compare yet; make them with: {command}")
    return bundle


def _refuse_ranker(bundle: Bundle) -> None:
    if (model := bundle.recipe().model).ranks_only:
        raise LargeRecError(
            f"{bundle.path} is a {model.name}, which only ranks given items, and a paired test of two runs is of retrieval. "
            "Leave it out; `largerec compare` tests the tasks of several recipes."
        )


def check_comparable(path: str | Path, other: str | Path, stage: Stage = "test") -> None:
    """Refuse a paired test that an evaluation of the run ``path`` could not make possible, before it looks at the targets.

    Raises:
        LargeRecError: ``other`` has no ranks yet, the targets of the two differ, or one of them only ranks.
    """
    own = Bundle.open(path)
    _refuse_ranker(own)
    if own.path.resolve() == Path(other).resolve():
        return
    beside = with_ranks(other, stage)
    sequences = own.sequences()
    ours, theirs = targets_frame(sequences, sequences.targets(stage)), beside.read_parquet(f"ranks-{stage}.parquet", KEYS)
    if not ours.equals(theirs.select(KEYS)):
        raise _other_targets(path, other)


def _other_targets(path: str | Path, other: str | Path) -> LargeRecError:
    return LargeRecError(f"{path} and {other} were not evaluated on the same targets; use runs of one log and one split.")


def compare_runs(
    path: str | Path, other: str | Path, stage: Stage = "test", options: EvaluateOptions | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Paired test of two evaluated runs on the same targets: metric -> difference (first minus second), interval, p-value.

    Raises:
        LargeRecError: a run has no ranks yet, or the targets of the two differ.
    """
    bundles = [with_ranks(path, stage), with_ranks(other, stage)]
    first, second = (bundle.read_parquet(f"ranks-{stage}.parquet") for bundle in bundles)
    if first.schema != second.schema or not first.select(KEYS).equals(second.select(KEYS)):
        raise _other_targets(path, other)
    user_N = first["user_id"].rank("dense").cast(pl.Int64).to_numpy()
    if options is None:  # then at the level of the first run's intervals
        recipe = bundles[0].recipe()
        level = interval_level(bundles[0].read_json("result.json"), recipe)
        options = recipe.evaluate.model_copy(update={"level": level})
    found = {}
    for k in options.k:
        for name, function in (("recall", metrics.recall), ("ndcg", metrics.ndcg)):
            a_N, b_N = (function(frame["rank"].to_numpy(), k) for frame in (first, second))
            found[f"{name}@{k}"] = metrics.paired_test(a_N, b_N, user_N, level=options.level, seed=seed)
    return found
