"""What a run says while it works: a live bar on a terminal, plain lines elsewhere. Everything goes to standard error."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from largerec.recipe import Recipe
from largerec.sequences import Sequences


class Progress:
    """Use as a context manager; ``quiet`` says nothing at all."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps · {task.fields[rate]}"),
            TimeElapsedColumn(),
        )
        self.bar = Bar(*columns, console=self.console, transient=True, disable=quiet or not self.console.is_terminal)
        self.task: Any = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def start(self, recipe: Recipe, path: Path, sequences: Sequences, n_items: int, n_parameters: int, notes: list[str]) -> None:
        for note in notes:
            self.console.print(f"  note: {note}", style="dim", markup=False)
        depth, width, heads = recipe.model.shape
        size = f"{sequences.n_users:,} users, {n_items:,} items, {len(sequences.item_N):,} events"
        self.console.print(
            f"{recipe.name}: {size}; {recipe.model.name} with {depth} blocks, width {width}, heads {heads} "
            f"({n_parameters:,} parameters beside the tables) -> {path}",
            markup=False,
        )
        self.task = self.bar.add_task(f"training {recipe.model.name}", total=None, rate="")

    def resumed(self, step: int) -> None:
        self.console.print(f"  resumed at step {step}")

    def step(self, step: int, total: int, tokens_per_second: float) -> None:
        self.bar.update(self.task, completed=step, total=total, rate=f"{tokens_per_second:,.0f} tokens/s")

    def validation(self, epoch: int, step: int, found: dict[str, float], *, best: bool) -> None:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items() if not name.startswith("hr@"))
        self.console.print(f"  epoch {epoch:3d}  step {step:6d}  validation {shown}{'  (best)' if best else ''}", markup=False)

    def finished(self, result: dict[str, Any]) -> None:
        self.console.print(
            f"  trained {result['train_tokens']:,} tokens in {result['train_seconds']:.0f} s; best step {result['best_step']}"
        )
