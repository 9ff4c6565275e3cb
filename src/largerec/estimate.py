"""Parameters, memory and time of a recipe before it runs: formulas, and a few measured steps on the recipe's own log."""

from __future__ import annotations

import resource
import time
from itertools import chain, count
from tempfile import TemporaryDirectory
from typing import Any

import torch

from largerec.accounting import (
    ServingFlops,
    embedding_parameters,
    serving_flops,
    training_flops_per_token,
    training_memory_bytes,
)
from largerec.devices import named, wait_for
from largerec.models import non_embedding_parameters
from largerec.progress import Progress
from largerec.recipe import Recipe
from largerec.train import Trainer

MEASURED_SECONDS = 5.0
MOST_STEPS = 20


def training_rate(trainer: Trainer, seconds: float = MEASURED_SECONDS) -> float:
    """Tokens a second over at most twenty real steps in about so many seconds, after one that warms caches and allocators (on a
    CUDA device five, whose kernels are compiled and tuned on the way)."""
    warm = 1 if trainer.device.type == "cpu" else 5
    trainer.model.train()
    tokens, started = 0, 0.0
    for number, batch in enumerate(chain.from_iterable(trainer.batches.epoch(epoch) for epoch in count())):
        trainer.step(batch)
        if number < warm:
            started = time.perf_counter()
            continue
        wait_for(trainer.device)
        tokens += batch.n_tokens
        if number >= MOST_STEPS + warm - 1 or time.perf_counter() - started > seconds:
            break
    return tokens / max(time.perf_counter() - started, 1e-9)


def _request(serving: ServingFlops, *, ranks_only: bool) -> dict[str, float]:
    if ranks_only:
        return {"flops_per_candidate": serving.candidate}
    return {
        "flops_per_request": serving.history + serving.catalogue,
        "flops_per_request_with_state": serving.event + serving.catalogue,
    }


def _hours(device: torch.device, seconds: float) -> dict[str, float]:
    """What the plan costs: hours of cores, or of the card."""
    if device.type == "cpu":
        return {"core_hours_at_most": round(seconds * torch.get_num_threads() / 3600, 4)}
    memory = round(torch.cuda.max_memory_allocated(device) / 1e6)
    return {"device_memory_peak_mb": memory, "device_hours_at_most": round(seconds / 3600, 4)}


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Take up to twenty real training steps (about five seconds) in a temporary folder and scale them up.

    Returns parameters, memory of weights and optimizer and the peak of the whole process in MB, floating-point operations of a
    training token and of a request (a whole history of ``batch.max_length`` events read at once, or one event after a kept state,
    and the catalogue scored; of a ranker: of one candidate), tokens a second as measured, and seconds an epoch and core-hours (of
    a CUDA device its hours and memory) for the whole plan (without validation and early stopping).

    Raises:
        LargeRecError: as :func:`largerec.train.train`.
    """
    with TemporaryDirectory(prefix="largerec-estimate-") as folder, Progress(quiet=True) as progress:
        moved = recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": f"{folder}/run"})})
        trainer = Trainer(moved, progress)
        rate = training_rate(trainer)
        per_epoch = trainer.batches.tokens_per_epoch
        at_most = per_epoch / rate * trainer.total_steps / len(trainer.batches.windows_of(0))
        serving = serving_flops(trainer.recipe, trainer.model, trainer.scorer.size, recipe.batch.max_length)
        return {
            "name": recipe.name,
            "model": moved.model.resolved().model_dump(mode="json"),
            "users": trainer.engine.sequences.n_users,
            "items": trainer.scorer.size,
            "params": sum(p.numel() for p in trainer.model.parameters()),
            "params_non_embedding": non_embedding_parameters(trainer.model),
            "params_embedding": embedding_parameters(trainer.model),
            "memory_weights_mb": round(training_memory_bytes(trainer.model) / 1e6, 1),
            "device": named(trainer.device),
            "memory_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),  # Linux counts in kB
            "flops_per_token": training_flops_per_token(
                trainer.recipe, trainer.model, trainer.scorer.size, trainer.batches.mean_context
            ),
            **_request(serving, ranks_only=trainer.model.ranks_only),
            "tokens_per_second": round(rate),
            "tokens_per_epoch": per_epoch,
            "seconds_per_epoch": round(per_epoch / rate, 1),
            "planned_steps": trainer.total_steps,
            "seconds_at_most": round(at_most),
            **_hours(trainer.device, at_most),
        }
