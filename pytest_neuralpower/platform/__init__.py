"""Prices: one device, dtype and mode as a file, and the predictions that are made of it."""
