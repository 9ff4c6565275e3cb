"""Look at a log before a model learns from it: its shape, its faults, what leaks, how much there is to learn. Trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largerec.audit import bots, bursts, clocks, leakage, misclicks, repeats, timeline
from largerec.audit.coarse import coarse
from largerec.audit.drift import drift
from largerec.audit.drift import findings as findings_of_drift
from largerec.audit.findings import SEVERITIES, Finding, with_one_import
from largerec.audit.information import information
from largerec.audit.ordered import Ordered
from largerec.audit.shape import shape
from largerec.events import EventLog
from largerec.sequences import SplitOptions

__all__ = ["Audit", "Finding", "audit"]


@dataclass(frozen=True)
class Audit:
    """Shape of a log, what there is to learn, how it drifts, its findings (the worst first), and what its reader noticed."""

    source: str
    time_kind: str
    protocol: str
    shape: dict[str, Any]
    information: dict[str, Any]
    drift: dict[str, Any] | None
    findings: list[Finding]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``counts`` are findings by severity."""
        return {
            "source": self.source,
            "time_kind": self.time_kind,
            "protocol": self.protocol,
            "counts": {one: sum(found.severity == one for found in self.findings) for one in SEVERITIES},
            "findings": [found.to_json() for found in self.findings],
            "shape": self.shape,
            "information": self.information,
            "drift": self.drift,
            "notes": list(self.notes),
        }


def audit(log: EventLog, split: SplitOptions | None = None, *, data: Sequence[str] = ("DATA",), now: int | None = None) -> Audit:
    """Audit a log. Labels of faults (``hidden_fault``) are not looked at.

    Args:
        split: the split that is looked at for leakage; leave-one-out where none is given.
        data: what the commands that mend the log are given: a path, then overrides.
        now: the present in ms, after which a time is impossible; the machine's clock where it is not given.

    Raises:
        LargeRecError: the moments of a timeline cannot be read.
    """
    ordered, split = Ordered.of(log), split or SplitOptions()
    wrong = clocks.WrongTimes.of(ordered, now)
    wrong_N = wrong.any_N
    known, drifting = information(ordered), drift(ordered, wrong_N)
    found = [
        *repeats.findings(ordered, data),
        *clocks.findings(ordered, wrong, data),
        *bots.findings(ordered, data),
        *bursts.findings(ordered, data),
        *timeline.findings(ordered, wrong_N),
        *misclicks.findings(ordered, data),
        *leakage.findings(ordered, split),
        *findings_of_drift(drifting, known, ordered, data),
    ]
    found.sort(key=lambda one: SEVERITIES.index(one.severity))
    found = with_one_import(found, data)
    notes = log.notes if (note := coarse(ordered)) is None else (*log.notes, note)
    return Audit(log.source, log.time_kind, split.protocol, shape(ordered, wrong_N), known, drifting, found, notes)
