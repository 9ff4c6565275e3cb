"""Benchmarks of one's own recipe on one's own log: how fast it trains here, where the time goes, how far the limit is."""

from __future__ import annotations

import resource
import time
from itertools import chain, count
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from largerec.accounting import training_flops_per_token
from largerec.devices import device_gflops, named, wait_for
from largerec.doctor import matrix_gflops
from largerec.kernels import describe
from largerec.progress import Progress
from largerec.recipe import Recipe
from largerec.train import Trainer

PARTS = ("data", "forward", "loss", "backward", "optimizer")


def bench_train(recipe: Recipe, steps: int = 50, warmup: int = 5) -> dict[str, Any]:
    """Train ``warmup`` and then ``steps`` real steps in a temporary folder and measure the latter.

    Returns tokens a second (median and quartiles over steps), median seconds a step by part (``data`` is the wait for the batch,
    ``optimizer`` includes clipping), the peak memory of the process in MB, floating-point operations a second by formula beside
    the rate of square matrix products measured on this machine in the same precision, and which kernels ran.

    Raises:
        LargeRecError: as :func:`largerec.train.train`.
    """
    with TemporaryDirectory(prefix="largerec-bench-") as folder, Progress(quiet=True) as progress:
        moved = recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": f"{folder}/run"})})
        trainer = Trainer(moved, progress)
        trainer.model.train()
        seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        tokens, started = [], time.perf_counter()

        def done(part: str) -> None:
            nonlocal started
            wait_for(trainer.device)
            now = time.perf_counter()
            seconds[part][-1] += now - started
            started = now

        for number, batch in enumerate(chain.from_iterable(trainer.batches.epoch(epoch) for epoch in count()), 1):
            for values in seconds.values():
                values.append(0.0)
            done("data")
            trainer.step(batch, done)
            tokens.append(batch.n_tokens)
            if number == warmup + steps:
                break
        memory = torch.cuda.max_memory_allocated() if trainer.device.type == "cuda" else 0
        whole = np.sum([seconds[part] for part in PARTS], axis=0)[warmup:]
        low, median, high = np.quantile(np.array(tokens)[warmup:] / whole, (0.25, 0.5, 0.75))
        context = trainer.batches.mean_context
        flops = training_flops_per_token(trainer.recipe, trainer.model, trainer.scorer.size, context)
        precision = trainer.recipe.train.precision
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        on_cpu = trainer.device.type == "cpu"
        limit = matrix_gflops(torch, kind, torch.get_num_threads()) if on_cpu else device_gflops(trainer.device, kind)
    return {
        "name": recipe.name,
        "tokens_per_s": round(float(median), 1),
        "tokens_per_s_quartiles": [round(float(low), 1), round(float(high), 1)],
        "tokens_a_step": round(float(np.mean(tokens[warmup:])), 1),
        "seconds_by_part": {part: round(float(np.median(values[warmup:])), 6) for part, values in seconds.items()},
        "memory_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        **({"device_memory_peak_mb": round(memory / 1e6)} if memory else {}),
        "gflops_done": round(float(median) * flops / 1e9, 2),
        "gflops_of_matrix_products": round(limit, 1),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "device": named(trainer.device),
        "kernels": describe(trainer.device.type),
    }
