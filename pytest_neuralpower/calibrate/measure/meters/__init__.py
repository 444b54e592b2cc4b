"""Meters: where a device's energy is read, one file each."""
