"""Budgets and baselines: whether a prediction keeps what was agreed, and what has changed."""
