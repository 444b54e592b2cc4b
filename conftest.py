"""What every test of the project shares: pytest's own fixture for running pytest."""

pytest_plugins = ["pytester"]
