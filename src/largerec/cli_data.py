"""The verbs of ``largerec data``: look at logs, import them, list and fetch public ones."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from largerec.errors import LargeRecError

app = typer.Typer(no_args_is_help=True, help="Look at event logs, import them, get public ones.")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="how to read it, as in a recipe: data.columns.user=client")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on the last line")]
OnBadRows = Annotated[str, typer.Option("--on-bad-rows", help="error, or drop: count them by reason and write them to a file")]


def print_json(document: Any) -> None:
    """One document on one line, the last that a verb prints."""
    print(json.dumps(document, default=str))


def data_options(path: str, overrides: list[str] | None, on_bad_rows: str, verb: str = "largerec data") -> Any:
    """How a log is read: a path, overrides of data.*, and what is done with rows that cannot be right."""
    from largerec.recipe import apply_overrides, recipe_from

    bad_rows = [f"data.on_bad_rows={on_bad_rows}"] if on_bad_rows != "error" else []
    for override in overrides or []:
        if "=" in override and not override.startswith("data."):
            raise LargeRecError(f"{override!r} says nothing about reading a log; only data.* may be set here: data.where=...")
        if override.startswith("data.path="):
            raise LargeRecError(
                f"{override!r} and the log {path!r} cannot both be meant; leave {override.partition('=')[0]} out."
            )
    return recipe_from(apply_overrides({"data": {"path": path}}, [*bad_rows, *(overrides or [])]), verb).data


@app.command("describe")
def data_describe(
    path: Annotated[str, typer.Argument(metavar="PATH", help="a log, or the folder of a known set")],
    overrides: Overrides = None,
    on_bad_rows: OnBadRows = "error",
    as_json: AsJson = False,
) -> None:
    """Say what is in an event log; overrides as in a recipe, for example data.columns.user=client."""
    from largerec import show
    from largerec.datasets import load_log

    description = load_log(data_options(path, overrides, on_bad_rows)).describe()
    print_json(description) if as_json else show.described(description)


@app.command("import")
def data_import(
    path: Annotated[str, typer.Argument(metavar="PATH", help="a log, or the folder of a known set")],
    overrides: Overrides = None,
    to: Annotated[str, typer.Option("--to", help="the folder to write: Parquet and a manifest with a hash of the content")] = "",
    on_bad_rows: OnBadRows = "error",
    dedupe: Annotated[
        bool, typer.Option("--dedupe", help="keep the first of events equal in user, item, time, behaviour")
    ] = False,
    since: Annotated[str | None, typer.Option("--from", help="keep events from this ISO date on (UTC), and untimed ones")] = None,
    until: Annotated[str | None, typer.Option("--until", help="keep events before this ISO date (UTC), and untimed ones")] = None,
    sample_users: Annotated[float | None, typer.Option("--sample-users", help="keep so many users, or a share below 1")] = None,
    seed: Annotated[int, typer.Option("--seed", help="of the sample of users")] = 0,
    k_core: Annotated[int | None, typer.Option("--k-core", help="keep users and items with at least so many events")] = None,
    to_format: Annotated[str, typer.Option("--to-format", help="parquet or recbole")] = "parquet",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace an earlier import in that folder")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a log and write it into a folder of its own, after the steps that are asked for, each one reported."""
    from largerec import imports, show
    from largerec.steps import Steps

    if not to:
        raise LargeRecError("largerec data import needs --to FOLDER, the folder to write.")
    if to_format not in ("parquet", "recbole"):
        raise LargeRecError(f"--to-format {to_format!r}: there are parquet and recbole.")
    steps = Steps(dedupe=dedupe, since=since, until=until, sample_users=sample_users, seed=seed, k_core=k_core)
    target: imports.Target = "recbole" if to_format == "recbole" else "parquet"
    options = data_options(path, overrides, on_bad_rows)
    found = imports.import_log(options, to, steps, target=target, overwrite=overwrite)
    print_json(found) if as_json else show.described({**found, "dir": to})


Version = Annotated[str, typer.Argument(metavar="VERSION", help="a version that `largerec curate` made")]
Rows = Annotated[list[int] | None, typer.Option("--row", help="a row of the log that was read first, from 1; may be repeated")]
OfUser = Annotated[str | None, typer.Option("--user-id", help="all rows of this user")]
OfItem = Annotated[str | None, typer.Option("--item-id", help="all rows of this item")]


@app.command("trace")
def data_trace(
    version: Version, row: Rows = None, user_id: OfUser = None, item_id: OfItem = None, as_json: AsJson = False
) -> None:
    """Say what the steps of a version did to rows, in which step and why."""
    from largerec import show
    from largerec.curate.tracing import Named, trace

    found = trace(version, Named(rows=row or (), user_id=user_id, item_id=item_id))
    print_json(found) if as_json else show.traced(found)


@app.command("restore")
def data_restore(
    version: Version,
    row: Rows = None,
    user_id: OfUser = None,
    item_id: OfItem = None,
    step: Annotated[
        str | None, typer.Option("--step", help="all that steps of this name did: rows removed, changed or weighed")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="every row: the log as it was read first")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new version in which the named rows are as they were before any step."""
    from largerec import show
    from largerec.curate.tracing import Named, restore

    found = restore(version, Named(row or (), user_id, item_id, step, everything))
    print_json(found) if as_json else show.fields({"dir": found["dir"], **found["version"]["rows"]}, "Restored")


@app.command("forget")
def data_forget(
    path: Annotated[str, typer.Argument(metavar="DATA", help="an import, a version, a folder of versions, or one above them")],
    user_id: Annotated[str, typer.Option("--user-id", help="whom to forget")],
    runs: Annotated[str | None, typer.Option("--runs", metavar="DIR", help="also in the runs below this folder")] = None,
    as_json: AsJson = False,
) -> None:
    """Erase a person from every import and version below a folder, removed rows too, and mark runs that were trained on them."""
    from largerec import show
    from largerec.forgetting import forget

    found = forget(path, user_id, runs)
    print_json(found) if as_json else show.forgotten(found)


@app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List public logs: what they are, their terms, and how to get them."""
    from largerec import publicsets, show

    rows = publicsets.table()
    print_json(rows) if as_json else show.rows(rows, ("name", "title", "events", "terms", "get"))


@app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a name that `largerec data list` shows")],
    to: Annotated[str | None, typer.Option("--to", help="the folder; default: data/NAME")] = None,
    given: Annotated[str | None, typer.Option("--from", help="a local copy: the file, or a folder that holds it")] = None,
    as_json: AsJson = False,
) -> None:
    """Get a public log: download (or copy) it, take up what broke off, verify and unpack it."""
    from largerec import publicsets, show

    with show.download_bar() as report:
        found = publicsets.fetch(name, to, given=given, report=report)
    print_json(found) if as_json else show.fields(found, "Fetched")
