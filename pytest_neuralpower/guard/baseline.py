"""Baseline: the accepted prediction of one model, with the configurations of its layers.

Because configurations are stored, it can be predicted again on today's calibration, so that a
recalibrated platform never shows as a change of the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from pytest_neuralpower.errors import BaselineError
from pytest_neuralpower.files import mistake, read_text, read_yaml, write_atomically
from pytest_neuralpower.layer_codec import (
    LayerError,
    LayerLine,
    Priced,
    PricedLayer,
    flow,
    layer_texts,
    priced_layers,
    rounded,
)
from pytest_neuralpower.layers import Trace
from pytest_neuralpower.platform.prediction import Host, add_known, mean_power

if TYPE_CHECKING:
    from pytest_neuralpower.platform.prediction import Prediction
    from pytest_neuralpower.platform.protocol import Platform


class Totals(Struct, frozen=True, forbid_unknown_fields=True):
    """Energy (mJ), runtime (ms) and mean power (W) of one call."""

    energy_mj: float | None
    runtime_ms: float | None
    power_w: float | None


class _Facts(Struct, frozen=True):
    test: str
    model: str
    batch: int
    platform: str
    platform_sha256: str
    torch: str


class Baseline(_Facts, frozen=True, dict=True):
    """What one call of one model was predicted to cost when that was accepted.

    Attributes
    ----------
    test
        Node id of the test that predicted it.
    model
        Name of the model's class.
    batch
        Samples in one call.
    platform, platform_sha256
        Which calibration predicted it.
    torch
        Version of torch that traced it.
    layers
        In order of execution.
    host
        What the call waited for, where the platform knows it.
    estimator
        ``best``, or ``neuralpower``: which of the platform's estimators priced it.
    """

    layers: Sequence[Priced]
    host: Host | None = None
    estimator: str = "best"

    @cached_property
    def totals(self) -> Totals:
        """Sums over the layers, each rounded as it is stored, and waiting for the host."""
        runtime_ms = add_known([rounded(item.runtime_ms) for item in self.layers])
        energy_mj = add_known([rounded(item.energy_mj) for item in self.layers])
        if self.host is not None:
            launches = self.host.launches([item.layer for item in self.layers])
            if energy_mj is not None:
                energy_mj += self.host.waiting_mj(runtime_ms, launches)
            runtime_ms = self.host.total_ms(runtime_ms, launches)
        return Totals(energy_mj, runtime_ms, mean_power(energy_mj, runtime_ms))

    def repredict(self, platform: Platform) -> Prediction:
        """Predict the stored configurations on a platform.

        Raises
        ------
        BaselineError
            A stored configuration cannot be priced: it was edited by hand.
        """
        layers = tuple(item.layer for item in self.layers)
        try:
            return platform.predict(Trace(layers, batch=self.batch, model=self.model))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise BaselineError(
                f"baseline of {self.test}: a layer cannot be priced ({error}): restore the file, "
                "or write it again with --np-update-baseline"
            ) from None


def baseline_of(prediction: Prediction, *, test: str, torch: str) -> Baseline:
    """The baseline that accepts a prediction."""
    return Baseline(
        test=test,
        model=prediction.model,
        batch=prediction.batch,
        platform=prediction.platform,
        platform_sha256=prediction.platform_sha256,
        torch=torch,
        estimator=prediction.estimator,
        layers=prediction.layers,
        host=prediction.host,
    )


@cache
def torch_version() -> str:
    """Without the part that says what torch was built for: tracing needs no device."""
    return importlib.metadata.version("torch").partition("+")[0]


# -- Baseline files: YAML with one line a layer, so that a small change is a small diff.
#
# The lines are JSON too, and are read as such: PyYAML alone takes hundreds of times as long.
# A file that a formatter has rewritten is read as the YAML it is.

FORMAT: Final = "pytest-neuralpower baseline"
VERSION: Final = 1

_START: Final = "\nlayers:\n"

#: What git leaves where it could not merge.
_CONFLICT: Final = re.compile(r"^(?:<{7}|>{7}|\|{7})(?: .*)?$|^={7}$", re.MULTILINE)

#: How a broken file is made good, as errors say it.
_RENEW: Final = "restore the file, or write it again with --np-update-baseline"


class BaselineFile(_Facts, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file holds; ``totals`` are the sums over its layers."""

    format: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    totals: Totals
    host: Host | None = None
    estimator: str = "best"
    layers: tuple[LayerLine, ...] = ()


def baseline_text(baseline: Baseline) -> str:
    """The file's content."""
    totals = {name: rounded(value) for name, value in asdict(baseline.totals).items()}
    lines = [
        "# Written by pytest --np-update-baseline; review changes, do not edit.",
        f"format: {FORMAT}",
        f"version: {VERSION}",
        *(f"{name}: {flow(getattr(baseline, name))}" for name in _Facts.__struct_fields__),
        f"totals: {flow(totals)}",
    ]
    if baseline.host is not None:
        lines.append(f"host: {flow(msgspec.to_builtins(baseline.host))}")
    if baseline.estimator != "best":
        lines.append(f"estimator: {flow(baseline.estimator)}")
    return "\n".join(lines) + _START + _body(baseline.layers)


def _body(layers: Iterable[Priced]) -> str:
    return "".join([f"- {each}\n" for each in layer_texts(layers)])


def write_baseline(path: Path, text: str) -> bool:
    """Write :func:`baseline_text`; False where the file has that text already, but for torch's
    version perhaps: it alone changes no cost.

    Raises
    ------
    BaselineError
        The file cannot be written.
    """
    try:
        if path.is_file():
            before = path.read_text(encoding="utf-8")
            if _TORCH.sub("", before, count=1) == _TORCH.sub("", text, count=1):
                return False
        write_atomically(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(
            f"baseline {path} cannot be written ({_reason(error)}): make the folder writable, or "
            "choose another with --np-baselines=DIR"
        ) from None
    return True


#: The line that says which version of torch traced the layers, and that of the test.
_TORCH: Final = re.compile(r"^torch: .*\n", re.MULTILINE)
_TEST: Final = re.compile(r"^test: (.*)$", re.MULTILINE)


def stored_test(path: Path) -> str | None:
    """Node id of the test whose baseline a file is; None where there is none, or it is broken."""
    with suppress(BaselineError, msgspec.DecodeError):
        text = read_text(path, file=f"baseline {path}", error=BaselineError)
        if found := _TEST.search(text.partition(_START)[0]):
            return msgspec.json.decode(found[1], type=str)
        return parse_baseline(text, str(path)).test
    return None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_baseline(path: Path, expected: Prediction | None = None) -> Baseline:
    """Read and check a baseline file; ``expected`` as :func:`parse_baseline` takes it.

    Raises
    ------
    BaselineError
        With one line: the file cannot be read, or :func:`parse_baseline` says why.
    """
    text = read_text(path, file=f"baseline {path}", error=BaselineError)
    return parse_baseline(text, str(path), expected)


def parse_baseline(
    text: str, name: str, expected: Prediction | None = None, *, summed: bool = False
) -> Baseline:
    """The baseline of a file's text.

    Parameters
    ----------
    name
        Where it came from, for messages.
    expected
        What the file probably accepts: layers that it writes alike need not be read.
    summed
        Whether its totals are those of its layers, whatever it says (by default it is refused).

    Raises
    ------
    BaselineError
        It is not YAML, no baseline, of a later version, or has a field that is missing, unknown or
        wrong; the line where that is known.
    """
    if conflict := _CONFLICT.search(text):
        line = text.count("\n", 0, conflict.start()) + 1
        raise BaselineError(
            f"baseline {name}:{line}: an unsettled merge conflict ({conflict[0].strip()}); settle "
            "it with `neuralpower baselines merge`, or write the file again with "
            "--np-update-baseline"
        )
    head, found, body = text.partition(_START)
    alike = bool(found) and expected is not None and body == _body(expected.layers)
    lines = [] if alike else body.removesuffix("\n").split("\n")
    plain = found and all(line.startswith("- {") for line in lines)
    header = _plain_header(head) if plain else None
    layers: Sequence[Priced] | None = None
    if header is not None:
        file = _checked(header, name)
        if expected is not None and alike:
            layers = expected.layers
        else:
            with suppress(msgspec.DecodeError, RecursionError):  # it is not JSON, but may be YAML
                joined = ",".join([line[2:] for line in lines])
                layers = _layers(f"[{joined}]", name, head.count("\n") + 3)
    if layers is None:
        content = read_yaml(text, file=f"baseline {name}", error=BaselineError, renew=_RENEW)
        records = content.pop("layers", None) if isinstance(content, dict) else None
        file = _checked(content, name)
        layers = _layers(records, name)
    facts = {each: getattr(file, each) for each in _Facts.__struct_fields__}
    baseline = Baseline(**facts, layers=layers, host=file.host, estimator=file.estimator)
    if not summed:
        _check_totals(file.totals, baseline.totals, name)
    return baseline


def _plain_header(text: str) -> dict[str, object] | None:
    """The fields, where each is a line of its own in JSON, the format alone without quotes."""
    data = {}
    for line in text.splitlines():
        key, separator, value = line.partition(": ")
        if line.startswith("#"):
            continue
        if not separator or not key.isidentifier() or key in data:
            return None
        try:
            data[key] = value if key == "format" else msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return None
    return data


def _checked(data: Any, name: str) -> BaselineFile:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _error(name, f"not a baseline (its format is not {FORMAT!r})")
    version = data.get("version")
    if type(version) is int and version > VERSION:
        raise BaselineError(
            f"baseline {name}: version {version}, this release reads up to {VERSION}: upgrade "
            "pytest-neuralpower"
        )
    optional = "totals", "host", "estimator", "layers"
    allowed = "format", "version", *_Facts.__struct_fields__, *optional
    for key in data:
        if key not in allowed:
            raise _error(name, f"unknown key {key!r}; allowed: {', '.join(allowed)}")
    try:
        return msgspec.convert(data, BaselineFile)
    except msgspec.ValidationError as error:
        raise _error(name, mistake(BaselineFile, data, error)[1]) from None


def _layers(lines: Any, name: str, first: int = 0) -> tuple[PricedLayer, ...]:
    """The layers of JSON text or parsed data; ``first`` is the first one's line, 0 if not known."""
    if not lines or not (first or isinstance(lines, list)):
        raise _error(name, "it has no layers, a list of them")
    try:
        return priced_layers(lines)
    except LayerError as error:
        where = f"{name}:{first + error.index}" if first else f"{name}, layer {error.index + 1}"
        raise _error(where, str(error)) from None


def _check_totals(stored: Totals, summed: Totals, name: str) -> None:
    """A merge that takes layers of one version and totals of another is no baseline of either."""
    for key, value in asdict(summed).items():
        given = getattr(stored, key)
        if (given is None) != (value is None) or (
            value is not None and not abs(given - value) <= 1e-4 * abs(value)
        ):
            raise _error(name, f"{key} of its totals ({given!r}) is not that of its layers")


def _error(where: str, what: str) -> BaselineError:
    return BaselineError(f"baseline {where}: {what}; {_RENEW}")


# -- The folder of baselines: ``<folder>/<platform>/<name>.yaml``, one file a prediction.

_SUFFIXES: Final = (".budget.yaml", ".budget.yml", ".py")
_PLAIN: Final = re.compile(r"[\w.-]+", re.ASCII)
#: Longest file name without suffix: some file systems allow 143 bytes.
_LONGEST: Final = 120


def baseline_name(test: str, number: int = 1) -> str:
    """Name of the baseline of a test's ``number``-th prediction.

    >>> baseline_name("tests/test_models.py::TestSmall::test_resnet[18]")
    'tests.test_models.TestSmall.test_resnet-18'

    What has no place in a file name is replaced, and a hash keeps such names apart. Where two tests
    have one name (``v1.5/test_m.py`` and ``v1/5/test_m.py``), the later has :func:`other_name`.
    """
    place, separator, function = test.partition("::")
    for suffix in _SUFFIXES:
        place = place.removesuffix(suffix)
    plain = place.replace("/", ".") + (separator and ".") + function.replace("::", ".")
    plain = plain.replace("[", "-").removesuffix("]")
    name = "_".join(_PLAIN.findall(plain)) or "test"
    if name != plain or len(name) > _LONGEST or name.startswith("."):
        digest = hashlib.sha256(test.encode()).hexdigest()[:8]
        name = f"{name.lstrip('.')[:_LONGEST]}-{digest}"
    return name if number == 1 else f"{name}.{number}"


def other_name(test: str, number: int = 1) -> str:
    """What :func:`baseline_name` gives, told apart from all others by a hash."""
    name = f"{baseline_name(test)}-{hashlib.sha256(test.encode()).hexdigest()[:8]}"
    return name if number == 1 else f"{name}.{number}"


def may_be_named(name: str, test: str) -> bool:
    """Whether a prediction of the test would have this name, too, in upper or lower case."""
    own = baseline_name(test).casefold()
    return re.fullmatch(rf"{re.escape(own)}(\.\d+)?", name.casefold()) is not None


def without_platform(nodeid: str, platform: str) -> str:
    """The node id of a test that is parametrised with several platforms, without this one."""
    for written, plain in ((f"[{platform}]", ""), (f"-{platform}]", "]"), (f"[{platform}-", "[")):
        if written in nodeid:
            return nodeid.replace(written, plain)
    return nodeid


@dataclass(frozen=True, slots=True)
class BaselineStore:
    """Where baselines are; ``root`` is what paths are shown relative to."""

    folder: Path
    root: Path

    def path(self, platform: str, name: str) -> Path:
        return self.folder / platform / f"{name}.yaml"

    def shown(self, path: Path) -> str:
        """The path for messages: relative to the root where it is below."""
        return str(path).removeprefix(f"{self.root}{os.sep}")

    def in_use(self, platform: str) -> bool:
        """Whether any model has a baseline on the platform: then every guarded one has."""
        return next((self.folder / platform).glob("*.yaml"), None) is not None

    def names(self, platform: str) -> tuple[str, ...]:
        """Of all baselines of a platform, sorted."""
        return tuple(sorted(path.stem for path in (self.folder / platform).glob("*.yaml")))

    def read(self, platform: str, name: str, expected: Prediction) -> Baseline:
        """A baseline; it is read sooner where it accepts ``expected``.

        Raises
        ------
        BaselineError
            It is missing, broken, or of another platform.
        """
        path = self.path(platform, name)
        found = read_baseline(path, expected)
        if found.platform != platform:
            raise BaselineError(
                f"baseline {self.shown(path)} is of platform {found.platform!r}, not {platform!r}: "
                f"move it to the folder {found.platform}, or write this one again with "
                "--np-update-baseline"
            )
        return found

    def check_writable(self) -> None:
        """Try to write where the folder is or will be.

        Raises
        ------
        BaselineError
            It cannot be written.
        """
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            if not place.is_dir():
                raise NotADirectoryError(f"{self.shown(place)} is a file")
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise BaselineError(
                f"baselines cannot be written to {self.shown(self.folder)} ({reason}): make the "
                "folder writable, or choose another with --np-baselines=DIR"
            ) from None
