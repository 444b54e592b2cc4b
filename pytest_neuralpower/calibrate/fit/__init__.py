"""From measured rows to a platform. Needs the extra ``calibrate``."""
