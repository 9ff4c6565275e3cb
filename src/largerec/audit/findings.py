"""A finding: what was found, how much of it, how bad it is, and what mends it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Severity = Literal["info", "warn", "serious"]
Kind = Literal["fault", "leakage", "information"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        name: a short name, the same for every log. kind: fault, leakage or information.
        severity: "info" (good to know), "warn" (look at it before you train), "serious" (mend it before you train).
        count, unit, of: so many of how many (events, users, items, days, columns).
        said: what it is, in a sentence or two. cure: what mends it, or why nothing does yet.
        command: the command that mends it, where there is one today.
        imports: the flags of an import that mends it (see ``with_one_import``).
        examples: some of them. more: further numbers.
    """

    name: str
    kind: Kind
    severity: Severity
    count: int
    unit: str
    of: int
    said: str
    cure: str
    command: str | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, the share among them."""
        return {**asdict(self), "share": self.count / self.of if self.of else 0.0}


def by_share(count: int, of: int, warn: float, serious: float) -> Severity:
    """The severity of a share: info below ``warn``, serious from ``serious`` on."""
    share = count / max(1, of)
    return "serious" if share >= serious else "warn" if share >= warn else "info"


def counted(number: int, unit: str) -> str:
    """``1 day``, ``2,000 days``: a number of what ``unit`` names in the plural."""
    return f"{number:,} {unit[:-1] if number == 1 else unit}"


def curate_command(data: Sequence[str], step: str) -> str:
    """A ``largerec curate`` of the audited log with this step."""
    return shlex.join(["largerec", "curate", *data, "--step", step])


def with_one_import(found: Sequence[Finding], data: Sequence[str]) -> list[Finding]:
    """The findings, the first that an import mends with the command of one that mends all of them.

    Each by itself would begin anew from the log as it was, and find the folder taken. Of several windows the narrowest counts.
    """
    ask = [one for one in found if one.imports]
    if not ask:
        return list(found)
    flags: list[str] = ["--dedupe"] if any("--dedupe" in one.imports for one in ask) else []
    for flag, narrowest in (("--from", max), ("--until", min)):
        if days := [one.imports[one.imports.index(flag) + 1] for one in ask if flag in one.imports]:
            flags += [flag, narrowest(days)]
    mended = re.search(r"(?:^|/)data/mended(?:-(\d+))?(?=/|$)", data[0])  # a log is not imported into itself
    to = f"data/mended-{int(mended[1] or 1) + 1}" if mended else "data/mended"
    command = shlex.join(["largerec", "data", "import", *data, "--to", to, *flags])
    too = f" The one import that is named at {ask[0].name!r} does so."
    return [
        replace(one, command=command) if one is ask[0] else replace(one, cure=one.cure + too) if one.imports else one
        for one in found
    ]
