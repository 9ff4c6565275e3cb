"""Turn a comparison of recipes into a result file, and print its table and which differences are significant.

    largerec compare recipes/zoo/*.toml data.path=<beauty> run.dir=runs/zoo-beauty-tuned threads=1 --trials 4 --ensemble \
        model.dropout=0.5 head.temperature=0.08 optim.learning_rate=0.0015
    python benchmarks/zoo.py runs/zoo-beauty-tuned --name zoo-beauty-tuned

The settings that were chosen on one set, on another one, without a look at its validation beside early stopping:

    largerec compare runs/zoo-beauty-tuned/*/tuned.toml data.path=<sports> run.dir=runs/zoo-sports
    python benchmarks/zoo.py runs/zoo-sports --name zoo-sports --settings-of zoo-beauty-tuned

The recipes of recipes/zoo hold those settings, so they do as well as the files of the search.

One model that retrieves and ranks beside models that only rank:

    largerec compare recipes/kuairand-{din,dcn-v2,dlrm,wukong,unified-features}.toml data.path=<kuairand> train.metric=click.auc \
        evaluate.conditioned=0 --against kuairand-unified-features run.dir=runs/kuairand-tasks threads=1 --seeds 3 --trials 3
    python benchmarks/zoo.py runs/kuairand-tasks --name kuairand-tasks

``largerec compare`` goes on after a kill; this script only reads what it wrote. The result goes to benchmarks/results/NAME.json.
``--settings-of`` checks that each row has the settings that the other result file says were chosen.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tables import RESULTS, tasks_table, verdict, zoo_table

from largerec.bundle import Bundle, flatten
from largerec.errors import LargeRecError


def document(folder: Path, name: str, settings_of: str | None = None) -> dict[str, Any]:
    """The result document of the comparison in ``folder``: its compare.json without the places of this machine.

    Raises:
        LargeRecError: there is no comparison, or a row has other settings than those that were chosen before.
    """
    if not (folder / "compare.json").is_file():
        raise LargeRecError(f"{folder} has no compare.json yet; let `largerec compare` with run.dir={folder} come to its end.")
    found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    found = {"name": name, **{key: value for key, value in found.items() if key not in ("dir", "report")}}
    found["command"] = _without_places(found["command"])
    for row in found["rows"]:
        for run in row.get("runs", []):
            run["dir"] = str(Path(run["dir"]).relative_to(Path(run["dir"]).parents[1]))
    if settings_of is not None:
        source = json.loads((RESULTS / f"{settings_of}.json").read_text(encoding="utf-8"))
        _check_settings(found, source, folder, settings_of)
        found["settings"] = f"as chosen in {settings_of}.json; nothing was tuned here"
    return found


def _without_places(command: str) -> str:
    """Recipes and folders of runs by their last parts, so that the command can be typed anywhere."""
    command = re.sub(r"run\.dir=\S*?([^/\s]+)(?=\s|$)", r"run.dir=runs/\1", command)
    return re.sub(r"(?<=\s)\S*?([^/\s]+/[^/\s]+/tuned\.toml)", r"runs/\1", command)


def _check_settings(found: dict[str, Any], source: dict[str, Any], folder: Path, name: str) -> None:
    chosen = {row["name"]: row["trials"]["settings"] for row in source["rows"] if "trials" in row}
    for row in found["rows"]:
        if row["model"] is None or "members" in row:
            continue
        if row["name"] not in chosen:
            raise LargeRecError(f"{name}.json says nothing of {row['name']}; its rows are {', '.join(chosen) or 'not tuned'}.")
        own = flatten(Bundle.open(folder / row["runs"][0]["dir"]).recipe().to_json())
        other = {key: (value, own.get(key)) for key, value in chosen[row["name"]].items() if own.get(key) != value}
        if other:
            key, (theirs, ours) = next(iter(other.items()))
            raise LargeRecError(
                f"{row['name']} has {key}={ours!r} here and {theirs!r} was chosen in {name}.json; compare the tuned.toml files."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--settings-of", metavar="NAME")
    given = parser.parse_args()
    try:
        found = document(given.folder, given.name, given.settings_of)
    except LargeRecError as error:
        sys.exit(f"error: {error}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    tasks = any(row.get("tasks") for row in found["rows"])
    print("\n".join(tasks_table(found, given.name) if tasks else [*zoo_table(found), "", verdict(found)]))


if __name__ == "__main__":
    main()
