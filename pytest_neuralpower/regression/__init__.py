"""Baselines: accepted predictions, stored with their layers, and what has changed since then."""
