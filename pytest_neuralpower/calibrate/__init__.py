"""Calibration: from measured rows to a platform. Needs the extra ``calibrate``."""
