"""The command ``largerec``: each verb is one importable function; its module is imported only when the verb is called."""

from __future__ import annotations

import os
import sys
import warnings
from datetime import datetime
from errno import EACCES, ENAMETOOLONG, EPERM, EROFS
from pathlib import Path
from typing import Annotated, Any

# Spinning OpenMP threads make small steps many times slower as soon as the machine does anything else; before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch keeps a compiled product for each number of tokens that it met, a thousand of them, which took 3 GB on MovieLens-1M.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

import typer

from largerec import cli_data
from largerec.cli_data import AsJson, print_json
from largerec.errors import LargeRecError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)
app.add_typer(cli_data.app, name="data")
bench_app = typer.Typer(no_args_is_help=True, help="Measure how fast this machine is at your recipe.")
app.add_typer(bench_app, name="bench")

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="a TOML recipe")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="a run's directory")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="recipe values to change, for example data.path=log.csv")
]


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train a recipe, evaluate it on its test part, show recommendations and write a report."""
    from largerec import experiments, show
    from largerec import report as module
    from largerec.recipe import load_recipe

    found = experiments.run(load_recipe(recipe, overrides or []))
    found["report"] = module.report([found["dir"]])["report"]
    print_json(found) if as_json else show.run(found)


@app.command()
def train(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Train a recipe into run.dir (or take up an unfinished run there); looks at validation only."""
    from largerec import show
    from largerec import train as module
    from largerec.recipe import load_recipe

    options = load_recipe(recipe, overrides or [])
    result = module.train(options)
    print_json(result) if as_json else show.trained(result, options.run.dir)


@app.command()
def evaluate(
    path: RunPath,
    overrides: Overrides = None,
    against: Annotated[str | None, typer.Option(help="another evaluated run: a paired test on the same targets")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on its test part; overrides may change evaluate.k and its like."""
    from largerec import evaluate as module
    from largerec import show
    from largerec.bundle import Bundle
    from largerec.recipe import apply_overrides, recipe_from

    recipe = Bundle.open(path).recipe()
    for override in overrides or []:
        if "=" in override and not override.startswith("evaluate."):
            raise LargeRecError(f"{override!r} cannot change a trained run; only evaluate.* may be set here: evaluate.k=[10].")
    options = recipe_from(apply_overrides(recipe.to_json(), overrides or [])).evaluate
    if against is not None:  # a mistake must not cost a look at the test part
        module.check_comparable(path, against)
    result = module.evaluate(path, options)
    if against is not None:
        result = {**result, "paired": {"against": against, **module.compare_runs(path, against, options=options)}}
    print_json(result) if as_json else show.evaluated(result)


@app.command()
def report(
    paths: Annotated[list[str], typer.Argument(metavar="RUN...", help="a run's directory, or several to set side by side")],
    to: Annotated[str | None, typer.Option(metavar="FILE", help="where the page goes; else RUN/report.html")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained page about a run, several side by side, or the grid of a `largerec scale`."""
    from largerec import report as module
    from largerec import show

    if any((Path(path) / "points.jsonl").is_file() for path in paths):
        return _report_grid(paths, to, as_json)
    found = module.report(paths, to)
    print_json(found) if as_json else show.reported(found)


def _report_grid(paths: list[str], to: str | None, as_json: bool) -> None:
    if len(paths) > 1:
        raise LargeRecError("a page about a grid is of that grid alone; name one folder of a `largerec scale`.")
    found = _grid_page(paths[0], to)
    print_json(found) if as_json else print(f"Report: {found['report']}")


def _grid_page(folder: str, to: str | None = None) -> dict[str, Any]:
    """Write the page of a grid: its document, with where the page is as ``report``."""
    from largerec.report.scaling import scaling_page
    from largerec.scaling.overview import overview

    found = overview(folder)
    return {"report": str(scaling_page(found, Path(to or f"{folder}/report.html"))), **found}


@app.command()
def compare(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [key=value ...]", help="TOML recipes, and values to change in all of them")
    ],
    seeds: Annotated[
        str, typer.Option(metavar="N | S S ...", help="one number: so many seeds, from 0; several numbers: these")
    ] = "3",
    against: Annotated[
        str | None, typer.Option(metavar="ROW", help="test the others against this row; else the chosen one")
    ] = None,
    trials: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="tune each recipe first: so many pruned trials on validation over its [tune.space]"
        ),
    ] = 0,
    with_ensemble: Annotated[
        bool, typer.Option("--ensemble", help="add rows: the best two families together, all seeds of the best row together")
    ] = False,
    to: Annotated[str | None, typer.Option("--out", metavar="FILE", help="also write the JSON to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Train several recipes with the same seeds on one split and set them side by side, in run.dir or runs/compare."""
    from largerec import compare as module
    from largerec import show

    found = module.from_arguments(arguments, seeds, to, against=against, trials=trials, ensemble=with_ensemble)
    print_json(found) if as_json else show.compared(found)


@app.command()
def ablate(
    path: Annotated[str, typer.Argument(metavar="DATA", help="a log, the folder of a known set, or - for the recipe's own")],
    overrides: Overrides = None,
    plan: Annotated[
        str, typer.Option("--plan", metavar="PLAN", help="a TOML file: a recipe, and versions with their steps")
    ] = "",
    to: Annotated[str | None, typer.Option("--out", metavar="FILE", help="also write the JSON to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what cures are worth: one recipe on a log as it is and on each version of it, paired, at equal steps."""
    from largerec import ablate as module
    from largerec import show_ablated

    if not plan:
        raise LargeRecError("largerec ablate needs --plan PLAN, a TOML file as docs/ablate.md shows.")
    found = module.from_arguments(path, plan, overrides or [], to)
    print_json(found) if as_json else show_ablated.ablated(found)


@app.command()
def ensemble(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RUN RUN... run.dir=FOLDER", help="finished runs on one split, and where it goes")
    ],
    as_json: AsJson = False,
) -> None:
    """Make a folder that recommends and is evaluated as the equal mixture of several finished runs."""
    from largerec import ensemble as module
    from largerec import show

    runs, place = _runs_and_place(arguments, "ensemble RUN RUN run.dir=runs/both")
    result = module.ensemble(runs, place)
    print_json(result) if as_json else show.trained(result, place)


@app.command()
def quantise(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RUN run.dir=FOLDER", help="a finished run, and where the smaller one goes")
    ],
    bits: Annotated[int, typer.Option(help="of each number of the item tables: 8 or 4")] = 8,
    as_json: AsJson = False,
) -> None:
    """Copy a finished run with its item tables in 8 or 4 bits a number, and measure it on validation."""
    from largerec import quantise as module
    from largerec import show

    runs, place = _runs_and_place(arguments, "quantise RUN run.dir=runs/small")
    if len(runs) != 1 or bits not in (8, 4):
        raise LargeRecError(f"name one run and 8 or 4 bits: largerec quantise RUN run.dir=runs/small --bits 8 (given: {bits}).")
    result = module.quantise(runs[0], place, 8 if bits == 8 else 4)
    print_json(result) if as_json else show.trained(result, place)


def _runs_and_place(arguments: list[str], example: str) -> tuple[list[str], str]:
    """The runs, and the one folder that is given as run.dir."""
    places = [given.removeprefix("run.dir=") for given in arguments if given.startswith("run.dir=")]
    if len(places) != 1:
        raise LargeRecError(f"say once where it goes: largerec {example}.")
    return [given for given in arguments if not given.startswith("run.dir=")], places[0]


def _moment(at: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(at) if at else None
    except ValueError:
        raise LargeRecError(f"--at {at!r} is no ISO date; write for example 2022-05-09T12:00.") from None


@app.command()
def recommend(
    path: RunPath,
    user_id: Annotated[list[str] | None, typer.Option(help="a user of the log; may be given several times")] = None,
    history: Annotated[
        list[str] | None, typer.Option(help="items of someone new, oldest first, separated by commas; may be given several times")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="how many items")] = 10,
    want: Annotated[
        str | None, typer.Option(metavar="TASK", help="what should come of it: a task of the run, such as like")
    ] = None,
    want_weight: Annotated[float | None, typer.Option(min=0, help="how much that counts beside coming next; else 1")] = None,
    at: Annotated[str | None, typer.Option(help="the moment of asking, an ISO date in UTC; else now")] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend items to users of the log, or after a given history."""
    from largerec import show
    from largerec.engine import load

    engine = load(path)
    histories = [[engine.item_id(item.strip()) for item in one.split(",")] for one in history or []] or None
    frame = engine.recommend(user_id, k, histories=histories, want=want, want_weight=want_weight, at=_moment(at))
    print_json(frame.to_dicts()) if as_json else show.frame(frame)


@app.command()
def rank(
    path: RunPath,
    items: Annotated[list[str] | None, typer.Option("--items", help="candidates; may be given several times, or A,B,C")] = None,
    user_id: Annotated[str | None, typer.Option(help="a user of the log")] = None,
    history: Annotated[str | None, typer.Option(help="items of someone new, oldest first, separated by commas")] = None,
    by: Annotated[str | None, typer.Option(help="the task to order by; else the first of the recipe")] = None,
    at: Annotated[str | None, typer.Option(help="the moment of asking, an ISO date in UTC; else now")] = None,
    prices: Annotated[str | None, typer.Option(help="a price an item, separated by commas, with --by choice")] = None,
    context: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="a context feature at that moment")] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="ITEM...", help="further candidates, after --items A")] = None,
    as_json: AsJson = False,
) -> None:
    """Rank candidates for a user by what they would do with them: one probability a task; or, --by choice, say which of some
    shown items is taken (candidates in the order shown)."""
    from largerec import show
    from largerec.engine import load

    engine = load(path)
    given = [item.strip() for text in items or [] for item in text.split(",")] + (more or [])
    past = [engine.item_id(item.strip()) for item in history.split(",")] if history else None
    for text in context or []:
        if "=" not in text:
            raise LargeRecError(f"--context {text!r} gives no value; write NAME=VALUE, for example --context tab=1.")
    known = dict(text.partition("=")[::2] for text in context or [])
    candidates = [engine.item_id(item) for item in given]
    if by == "choice":
        if known:
            raise LargeRecError("--context says nothing with --by choice, which reads no features; leave it out.")
        try:
            paid = [float(price) for price in prices.split(",")] if prices else None
        except ValueError:
            raise LargeRecError(f"--prices {prices!r} are no numbers; write for example 71,107.5.") from None
        frame = engine.choose(user_id, candidates, history=past, prices=paid, at=_moment(at))
    elif prices is not None:
        raise LargeRecError("--prices says nothing without --by choice; leave it out.")
    else:
        frame = engine.rank(user_id, candidates, history=past, by=by, at=_moment(at), context=known)
    print_json(frame.to_dicts()) if as_json else show.frame(frame)


@app.command()
def audit(
    path: Annotated[str, typer.Argument(metavar="DATA", help="a log, or the folder of a known set")],
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="write audit.html and audit.json there")] = None,
    shuffle_test: Annotated[
        bool, typer.Option("--shuffle-test", help="also train a small model with and without the order: minutes, not seconds")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for faults in a log: what is wrong, how bad, and what mends it; overrides may change data.* and split.*."""
    from largerec import show
    from largerec.audit import audit as look
    from largerec.datasets import load_log
    from largerec.recipe import apply_overrides, recipe_from

    for override in overrides or []:
        if "=" in override and not override.startswith(("data.", "split.")):
            raise LargeRecError(f"{override!r} says nothing about a log; only data.* and split.* may be set here: data.where=...")
        if override.startswith(("split.positives", "split.targets")):
            raise LargeRecError(
                f"{override!r} is about what a model is asked for, and an audit looks at all events; leave it out."
            )
    options = recipe_from(apply_overrides({"data": {"path": path}}, overrides or []), "largerec audit")
    reading = [override for override in overrides or [] if override.startswith("data.")]
    log = load_log(options.data)
    document = look(log, options.split, data=[path, *reading]).to_json()
    if shuffle_test:
        from largerec.order import shuffle_test_of

        document["order"] = shuffle_test_of(log, options.split)
    if out is not None:
        from largerec.report.audit import write

        document |= write(document, out)
    print_json(document) if as_json else show.audited(document)


@app.command()
def curate(
    path: Annotated[str, typer.Argument(metavar="DATA", help="a log, the folder of a known set, or a version of one")],
    overrides: Overrides = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", metavar="PLAN", help="a TOML file of steps; else exact duplicates, clocks, bots, bursts"),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="NAME", help="take this step as it comes instead of a plan; may be repeated"),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="RECIPE", help="a recipe whose [split] says which rows are training")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="DIR", help="where the versions go; else DATA.versions")] = None,
    as_json: AsJson = False,
) -> None:
    """Cure the training rows of a log by the steps of a plan: each makes a version, and nothing is overwritten."""
    import largerec.cures  # noqa: F401  makes the steps that train a model known to plans
    from largerec import curate as module
    from largerec import show
    from largerec.curate.plan import Plan, check_labels, load_plan, plan_of
    from largerec.recipe import load_recipe

    if plan is not None and step:
        raise LargeRecError("--plan and --step exclude each other: a plan has its steps already.")
    wanted = load_plan(plan) if plan is not None else plan_of(step) if step else Plan()
    if split is not None:
        if wanted.split is not None:
            raise LargeRecError(f"--split {split}: the plan {plan} has a [split] already; leave one of the two out.")
        recipe = load_recipe(split)
        check_labels(wanted.step, recipe.split, recipe.tasks, f"--split {split}")
        given = recipe.split.model_copy(update={"positives": None, "targets": "all"})
        wanted = wanted.model_copy(update={"split": given})
    found = module.curate(cli_data.data_options(path, overrides, "error", "largerec curate"), wanted, to)
    print_json(found) if as_json else show.curated(found)


@app.command()
def estimate(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Parameters, memory and time of a recipe before it runs (takes a few real steps)."""
    from largerec import estimate as module
    from largerec import show
    from largerec.recipe import load_recipe

    found = module.estimate(load_recipe(recipe, overrides or []))
    print_json(found) if as_json else show.fields(found, "Estimate")


@app.command()
def scale(
    recipe: RecipePath,
    overrides: Overrides = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='core-minutes to spend, as "20 core-minutes"; else scale.budget, or no limit'),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a grid of small runs, fit scaling laws, predict the largest runs, and make those to check the laws."""
    from largerec import show_scaling
    from largerec.recipe import load_recipe
    from largerec.scaling import scale as module

    found = module.scale(load_recipe(recipe, overrides or []), budget)
    found["report"] = _grid_page(found["dir"])["report"]
    print_json(found) if as_json else show_scaling.scaled(found)


@app.command()
def plan(
    runs: Annotated[str | None, typer.Option("--from", metavar="RUNS", help="the run.dir of a finished `largerec scale`")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TEXT", help='what training may cost: "30 core-minutes"')] = None,
    target: Annotated[str | None, typer.Option(metavar="METRIC=VALUE", help="the cheapest that reaches it: ndcg@10=0.19")] = None,
    latency: Annotated[str | None, typer.Option(metavar="TEXT", help='what one request may take: "10 ms"')] = None,
    to: Annotated[str | None, typer.Option("--out", metavar="FILE", help="the recipe; else RUNS/plans/NAME.toml")] = None,
    check: Annotated[str | None, typer.Option(metavar="RUN", help="compare a trained run with the plan that proposed it")] = None,
    as_json: AsJson = False,
) -> None:
    """Propose a recipe from a grid's scaling laws, with predicted quality, cost and serving time; or check one afterwards."""
    from largerec import show_scaling
    from largerec.scaling import plan as module

    if check is not None:
        if budget is not None or target is not None or latency is not None or to is not None:
            raise LargeRecError("--check compares a run with its plan and takes nothing else but --from.")
        found = module.check_plan(check, runs)
        return print_json(found) if as_json else show_scaling.plan_checked(found)
    if runs is None:
        raise LargeRecError('name the grid: largerec plan --from RUNS --budget "30 core-minutes".')
    found = module.plan(runs, budget=budget, target=target, latency=latency, to=to)
    return print_json(found) if as_json else show_scaling.planned(found)


@bench_app.command("train")
def bench_train(
    recipe: RecipePath,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to measure")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="steps before them")] = 5,
    as_json: AsJson = False,
) -> None:
    """Training speed of a recipe on its own log: tokens a second, seconds by part, and how far the machine's limit is."""
    from largerec import bench, show
    from largerec.recipe import load_recipe

    found = bench.bench_train(load_recipe(recipe, overrides or []), steps, warmup)
    print_json(found) if as_json else show.fields(found, "Training speed")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: what LargeRec will use, what is missing and how to mend it."""
    from rich import print as rich_print

    from largerec import doctor as module

    report = module.diagnose()
    print_json(report) if as_json else rich_print(module.render(report))


CLOSED = "cannot be read or written; check its permissions."
OF_PLACES = {
    ENAMETOOLONG: "is too long for the name of a file or folder; check what was given.",
    **dict.fromkeys((EACCES, EPERM, EROFS), CLOSED),
}


def main() -> None:
    """Entry point: a user's mistake is one clear message and exit code 2, an interruption 130."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # for people: no file, no line of source
    try:
        app(standalone_mode=True)
    except LargeRecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a name that no file can have, or a place that is closed to one, whichever verb was given it
        if error.errno not in OF_PLACES or error.filename is None:
            raise
        print(f"error: {str(error.filename)!r} {OF_PLACES[error.errno]}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:  # typer turns Ctrl-C into code 130 without a word
        if ended.code == 130:
            print("interrupted; a run keeps its state, and the same command goes on from there", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
