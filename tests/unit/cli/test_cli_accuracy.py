"""`neuralpower accuracy`: what cannot be judged is one line."""

from __future__ import annotations

import pytest

MISUSE = {
    "no_platform": ([], "give one PLATFORM to refit, such as titanx; or --prices"),
    "two_platforms": (["a", "b"], "give one PLATFORM to refit"),
    "no_data": (["--prices"], "--prices needs the public tables: --data DIR"),
    "no_such_data": (["--prices", "--data", "nowhere"], "--prices needs the public tables"),
    "nothing_is_refitted": (
        ["--prices", "--html", "x.html"],
        "--prices judges what ships: leave out --profile, --networks, --html",
    ),
    "no_checkout": (["--prices", "--data", "."], "no recipes at calibration: run it in a checkout"),
}


@pytest.mark.parametrize(("args", "says"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_one_line(neuralpower, tmp_path, monkeypatch, args, says) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEURALPOWER_DATA", raising=False)
    code, out, err = neuralpower("accuracy", *args)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
