"""Measuring on a device: all that touches a clock or a meter."""
