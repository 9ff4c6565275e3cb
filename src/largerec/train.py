"""Training: one readable loop. Killed at any moment, it resumes to the same numbers.

Randomness is a function of (seed, step) and the batch order of (seed, epoch), so the whole state is: weights, optimizer moments,
counters. It is written as one safetensors file (tensors, and the counters as JSON metadata) that is replaced in one step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.func import functional_call

from largerec import metrics
from largerec.accounting import training_flops_per_token
from largerec.averaging import WeightAverage
from largerec.batches import Batch, TrainingBatches
from largerec.bundle import RANDOM, Bundle
from largerec.contrastive import Contrast
from largerec.devices import device_of, memory_advised, named
from largerec.engine import Engine
from largerec.engine.engine import build_scorer
from largerec.errors import Diverged, LargeRecError
from largerec.evaluate import measure, sample_targets
from largerec.evaluate_lists import validate_lists
from largerec.evaluate_tasks import asked_rows, predict_tasks, summarise_tasks, task_values
from largerec.hard_negatives import hard_negative_loss
from largerec.interrupts import deferred_interrupt
from largerec.item_vectors import item_vectors
from largerec.kernels import describe
from largerec.models import non_embedding_parameters
from largerec.objectives import Objective
from largerec.optim import RowOptimizer, build_optimizer, learning_rate_at
from largerec.progress import Progress
from largerec.ranking import TaskHeads, check_within
from largerec.recipe import Recipe
from largerec.sequences import TRAIN, WEIGHT_COLUMN, Sequences
from largerec.split_log import SplitLog
from largerec.transfer import start_as, width_factors
from largerec.writing import writing


@dataclass
class State:
    """Counters of a run; with the tensors they are all that resuming needs."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float = -math.inf
    best_step: int = 0
    bad: int = 0
    finished: bool = False


class _Part(NamedTuple):
    """What one pass forward and backward works on; items are named by token, or by place among the rows in use."""

    batch: Batch
    target_T: torch.Tensor
    negatives: torch.Tensor | None
    views: list[Batch]
    share: float  # of the step's tokens
    target_share: float  # of the weight of the step's targets (of their number, where events have no weights)
    known_A: torch.Tensor | None  # known labels of each task in the whole step, or their weight

    def to(self, device: torch.device) -> _Part:
        """The part where the model is; it is made on the CPU."""
        negatives = None if self.negatives is None else self.negatives.to(device)
        views = [view.to(device) for view in self.views]
        return self._replace(batch=self.batch.to(device), target_T=self.target_T.to(device), negatives=negatives, views=views)


class Trainer:
    """Model, data, optimizer and state of one run. ``split``: the recipe's log, where it has been read before."""

    def __init__(self, recipe: Recipe, progress: Progress, split: SplitLog | None = None) -> None:
        if recipe.threads is not None:
            torch.set_num_threads(recipe.threads)
        self.recipe = recipe = recipe.resolved()
        self.device = device_of(recipe)
        self.options, self.progress = recipe.train, progress
        split = split or SplitLog.of(recipe)
        log, sequences, tokenizer = split.log, split.sequences, split.tokenizer
        if recipe.ranking.within:
            check_within(sequences, {name: recipe.tasks[name] for name in recipe.learned_tasks}, recipe.batch.actions)
        beside = split.beside(recipe)
        features = beside.features
        self.bundle = Bundle.start(recipe, sequences, tokenizer, split.lineage() | beside.hashes, features)
        if beside.random is not None:
            self.bundle.write_parquet(RANDOM, beside.random)
        torch.manual_seed(recipe.seed)
        layout = None if features is None else features.layout()
        self.scorer = build_scorer(recipe, tokenizer, sequences, layout)
        self.model = self.scorer.model
        self.model.recompute = self.options.recompute
        if (side := recipe.model.side).columns:
            self.model.set_side(torch.from_numpy(item_vectors(log.items, tokenizer.vocabulary["item_id"], side)))
        self.model.to(self.device)
        self.engine = Engine(self.scorer, tokenizer, sequences, features)
        self.batches = TrainingBatches(sequences, self.engine.token_of_item, recipe.batch, recipe.seed, self.engine.features)
        self.objective = Objective(recipe.objective, torch.tensor(tokenizer.counts_V), self.device)
        self.contrast = Contrast(recipe.contrastive, self.batches) if recipe.contrastive.weight else None
        by_rows = recipe.optim.table != "adamw"
        self.table = RowOptimizer(self.model.item_table_VD, recipe.optim) if by_rows else None
        own = width_factors(recipe, self.model, tokenizer.size, layout)
        start_as(self.model, own)
        elsewhere = frozenset([self.table.table_VD] if self.table else [])
        self.optimizer = build_optimizer(self.model, recipe.optim, elsewhere, {name: one.rate for name, one in own.items()})
        self.average = WeightAverage(self.model, self.options.average) if self.options.average is not None else None
        self.validation_rows = sample_targets(sequences, "validation", self.options.validation_targets, recipe.seed)
        self.asked_rows = (
            asked_rows(sequences, "validation", self.options.validation_targets, recipe.seed) if recipe.learned_tasks else None
        )
        self.total_steps = self.batches.steps_of(self.options.max_epochs, self.options.max_steps)
        self.state = State()
        self.on_validation: Callable[[], None] = lambda: None
        notes = [*log.notes, *_warnings(recipe, sequences)]
        progress.start(recipe, self.bundle.path, sequences, tokenizer.size, non_embedding_parameters(self.model), notes)
        self._resume()
        self.tensorboard = _tensorboard(self.bundle.path, self.state.step) if self.options.tensorboard else None

    # --- one step ---------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, done: Callable[[str], None] = lambda part: None) -> float:
        """One optimizer step; returns the mean loss a token. ``done`` is told the name of each part that has ended.

        Raises:
            LargeRecError: the loss or its gradient is not finite.
        """
        recipe, state = self.recipe, self.state
        # Dropout and negatives of a step depend on nothing that came before it.
        torch.manual_seed(int(np.random.SeedSequence([recipe.seed, state.step]).generate_state(1, np.uint64)[0] >> 1))
        assert recipe.optim.learning_rate is not None and batch.target_T is not None and batch.loss_mask_T is not None
        rate = learning_rate_at(state.step, self.total_steps, recipe.optim, recipe.optim.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        parts, table_KD, rows_R = self._parts(batch)
        value = 0.0
        for part in parts:
            loss = self._loss(part, table_KD, rows_R, done)
            value += float(loss.detach())
            if not np.isfinite(value):
                raise self._diverged("loss", value, rate)
            done("loss")
            loss.backward()  # type: ignore[no-untyped-call]
            done("backward")
        learned: list[torch.Tensor] = list(self.model.parameters())
        if self.table is not None:
            assert table_KD is not None
            learned = [table_KD, *(p for p in learned if p is not self.table.table_VD)]
        norm = float(torch.nn.utils.clip_grad_norm_(learned, recipe.optim.clip))
        if not np.isfinite(norm):
            raise self._diverged("gradient", norm, rate)
        self.optimizer.step()
        if self.table is not None:
            assert rows_R is not None and table_KD is not None and table_KD.grad is not None
            self.table.step(rows_R, table_KD.grad, rate, state.step)
        if self.average is not None:
            self.average.update(state.step + 1)
        done("optimizer")
        return value

    def _parts(self, batch: Batch) -> tuple[list[_Part], torch.Tensor | None, torch.Tensor | None]:
        """The batch in parts; and where only rows in use are updated, these rows, which the parts then name, and their items."""
        assert batch.loss_mask_T is not None
        parts, whole = [], _weight_of_targets(batch)
        known_A = None if batch.task_label_TA is None else (batch.task_label_TA >= 0).sum(0)
        if known_A is not None and batch.weight_T is not None and batch.task_label_TA is not None:
            known_A = ((batch.task_label_TA >= 0) * batch.weight_T[:, None]).sum(0)
        for piece in batch.pieces(self.options.accumulate):
            assert piece.target_T is not None and piece.loss_mask_T is not None
            views = [] if self.contrast is None else self.contrast.views(piece)
            share = piece.n_tokens / batch.n_tokens
            target_share = _weight_of_targets(piece) / whole if whole else 0.0
            parts.append(_Part(piece, piece.target_T[piece.loss_mask_T], None, views, share, target_share, known_A))
        if self.table is None:
            return [part.to(self.device) for part in parts], None, None
        used: list[torch.Tensor] = []
        for part in parts:
            retrieval = self.recipe.ranking.retrieval > 0
            negatives = self.objective.draw(len(part.target_T)) if retrieval else part.target_T[:0]
            assert negatives is not None  # a recipe with the full softmax was refused
            assert part.batch.target_T is not None  # all of them: of those that retrieval leaves out, tasks may be asked
            used += [part.batch.item_T, part.batch.target_T, negatives, *(view.item_T for view in part.views)]
        rows_R, places = self.table.rows_of(*used)
        place, by_place = iter(places), []
        for part in parts:
            batch, negatives = replace(part.batch, item_T=next(place), target_T=next(place)), next(place)
            assert batch.target_T is not None
            target_T, views = batch.target_T[batch.loss_mask_T], [replace(view, item_T=next(place)) for view in part.views]
            part = part._replace(batch=batch, target_T=target_T, negatives=negatives, views=views)
            by_place.append(part.to(self.device))
        rows_R = rows_R.to(self.device)
        return by_place, self.model.item_table_VD.detach()[rows_R].requires_grad_(), rows_R

    def _loss(
        self, part: _Part, table_KD: torch.Tensor | None, rows_R: torch.Tensor | None, done: Callable[[str], None]
    ) -> torch.Tensor:
        """The part's share of the step's loss: of next items, and of tasks where there are any."""
        low_precision = self.options.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low_precision):
            given = {} if table_KD is None else {"input.item.weight": table_KD}
            hidden_TD = functional_call(self.model, given, (part.batch,))
            views = [(view, functional_call(self.model, given, (view,))) for view in part.views]
        head = self.scorer.head
        queries_TD = head.queries(hidden_TD[part.batch.loss_mask_T].float())
        done("forward")
        table_KD = self.model.item_table_VD if table_KD is None else table_KD
        keys_KD = table_KD if head.mixture is not None else head.keys(table_KD)  # of a mixture only the drawn rows are prepared
        if len(part.target_T) and self.recipe.ranking.retrieval > 0:
            weight_T = None if part.batch.weight_T is None else part.batch.weight_T[part.batch.loss_mask_T]
            loss = self.objective(
                queries_TD,
                keys_KD,
                part.target_T,
                negatives=part.negatives,
                rows_V=rows_R,
                low_precision=low_precision,
                weight_T=weight_T,
                mixing=None if head.mixture is None else head,
            )
            loss = loss if self.contrast is None else loss + self.contrast.loss(part.batch, hidden_TD, views)
            loss = loss * part.target_share
        else:
            loss = 0 * queries_TD.sum()
        if part.known_A is None:
            return loss
        heads = self.model.task_heads
        assert isinstance(heads, TaskHeads)
        hard = hard_negative_loss(heads, part.batch, hidden_TD, queries_TD, table_KD, keys_KD) * part.target_share
        return heads.joint(loss + hard, heads.losses(hidden_TD, part.batch, table_KD, part.known_A), part.share)

    def _diverged(self, what: str, value: float, rate: float) -> Diverged:
        return Diverged(
            f"the {what} of step {self.state.step} is {value}: training diverged. Lower optim.learning_rate (now {rate:.2g}) or "
            "optim.clip, or use train.precision=fp32. The run's last checkpoint is kept."
        )

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until the budget or patience ends; Ctrl-C saves after the step at hand and raises KeyboardInterrupt."""
        with deferred_interrupt() as interrupted, memory_advised():
            while not self.state.finished:
                self._epoch(interrupted)

    def _epoch(self, interrupted: list[bool]) -> None:
        state, options = self.state, self.options
        self.model.train()
        n_batches = len(self.batches.windows_of(state.epoch))
        started = time.perf_counter()
        for batch in self.batches.epoch(state.epoch, state.batch):
            state.waited += time.perf_counter() - started  # for the batch
            loss = self.step(batch)
            state.step, state.batch, state.tokens = state.step + 1, state.batch + 1, state.tokens + batch.n_tokens
            state.loss_sum, state.loss_count = state.loss_sum + loss * batch.n_tokens, state.loss_count + batch.n_tokens
            state.seconds, started = state.seconds + time.perf_counter() - started, time.perf_counter()
            self.progress.step(state.step, self.total_steps, state.tokens / max(state.seconds, 1e-9))
            epoch_ended = state.batch == n_batches
            if epoch_ended:
                state.epoch, state.batch = state.epoch + 1, 0
            if state.step % options.log_every == 0 or epoch_ended:
                self._log_loss()
            budget_spent = state.step >= (options.max_steps or math.inf) or (epoch_ended and state.epoch >= options.max_epochs)
            due = state.step % options.evaluate_every == 0 if options.evaluate_every else epoch_ended
            if due or budget_spent:
                with self.average.in_place() if self.average is not None else nullcontext():
                    self._validate()
                self.on_validation()  # with the run's own weights in place, so that it may save them
                state.finished = budget_spent or state.bad >= options.patience
                self.model.train()
            if due or state.finished or state.step % options.checkpoint_every == 0 or interrupted[0]:
                self._save()
            if interrupted[0] and not state.finished:
                raise KeyboardInterrupt
            if state.finished:
                return
            started = time.perf_counter()

    def _log_loss(self) -> None:
        state = self.state
        rate, waited = self.optimizer.param_groups[0]["lr"], round(state.waited, 3)
        self._log({"loss": state.loss_sum / max(1, state.loss_count), "lr": rate, "waited": waited})
        state.loss_sum, state.loss_count = 0.0, 0

    def _validate(self) -> None:
        """Measure on validation, and keep the weights if they are the best so far."""
        state = self.state
        self.scorer.prepared()
        shown, value = self.judged()
        if value > state.best:
            state.best, state.best_step, state.bad = value, state.step, 0
            self.bundle.write_tensors("model.safetensors", self.model.state_dict())
        else:
            state.bad += 1
        self._log({"validation": shown})
        self.progress.validation(state.epoch, state.step, shown, best=state.bad == 0)

    def judged(self) -> tuple[dict[str, float], float]:
        """What a validation says of the weights at hand, and the number by which they are chosen: higher is better."""
        name = self.options.metric
        shown: dict[str, float] = {}
        if self.engine.retrieves:
            rank_N = measure(self.engine, self.validation_rows).rank_N
            kind, _, k = name.partition("@")
            shown = metrics.summarise(rank_N, (10,))
            if k:
                functions = {"ndcg": metrics.ndcg, "recall": metrics.recall, "mrr": metrics.mrr}
                shown[name] = float(functions[kind](rank_N, int(k)).mean())
        if self.asked_rows is not None:
            shown |= task_values(self.engine, self.asked_rows)
        if name not in shown:  # and never will be: the labels do not change
            raise LargeRecError(
                f"train.metric={name!r} cannot be said of the validation events: an AUC needs both labels among them, a GAUC a "
                "user who has both, which leave-one-out (one event a user) never gives. Choose by another metric or split."
            )
        return shown, shown[name]

    def _log(self, fields: dict[str, Any]) -> None:
        state = self.state
        entry = {"step": state.step, "epoch": state.epoch, **fields, "tokens": state.tokens, "seconds": round(state.seconds, 3)}
        path = self.bundle.file("metrics.jsonl")
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self.tensorboard is not None:
            for name, value in (fields.get("validation") or fields).items():
                self.tensorboard.add_scalar(name, value, state.step)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, parameter in enumerate(self.model.parameters()):
            for name, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = tensor
        if self.table is not None:
            tensors |= {f"table.{name}": tensor for name, tensor in self.table.state.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        self.bundle.write_tensors("state.safetensors", tensors, {"state": json.dumps(asdict(self.state))})

    def _resume(self) -> None:
        """Take up the last checkpoint, if there is one, and forget log lines written after it."""
        log = self.bundle.file("metrics.jsonl")
        if not self.bundle.file("state.safetensors").is_file():
            log.unlink(missing_ok=True)
            return
        tensors, metadata = self.bundle.read_tensors("state.safetensors")
        try:
            self.state = State(**json.loads(metadata["state"]))
            self.model.load_state_dict(
                {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LargeRecError(
                f"{self.bundle.file('state.safetensors')} is no state of this run ({str(error).splitlines()[0]}); remove it to "
                "train from the start."
            ) from None
        for index, parameter in enumerate(self.model.parameters()):
            prefix = f"optimizer.{index}."
            moments = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            self.optimizer.state[parameter] = {name: tensor.to(self.device) for name, tensor in moments.items()}
        if self.table is not None:
            self.table.state = {name: tensors[f"table.{name}"].to(self.device) for name in self.table.state}
        if self.average is not None:
            self.average.tensors = {name: tensors[f"average.{name}"].to(self.device) for name in self.average.tensors}
        kept = (
            [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= self.state.step]
            if log.is_file()
            else []
        )
        self.bundle.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))
        self.progress.resumed(self.state.step)

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self.tensorboard is not None:
            self.tensorboard.close()

    def result(self, row_N: np.ndarray | None = None) -> dict[str, Any]:
        """The document ``result.json`` begins with; validation is measured on the best weights and all validation targets, or
        on those that are given. From here on the model is on the CPU, where runs are loaded to evaluate and serve."""
        self.model.to("cpu")
        self.bundle.load_weights(self.model)
        self.scorer.prepared()
        rows = self.engine.sequences.targets("validation") if row_N is None else row_N
        found = measure(self.engine, rows) if self.engine.retrieves else None
        recipe, state = self.recipe, self.state
        tasks: dict[str, Any] = {}
        if self.asked_rows is not None:
            predicted = predict_tasks(self.engine, asked_rows(self.engine.sequences, "validation"))
            tasks = {"validation_tasks": summarise_tasks(self.engine, predicted, recipe.evaluate, recipe.seed)}
        tasks |= validate_lists(self.engine, self.bundle, recipe)
        context = self.batches.mean_context
        flops = training_flops_per_token(recipe, self.model, self.scorer.size, context) * state.tokens
        return {
            "name": recipe.name,
            "model": recipe.model.name,
            "protocol": recipe.split.protocol,
            "query_time": self.scorer.query_time,
            "seed": recipe.seed,
            "data": self.bundle.read_json("lineage.json")["data_hash"],
            "params": sum(p.numel() for p in self.model.parameters()),
            "params_non_embedding": non_embedding_parameters(self.model),
            "train_tokens": state.tokens,
            "train_flops": flops,
            "train_seconds": round(state.seconds, 2),
            "threads": torch.get_num_threads(),
            "device": named(self.device),
            "steps": state.step,
            "best_step": state.best_step,
            "validation": {} if found is None else metrics.summarise(found.rank_N, recipe.evaluate.k),
            "validation_unmasked": {} if found is None else metrics.summarise(found.unmasked_N, recipe.evaluate.k),
            **tasks,
            "tasks": {},
            "n_test_evaluations": 0,
        }


def train(recipe: Recipe, *, quiet: bool = False, on_validation: Callable[[], None] | None = None) -> dict[str, Any]:
    """Train a recipe into its ``run.dir`` (or resume there) and return the run's result document (validation; no test).

    ``on_validation`` is called when a validation stands in ``metrics.jsonl``; what it raises ends the run, unfinished.

    Raises:
        LargeRecError: bad data or recipe, a diverged loss, or a folder that holds another run.
        KeyboardInterrupt: after Ctrl-C, with the state saved; the same call goes on.
    """
    with Progress(quiet=quiet) as progress:
        trainer = Trainer(recipe, progress)
        trainer.on_validation = on_validation or trainer.on_validation
        try:
            trainer.run()
        finally:
            trainer.close()
        result = trainer.result()
        trainer.bundle.write_json("result.json", result)
        progress.finished(result)
    return result


def _weight_of_targets(batch: Batch) -> float:
    """The summed weight of a batch's targets; their number where the log has no weights."""
    assert batch.loss_mask_T is not None
    return float(batch.loss_mask_T.sum() if batch.weight_T is None else batch.weight_T[batch.loss_mask_T].double().sum())


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62  # a line cut off by a kill is newer than any checkpoint


def _warnings(recipe: Recipe, sequences: Sequences) -> list[str]:
    said = []
    if recipe.train.device == "cuda" and (path := describe("cuda")).startswith("plain"):
        said.append(f"attention on this device runs in {path}; its memory grows with the square of the history")
    if sequences.time_kind == "order" and recipe.model.reads_time:
        said.append("the log has an order and no clock: what the model reads of times is only 'unknown' and says nothing")
    if sequences.weight_N is not None:
        weight_M = sequences.weight_N[sequences.stage_N == TRAIN]
        said.append(
            f"column {WEIGHT_COLUMN!r} weighs the training targets: mean {weight_M.mean():.4g}, {(weight_M == 0).sum():,} of "
            f"{len(weight_M):,} are 0 and only history"
        )
    return said


def _tensorboard(path: Path, step: int) -> Any:
    """A writer that goes on after ``step``: what was written later and lost by a kill is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise LargeRecError(
            "train.tensorboard=true needs TensorBoard; install it with: pip install 'largerec[tracking]'"
        ) from None
    return SummaryWriter(str(path / "tensorboard"), purge_step=step + 1 if step else None)
