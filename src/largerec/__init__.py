"""LargeRec: generative large recommendation models, from an event log to recommendations.

``largerec.load("runs/x").recommend(users=[...], k=10)``. Heavy modules are imported when first used. The verbs are functions
of the modules of their name: ``largerec.train.train(recipe)``, ``largerec.evaluate.evaluate("runs/x")``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largerec.datasets import DataOptions, load_log
    from largerec.engine import Engine, load
    from largerec.errors import LargeRecError
    from largerec.evaluate import compare_runs
    from largerec.events import ColumnOptions, EventLog
    from largerec.experiments import run
    from largerec.recipe import Recipe, load_recipe

_HOMES = {
    "ColumnOptions": "events",
    "DataOptions": "datasets",
    "Engine": "engine",
    "EventLog": "events",
    "LargeRecError": "errors",
    "Recipe": "recipe",
    "compare_runs": "evaluate",
    "load": "engine",
    "load_log": "datasets",
    "load_recipe": "recipe",
    "run": "experiments",
}

__all__ = [
    "ColumnOptions",
    "DataOptions",
    "Engine",
    "EventLog",
    "LargeRecError",
    "Recipe",
    "compare_runs",
    "load",
    "load_log",
    "load_recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'largerec' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"largerec.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
