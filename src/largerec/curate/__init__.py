"""Cures that train nothing: steps of a plan on the training rows of a log, each a version in a folder of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from largerec import manifest
from largerec.curate import versions
from largerec.curate.plan import AnyStep, Plan
from largerec.curate.taking import stage_column, take
from largerec.curate.versions import Version
from largerec.datasets import DataOptions, load_log
from largerec.errors import LargeRecError
from largerec.options import expanded
from largerec.sequences import SplitOptions

__all__ = ["curate"]


def curate(options: DataOptions, plan: Plan, to: str | Path | None = None) -> dict[str, Any]:
    """Take the steps of a plan; return where the versions are and what each did.

    The log as it was read is version 0, with the split written into it. A version that is there already is used again. On a
    version itself the chain goes on from it.

    Args:
        options: where the log is and how to read it.
        plan: the steps, and which rows are training.
        to: the folder of the versions; beside the log, ``<name>.versions``, where it is not given.

    Raises:
        LargeRecError: the log, the split or a step does not fit; a version's files have changed.
    """
    start = expanded(options.path, "data.path") if options.path is not None else None
    if start is not None and versions.is_version(start):
        root, name, document = _continued(start, options, plan, to)
        current: Version | None = None
        made = [_told(name, document, reused=True)]
    else:
        root = _root(start, to)
        current, name, document, reused = _first(options, plan, root)
        made = [_told(name, document, reused=reused)]
    for step in plan.step:
        current, name, document, reused = _next(root, name, document, current, step, plan.seed)
        made.append(_told(name, document, reused=reused))
    return {"dir": str(root), "log": str(root / name), "versions": made}


def _root(start: Path | None, to: str | Path | None) -> Path:
    if to is not None:
        return expanded(to, "--to")
    if start is None:
        raise LargeRecError("a generated log has no place of its own; say where its versions go: --to FOLDER.")
    start = start if start.name not in ("", "..") else start.resolve()  # "." and ".." have a name of their own
    stem = start.name.removesuffix(".gz") if start.is_file() else start.name
    return start.with_name(f"{Path(stem).stem if start.is_file() else stem}.versions")


def _continued(start: Path, options: DataOptions, plan: Plan, to: str | Path | None) -> tuple[Path, str, dict[str, Any]]:
    """A chain that goes on from a version, whose split stands."""
    start = start.resolve()
    if plan.split is not None and plan.split.protocol != "given":
        raise LargeRecError(f"{start} is a version, whose split stands already; leave [split] out of the plan, and --split.")
    if to is not None and expanded(to, "--to").resolve() != start.parent:
        raise LargeRecError(f"{start} is a version; what follows it stands beside it in {start.parent}. Leave --to out.")
    if options != DataOptions(path=options.path):
        raise LargeRecError(f"{start} is a version and is read as it is; leave data.* out.")
    manifest.verify(start)
    return start.parent, start.name, versions.read_manifest(start)


def _first(options: DataOptions, plan: Plan, root: Path) -> tuple[Version, str, dict[str, Any], bool]:
    """Version 0: the log as it was read."""
    log = load_log(options)
    split = plan.split or SplitOptions()
    key = versions.key_of(manifest.content_hash(log.events, log.items), {"split": split.model_dump(mode="json")}, 0)
    name = f"00-source-{key[:8]}"
    if versions.is_version(root / name):
        return versions.read(root / name), name, versions.read_manifest(root / name), True
    version = versions.first_version(log, stage_column(log, split), given=split.protocol == "given")
    facts = {
        "source": options.path,
        "options": options.model_dump(mode="json", exclude_defaults=True, exclude={"dropped", "path"}),
        "version": {
            "format": versions.FORMAT, "number": 0, "key": key, "parent": None, "step": None, "seed": plan.seed,
            "split": split.model_dump(mode="json", exclude_none=True),
            "rows": {"in": log.events.height, "out": log.events.height},
        },
        "notes": list(log.notes),
    }  # fmt: skip
    return version, name, versions.write(root, name, version, facts), False


def _next(
    root: Path, parent: str, before: dict[str, Any], current: Version | None, step: AnyStep, seed: int
) -> tuple[Version | None, str, dict[str, Any], bool]:
    """The version that a step makes of another one; its tables are read only where something is to be done."""
    options = step.model_dump(mode="json")
    revision = getattr(step, "revision", None)
    said = options if revision is None else {**options, "revision": revision}
    key = versions.key_of(before["content"], said, seed if getattr(step, "draws", False) else 0)
    number = before["version"]["number"] + 1
    name = f"{number:02d}-{step.name}-{key[:8]}"
    if versions.is_version(root / name):
        manifest.verify(root / name)
        return None, name, versions.read_manifest(root / name), True
    current = versions.read(root / parent) if current is None else current
    made, facts = take(current, step, seed, name)
    known = {
        "format": versions.FORMAT, "number": number, "key": key, "parent": {"name": parent, "content": before["content"]},
        "step": options, "seed": seed, "split": before["version"]["split"], **facts,
    }  # fmt: skip
    document = versions.write(root, name, made, {"source": before["source"], "version": known})
    # What stands in the file is what the next step is given, also where it was not read back: types and order are kept.
    return replace(made, log=replace(made.log, source=str(root / name))), name, document, False


def _told(name: str, document: dict[str, Any], *, reused: bool) -> dict[str, Any]:
    """What a verb shows of a version."""
    version = document["version"]
    return {
        "version": name,
        "step": version["step"],
        "reused": reused,
        "rows": version["rows"],
        "reasons": version.get("reasons", {}),
        "facts": version.get("facts", {}),
        "events": document["events"],
        "stages": document["stages"],
        "content": document["content"],
    }
