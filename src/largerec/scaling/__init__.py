"""Scaling laws: a grid of runs, what they cost, and the laws that are fitted to them."""
