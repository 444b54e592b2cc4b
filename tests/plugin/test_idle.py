"""Idle, the plugin loads nothing heavy and touches nothing."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "rich", "tabulate", "yaml", "sklearn", "scipy", "typer")

PROBE = f"""
import sys
HEAVY = {HEAVY!r}

def test_nothing_heavy_is_loaded():
    loaded = [name for name in HEAVY if name in sys.modules]
    assert not loaded, loaded
    ours = sorted(name for name in sys.modules if name.startswith("pytest_neuralpower"))
    assert ours == [
        "pytest_neuralpower",
        "pytest_neuralpower.plugin",
        "pytest_neuralpower.plugin.hookspecs",
        "pytest_neuralpower.plugin.options",
        "pytest_neuralpower.plugin.plugin",
    ]
"""

SPY = """
import subprocess, sys

seen = []

def audit(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(args[0])
    elif event in ("subprocess.Popen", "os.system", "socket.connect"):
        seen.append(event)

sys.addaudithook(audit)
sys.argv = ["pytest", "-q", "-p", "no:cacheprovider", "test_idle_probe.py"]
import pytest
code = pytest.main(sys.argv[1:])
print("TOUCHED", seen)
raise SystemExit(code)
"""


def test_an_idle_session_loads_nothing_writes_nothing_and_starts_nothing(pytester):
    # A fresh interpreter without other plugins: they may load numpy themselves.
    pytester.makepyfile(test_idle_probe=PROBE, spy=SPY)
    environment = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_PLUGINS": "pytest_neuralpower.plugin.plugin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": "",
    }
    result = subprocess.run(
        [sys.executable, "spy.py"],
        cwd=pytester.path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    touched = result.stdout.partition("TOUCHED")[2].strip()
    # pytest's own capture opens temporary files by descriptor or name; nothing of ours may appear.
    assert "neuralpower" not in touched
    assert "Popen" not in touched
    assert "socket" not in touched


def test_the_public_names_load_on_first_use_only():
    code = (
        "import sys, pytest_neuralpower as np; assert 'torch' not in sys.modules; "
        "assert 'trace' in dir(np); np.BudgetExceeded; assert 'torch' not in sys.modules; "
        "assert callable(np.trace) and callable(np.predict); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
