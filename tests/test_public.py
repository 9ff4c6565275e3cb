"""What ``import largerec`` offers, and that it is light."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import largerec


def test_every_public_name_is_there_and_documented() -> None:
    assert largerec.__all__ == sorted(largerec.__all__)
    assert dir(largerec) == largerec.__all__
    for name in largerec.__all__:
        thing = getattr(largerec, name)
        assert inspect.getdoc(thing), name
        assert thing.__name__ == name


def test_the_public_names() -> None:
    """A name that goes, or comes, is a change for users: this list changes with it."""
    assert set(largerec.__all__) == {
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
    }


def test_another_name_is_an_error_that_lists_them() -> None:
    with pytest.raises(AttributeError, match=r"module 'largerec' has no attribute 'recomend'; it offers ColumnOptions, .*load"):
        _ = largerec.recomend


def test_the_verbs_are_functions_of_modules_of_their_names() -> None:
    from largerec.evaluate import evaluate
    from largerec.train import train

    assert callable(evaluate) and callable(train)


@pytest.mark.parametrize("module", ["largerec", "largerec.cli"])
def test_heavy_modules_are_imported_when_they_are_needed(module: str) -> None:
    script = f"import sys, {module}; print(sorted({{'torch', 'polars', 'scipy', 'pandas'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
