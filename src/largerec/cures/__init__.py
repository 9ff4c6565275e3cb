"""Cures that train a model: steps of a plan (``largerec.curate``), one file each against its paper.

Each is given training rows alone, as the rules are. Importing this package makes them known to plans.
"""

from __future__ import annotations

from largerec.curate.plan import register
from largerec.cures.clean_reference import CleanReferenceStep
from largerec.cures.forgetting import ForgettingStep
from largerec.cures.personalise import PersonaliseStep
from largerec.cures.regenerate import RegenerateStep
from largerec.cures.sequence_denoise import SequenceDenoiseStep
from largerec.cures.truncated_loss import TruncatedLossStep

STEPS = (TruncatedLossStep, ForgettingStep, CleanReferenceStep, SequenceDenoiseStep, RegenerateStep, PersonaliseStep)
register(*STEPS)

__all__ = ["STEPS"]
