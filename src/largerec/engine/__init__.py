"""The Engine: a loaded run that recommends. Evaluation measures it and the service serves it."""

from largerec.engine.engine import Engine, load
from largerec.engine.ensemble import EnsembleScorer
from largerec.engine.scoring import ModelScorer, PopularityScorer, Queries, Scorer

__all__ = ["Engine", "EnsembleScorer", "ModelScorer", "PopularityScorer", "Queries", "Scorer", "load"]
