"""A log split in time and grouped by user: the only place where leakage could enter.

Canonical order: all events are sorted by time with a *stable* sort (ties keep the log's own order; an unstable sort changes a
quarter of MovieLens-1M's targets), then grouped by user. Users and items are numbered by first appearance in that order, so
renaming ids changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import model_validator

from largerec.columns import UNTIMED
from largerec.errors import LargeRecError
from largerec.events import EventLog, TimeKind
from largerec.lists import SHOWN, ListOptions, ShownLists, pack_lists, read_lists
from largerec.options import Options
from largerec.tasks import TaskOptions, condition, labels, task_values

TRAIN, VALIDATION, TEST, AFTER = 0, 1, 2, 3
Stage = Literal["validation", "test"]
STAGES: dict[Stage, int] = {"validation": VALIDATION, "test": TEST}
STAGE_NAMES = ("train", "validation", "test", "after")
STAGE_COLUMN = "stage"  # of a log, which split.protocol=given reads
PROPENSITY_COLUMN = "propensity"  # of a log: the probability with which the item of each event was shown
WEIGHT_COLUMN = "train_weight"  # of a log: how much each event counts as a target in training
TASK_COLUMN = "task."  # before the name of a task, in the table of a run's histories


class SplitOptions(Options):
    """How a log is cut into training, validation and test.

    ``leave-one-out``: a user's last event is the test target, the second-last the validation target; users with fewer than
    three events only train. ``timeline``: training before ``validation_from``, validation before ``test_from``, test before
    ``test_until`` (open when not given). A moment is an ISO date ("2017-10-15", "2017-10-15T12:00") in UTC, or a share of the
    events such as "90%"; events without a time count in no share and always train. ``targets`` of a timeline: every event of the
    period whose user has a history, or each user's first. ``given``: the log's column ``stage`` says train, validation, test or
    after (not looked at) of each event, as the versions that ``largerec curate`` writes do.

    ``positives``: a condition in SQL on the log's columns, such as "is_click = 1": only such events are targets of retrieval,
    learned and asked for; the others are history only. Where it is null an event is no target ("is_click = 1 OR is_click IS NULL"
    makes it one). Tasks do not heed it: they are asked of every event whose label is known, and learned of those in the windows.
    """

    protocol: Literal["leave-one-out", "timeline", "given"] = "leave-one-out"
    validation_from: str | None = None
    test_from: str | None = None
    test_until: str | None = None
    targets: Literal["all", "first"] = "all"
    positives: str | None = None

    @model_validator(mode="after")
    def _moments_belong_to_a_timeline(self) -> Self:
        fitting = {"timeline": set(type(self).model_fields), "given": {"protocol", "positives", "targets"}}
        given = sorted(self.model_fields_set - fitting.get(self.protocol, {"protocol", "positives"}))
        given = [name for name in given if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            raise LargeRecError(
                f"split.{given[0]} says nothing under {self.protocol}; add split.protocol=timeline or leave it out."
            )
        return self


@dataclass(frozen=True)
class Sequences:
    """Events of all users, grouped by user and in time order within a user (N events, U users).

    ``offsets_U1[u]:offsets_U1[u + 1]`` are the rows of user ``u``; ``item_N`` indexes ``item_ids``; ``time_N`` is milliseconds
    UTC or a rank (``time_kind``); ``behaviour_N`` (None where the log names none) indexes ``behaviours``, where None stands for
    a missing one; ``stage_N`` is TRAIN, VALIDATION, TEST or AFTER and never falls within a user. With tasks, ``label_NA`` has
    the label of each (-1 unknown) in the order of ``tasks``, and ``edges`` what lies between the classes of a number. With
    ``split.positives``, ``positive_N`` says which events may be targets of retrieval. ``weight_N``, where the log has a column
    ``train_weight``, is how much each event counts as a target in training (float32, 0: only history). ``lists`` are what was
    shown, where the log knows; ``propensity_N``, where it has a column ``propensity``, how probable it was that the event's item
    was shown (NaN unknown). ``log_row_N``: the row of the log that each event was, where the log is at hand.
    """

    user_ids: pl.Series
    item_ids: pl.Series
    offsets_U1: np.ndarray
    item_N: np.ndarray
    time_N: np.ndarray
    stage_N: np.ndarray
    behaviour_N: np.ndarray | None
    behaviours: tuple[str | None, ...]
    time_kind: TimeKind
    targets_per_user: Literal["all", "first"]
    tasks: tuple[str, ...] = ()
    label_NA: np.ndarray | None = None
    edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    positive_N: np.ndarray | None = None
    lists: ShownLists | None = None
    log_row_N: np.ndarray | None = None
    weight_N: np.ndarray | None = None
    propensity_N: np.ndarray | None = None

    @property
    def n_users(self) -> int:
        return len(self.offsets_U1) - 1

    @property
    def user_N(self) -> np.ndarray:
        """User row of each event [N]."""
        user_N: np.ndarray = np.repeat(np.arange(self.n_users), np.diff(self.offsets_U1))
        return user_N

    @property
    def train_end_U(self) -> np.ndarray:
        """One past the last training row of each user [U]; training rows are a prefix of the user's rows."""
        trained_N1 = np.concatenate([[0], np.cumsum(self.stage_N == TRAIN)])
        end_U: np.ndarray = self.offsets_U1[:-1] + np.diff(trained_N1[self.offsets_U1])
        return end_U

    def targets(self, stage: Stage) -> np.ndarray:
        """Rows that are targets of ``stage``: each has a history, which is all of its user's rows before it."""
        rows = np.flatnonzero(self.stage_N == STAGES[stage])
        if self.positive_N is not None:
            rows = rows[self.positive_N[rows]]
        user_R = np.searchsorted(self.offsets_U1, rows, side="right") - 1
        rows, user_R = rows[rows > self.offsets_U1[user_R]], user_R[rows > self.offsets_U1[user_R]]
        if self.targets_per_user == "first":
            _, first = np.unique(user_R, return_index=True)
            rows = rows[first]
        return rows

    def impressions(self, stage: Stage) -> np.ndarray:
        """Rows of ``stage`` that tasks are asked of: every one of which some label is known, with a history or without."""
        assert self.label_NA is not None, "a log without tasks has no impressions"
        return np.flatnonzero((self.stage_N == STAGES[stage]) & (self.label_NA >= 0).any(axis=1))

    def train_counts(self) -> np.ndarray:
        """How often each item occurs in training rows [len(item_ids)]."""
        return np.bincount(self.item_N[self.stage_N == TRAIN], minlength=len(self.item_ids))

    def frame(self) -> pl.DataFrame:
        """The sequences as one table with the user's own ids; :func:`from_frame` reads it back."""
        columns: dict[str, pl.Series | np.ndarray] = {
            "user_id": self.user_ids.gather(self.user_N),
            "item_id": self.item_ids.gather(self.item_N),
            "timestamp": self.time_N,
            "stage": self.stage_N,
        }
        if self.behaviour_N is not None:
            columns["behavior"] = pl.Series(list(self.behaviours), dtype=pl.String).gather(self.behaviour_N)
        if self.label_NA is not None:
            columns |= {f"{TASK_COLUMN}{name}": self.label_NA[:, column] for column, name in enumerate(self.tasks)}
        if self.positive_N is not None:
            columns["positive"] = self.positive_N
        if self.lists is not None:
            columns |= self.lists.columns(len(self.item_N), self.item_ids)
        if self.weight_N is not None:
            columns[WEIGHT_COLUMN] = self.weight_N
        if self.propensity_N is not None:
            columns[PROPENSITY_COLUMN] = self.propensity_N
        return pl.DataFrame(columns)


def _moment(text: str, name: str, time_N: np.ndarray, kind: TimeKind) -> int:
    """A moment given as an ISO date (UTC) or a share of the events (only timed ones), in the unit of ``time_N``."""
    if text.endswith("%"):
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            share = -1.0
        if not 0 < share < 1:
            raise LargeRecError(f'split.{name}={text!r} is no share between 0% and 100%; write for example "90%".')
        return int(np.sort(time_N)[int(round(share * len(time_N), 6))])
    if kind == "order":
        raise LargeRecError(
            f"split.{name}={text!r} is a date, but this log has an order and no clock; give a share of the events such as "
            '"90%", use split.protocol=leave-one-out, or name a time column with data.columns.time.'
        )
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise LargeRecError(f'split.{name}={text!r} is no ISO date; write for example "2017-10-15" or "90%".') from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _timeline_stages(options: SplitOptions, time_N: np.ndarray, kind: TimeKind) -> np.ndarray:
    if options.validation_from is None or options.test_from is None:
        raise LargeRecError(
            "the timeline protocol needs split.validation_from and split.test_from: ISO dates or shares of the events, "
            'for example split.validation_from="80%" split.test_from="90%".'
        )
    timed = time_N[time_N != UNTIMED]
    if not len(timed):
        raise LargeRecError(
            "the timeline protocol cuts by time, but no event of this log has a time; use split.protocol=leave-one-out."
        )
    edges = [
        _moment(options.validation_from, "validation_from", timed, kind),
        _moment(options.test_from, "test_from", timed, kind),
    ]
    if options.test_until is not None:
        edges.append(_moment(options.test_until, "test_until", timed, kind))
    if sorted(edges) != edges:
        raise LargeRecError(
            f"split moments must rise: validation_from={options.validation_from!r}, test_from={options.test_from!r}, "
            f"test_until={options.test_until!r}."
        )
    stage_N = np.searchsorted(np.array(edges), time_N, side="right").astype(np.int8)
    stage_N[time_N == UNTIMED] = TRAIN  # even where a date before 1970 cuts
    return stage_N


def _leave_one_out_stages(offsets_U1: np.ndarray) -> np.ndarray:
    stage_N = np.zeros(offsets_U1[-1], dtype=np.int8)
    ends = offsets_U1[1:][np.diff(offsets_U1) >= 3]
    stage_N[ends - 1], stage_N[ends - 2] = TEST, VALIDATION
    return stage_N


def _given_stages(given: pl.Series | None, offsets_U1: np.ndarray, source: str) -> np.ndarray:
    """The stages that the log's own column names, checked: known names, and none that falls within a user."""
    fix = "`largerec curate` writes such versions; for a log without stages use split.protocol=leave-one-out or timeline."
    if given is None:
        raise LargeRecError(f"{source}: split.protocol=given needs a column {STAGE_COLUMN!r}, which this log has not. {fix}")
    names = given.cast(pl.String)
    stage_N: np.ndarray = names.replace_strict(list(STAGE_NAMES), list(range(4)), default=-1, return_dtype=pl.Int8).to_numpy()
    if (stage_N < 0).any():
        raise LargeRecError(
            f"{source}: column {STAGE_COLUMN!r} holds {names[int(np.argmax(stage_N < 0))]!r}; each event is one of "
            f"{', '.join(STAGE_NAMES)}. {fix}"
        )
    falls = np.diff(stage_N) < 0
    ends = offsets_U1[1:-1] - 1
    falls[ends[ends >= 0]] = False
    if falls.any():
        row = int(np.argmax(falls)) + 1
        raise LargeRecError(
            f"{source}: column {STAGE_COLUMN!r} puts an event of {names[row - 1]} before one of {names[row]} of the same user in "
            f"time, so training would know what comes later. Mend the times or the stages. {fix}"
        )
    return stage_N


def checked_weights(given: pl.Series, source: str) -> np.ndarray:
    """The log's own weights of targets in training, float32 [N].

    Raises:
        LargeRecError: one is no number of 0 or more.
    """
    weight = given.cast(pl.Float32, strict=False)
    bad = (weight.is_null() | ~weight.is_finite() | (weight < 0)).fill_null(True)
    if bad.any():
        raise LargeRecError(
            f"{source}: column {WEIGHT_COLUMN!r} holds {given[bad.arg_true()[0]]!r}; a weight is a number of 0 or more, 1 for an "
            "event that counts as others do. Mend it, or give the column another name if it means something else."
        )
    return weight.to_numpy()


def stages_of(
    options: SplitOptions,
    offsets_U1: np.ndarray,
    time_N: np.ndarray,
    kind: TimeKind,
    given: pl.Series | None = None,
    source: str = "the log",
) -> np.ndarray:
    """The stage of each event [N] (TRAIN, VALIDATION, TEST or AFTER) of a log that is grouped by user and in time order.

    ``given`` is the log's own column of stages in that order, which only ``split.protocol=given`` reads.
    """
    if options.protocol == "given":
        return _given_stages(given, offsets_U1, source)
    if options.protocol == "leave-one-out":
        return _leave_one_out_stages(offsets_U1)
    return _timeline_stages(options, time_N, kind)


def numbered(column: pl.Series, values: pl.Series | None = None) -> tuple[np.ndarray, pl.Series]:
    """Number the values of a column by first appearance, or by their place in ``values``: (codes, distinct values in order)."""
    values = column.unique(maintain_order=True) if values is None else values
    table = pl.DataFrame({"value": values, "code": np.arange(len(values))})
    codes = column.alias("value").to_frame().join(table, on="value", how="left", nulls_equal=True, maintain_order="left")["code"]
    return codes.to_numpy(), values


def stable_order(codes: np.ndarray) -> np.ndarray:
    """The stable order of codes below 2^31: a plain sort of (code, row) in one number, twice as fast as a stable one."""
    keys = (codes.astype(np.int64) << 32) | np.arange(len(codes))
    keys.sort()
    keys &= 0xFFFFFFFF
    return keys


def _behaviours(frame: pl.DataFrame) -> tuple[np.ndarray | None, tuple[str | None, ...]]:
    """Behaviours numbered by name, a missing one first: the numbers do not depend on the order of the rows."""
    if "behavior" not in frame.columns:
        return None, ()
    codes, names = numbered(frame["behavior"], frame["behavior"].unique().sort())
    return codes, tuple(names.to_list())


def build_sequences(
    log: EventLog,
    options: SplitOptions,
    tasks: Mapping[str, TaskOptions] | None = None,
    lists: ListOptions | None = None,
) -> Sequences:
    """Sort, number, group and split a log, label its events, and keep what was shown.

    Raises:
        LargeRecError: no user or no target is left, the split moments cannot be read, or a task or the lists cannot.
    """
    tasks = tasks or {}
    read = ["user_id", "item_id", "timestamp", "behavior", WEIGHT_COLUMN, PROPENSITY_COLUMN]
    read += [STAGE_COLUMN] if options.protocol == "given" else []
    events = log.events.select(name for name in read if name in log.events.columns)
    value_NA = task_values(log.events, tasks) if tasks else np.empty((log.events.height, 0))
    events = events.with_columns(pl.Series(f"{TASK_COLUMN}{name}", value_NA[:, a]) for a, name in enumerate(tasks))
    if options.positives is not None:
        positive = condition(log.events, options.positives, "split.positives").fill_null(False)
        events = events.with_columns(positive.alias("positive"))
    listed = lists is not None and lists.items is not None
    if lists is not None and listed:
        events = events.with_columns(read_lists(log.events, lists))
    events = events.with_row_index("log_row")
    if not events["timestamp"].is_sorted():
        events = events.sort("timestamp", maintain_order=True)
    user_code, user_ids = numbered(events["user_id"])
    item_code, item_ids = numbered(events["item_id"])
    by_user = stable_order(user_code)
    offsets_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_code, minlength=len(user_ids)))])
    time_N = events["timestamp"].to_numpy()[by_user]
    stages = events[STAGE_COLUMN].gather(by_user) if STAGE_COLUMN in events.columns else None
    stage_N = stages_of(options, offsets_U1, time_N, log.time_kind, stages, log.source)
    behaviour_code, behaviours = _behaviours(events)
    label_NA, edges = None, dict[str, tuple[float, ...]]()
    if tasks:
        value_NA = np.stack([events[f"{TASK_COLUMN}{name}"].to_numpy() for name in tasks], axis=1)[by_user]
        label_NA, edges = labels(value_NA, stage_N == TRAIN, tasks)
    sequences = Sequences(
        user_ids=user_ids,
        item_ids=item_ids,
        offsets_U1=offsets_U1,
        item_N=item_code[by_user],
        time_N=time_N,
        stage_N=stage_N,
        behaviour_N=None if behaviour_code is None else behaviour_code[by_user],
        behaviours=behaviours,
        time_kind=log.time_kind,
        targets_per_user=options.targets,
        tasks=tuple(tasks),
        label_NA=label_NA,
        edges=edges,
        positive_N=events["positive"].to_numpy()[by_user] if options.positives is not None else None,
        propensity_N=_propensities(events[by_user]) if PROPENSITY_COLUMN in events.columns else None,
        lists=pack_lists(events[by_user], item_code[by_user], item_ids) if listed else None,
        log_row_N=events["log_row"].to_numpy()[by_user],
        weight_N=checked_weights(events[WEIGHT_COLUMN], log.source)[by_user] if WEIGHT_COLUMN in events.columns else None,
    )
    _refuse_empty_stages(sequences, log.source)
    return sequences


def _propensities(frame: pl.DataFrame) -> np.ndarray | None:
    """The log's own propensities, NaN where there is no number; they are judged where they are used. [N]"""
    if PROPENSITY_COLUMN not in frame.columns:
        return None
    return frame[PROPENSITY_COLUMN].cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()


def _refuse_empty_stages(sequences: Sequences, source: str) -> None:
    if np.max(sequences.train_end_U - sequences.offsets_U1[:-1], initial=0) < 2:
        raise LargeRecError(
            f"{source}: no user has two training events, so there is nothing to learn; bring a longer log or move the split."
        )
    later_N = sequences.stage_N == TRAIN
    later_N[sequences.offsets_U1[:-1]] = False
    if sequences.positive_N is not None and not (later_N & sequences.positive_N).any():
        raise LargeRecError(
            f"{source}: split.positives holds for no training event that has a history (a user's first has none), so there "
            "is nothing to learn; loosen the condition or move the split."
        )
    if sequences.weight_N is not None:
        weighed_N = later_N & (sequences.weight_N > 0)
        if not weighed_N.any():
            raise LargeRecError(
                f"{source}: column {WEIGHT_COLUMN!r} is 0 for every training event that has a history, so there is nothing to "
                "learn; give some a weight."
            )
        if sequences.positive_N is not None and not sequences.tasks and not (weighed_N & sequences.positive_N).any():
            raise LargeRecError(
                f"{source}: column {WEIGHT_COLUMN!r} is 0 for every training event for which split.positives holds, so there is "
                "nothing to learn; give some a weight, or loosen the condition."
            )
    stages: tuple[Stage, ...] = ("validation", "test")
    for stage in stages:
        if len(sequences.targets(stage)) == 0:
            raise LargeRecError(
                f"{source}: the {stage} part has no target whose user has a history. Leave-one-out needs users with at least "
                "three events; a timeline needs events of known users after the date; split.positives must leave some."
            )
        lists = sequences.lists
        if lists is not None and not ((sequences.stage_N[lists.row_L] == STAGES[stage]) & (lists.chosen_L >= 0)).any():
            raise LargeRecError(f"{source}: the {stage} part has no list that shows its row's own item; move the split.")
        for column, name in enumerate(sequences.tasks):
            assert sequences.label_NA is not None
            if not (sequences.label_NA[sequences.stage_N == STAGES[stage], column] >= 0).any():
                raise LargeRecError(f"{source}: task {name!r} is unknown for every event of the {stage} part; move the split.")


def from_frame(
    frame: pl.DataFrame,
    time_kind: TimeKind,
    targets_per_user: Literal["all", "first"],
    edges: Mapping[str, tuple[float, ...]] | None = None,
) -> Sequences:
    """Read back what :meth:`Sequences.frame` wrote (rows grouped by user, in order)."""
    user_code, user_ids = numbered(frame["user_id"])
    item_code, item_ids = numbered(frame["item_id"])
    behaviour_N, behaviours = _behaviours(frame)
    tasks = tuple(name.removeprefix(TASK_COLUMN) for name in frame.columns if name.startswith(TASK_COLUMN))
    return Sequences(
        user_ids=user_ids,
        item_ids=item_ids,
        offsets_U1=np.concatenate([[0], np.cumsum(np.bincount(user_code, minlength=len(user_ids)))]),
        item_N=item_code,
        time_N=frame["timestamp"].to_numpy(),
        stage_N=frame["stage"].to_numpy(),
        behaviour_N=behaviour_N,
        behaviours=behaviours,
        time_kind=time_kind,
        targets_per_user=targets_per_user,
        tasks=tasks,
        label_NA=np.stack([frame[f"{TASK_COLUMN}{name}"].to_numpy() for name in tasks], axis=1) if tasks else None,
        edges=edges or {},
        positive_N=frame["positive"].to_numpy() if "positive" in frame.columns else None,
        lists=pack_lists(frame, item_code, item_ids) if SHOWN in frame.columns else None,
        weight_N=frame[WEIGHT_COLUMN].to_numpy() if WEIGHT_COLUMN in frame.columns else None,
        propensity_N=_propensities(frame),
    )
