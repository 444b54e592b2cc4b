"""A platform file survives a round trip to the bit, and a bad one is refused with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

import pytest_neuralpower
from pytest_neuralpower import list_platforms, load_platform
from pytest_neuralpower.errors import PlatformError
from pytest_neuralpower.platform.file import content_hash

if TYPE_CHECKING:
    from pytest_neuralpower.platform.price import FittedPlatform

SHIPPED = Path(pytest_neuralpower.__file__).parent / "platforms"


@pytest.fixture
def saved(platform: FittedPlatform, tmp_path: Path) -> Path:
    path = tmp_path / "toy.json"
    platform.save(path)
    return path


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(PlatformError) as found:
        load_platform(path)
    text = str(found.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def edit(path: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> Path:
    """Change a saved file, by default with a hash that matches again."""
    data = json.loads(path.read_text())
    change(data)
    if sign:
        data.pop("sha256")
        data["sha256"] = content_hash(data)
    path.write_text(json.dumps(data))
    return path


class TestRoundTrip:
    def test_keeps_every_bit(self, platform: FittedPlatform, saved: Path) -> None:
        loaded = load_platform(saved)
        assert loaded.to_json() == platform.to_json()
        assert loaded.sha256 == load_platform(str(saved)).sha256 != platform.sha256

    def test_of_a_shipped_platform_gives_the_same_bytes(self, tmp_path: Path) -> None:
        fitted = [name for name in list_platforms() if not name.startswith("eyeriss")]
        assert fitted
        for name in fitted:
            load_platform(name).save(tmp_path / "again.json")
            assert (tmp_path / "again.json").read_bytes() == (SHIPPED / f"{name}.json").read_bytes()

    def test_the_hash_covers_every_field(self, platform: FittedPlatform, tmp_path: Path) -> None:
        changed = {
            "device": "Other",
            "provenance": {"notes": ["other"]},
            "accuracy": {"runtime": {}},
            "power": None,
            "families": {},
            "intervals": None,
        }
        hashes = {platform.save(tmp_path / "a.json").sha256}
        for name, value in changed.items():
            hashes.add(replace(platform, **{name: value}).save(tmp_path / "b.json").sha256)
        assert len(hashes) == 1 + len(changed)

    def test_a_number_that_is_none_is_not_saved(
        self, platform: FittedPlatform, tmp_path: Path
    ) -> None:
        broken = replace(platform, hardware={"peak_gflops": float("nan")})
        with pytest.raises(PlatformError, match="not a finite number"):
            broken.save(tmp_path / "nan.json")

    def test_a_failed_save_leaves_the_old_file_and_no_other(
        self, platform: FittedPlatform, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = saved.read_bytes()

        def full(*_: object, **__: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr("os.rename", full)  # where files need no name until they are whole
        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(PlatformError, match="No space left"):
            platform.save(saved)
        assert saved.read_bytes() == before
        assert [path.name for path in saved.parent.iterdir()] == ["toy.json"]


class TestRefusals:
    def test_a_truncated_file(self, saved: Path) -> None:
        saved.write_text(saved.read_text()[:-40])
        assert "not JSON, or truncated (line " in refusal(saved)

    def test_no_json_at_all(self, saved: Path) -> None:
        saved.write_text("name: titanx")
        assert "not JSON" in refusal(saved)

    @pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
    def test_a_number_that_is_not_finite(self, saved: Path, number: str) -> None:
        saved.write_text(saved.read_text().replace("1000.0", number, 1))
        assert "is not a finite number" in refusal(saved)

    def test_a_binary_file(self, saved: Path) -> None:
        saved.write_bytes(b"\x80\x04\x95\xff")
        assert "cannot be read" in refusal(saved)

    @pytest.mark.parametrize("text", ["[]", "{}", '{"format": "other"}', "3"])
    def test_json_that_is_no_platform(self, saved: Path, text: str) -> None:
        saved.write_text(text)
        assert "not a platform" in refusal(saved)

    def test_a_future_version(self, saved: Path) -> None:
        text = refusal(edit(saved, lambda data: data.update(version=4)))
        assert "version 4, this release reads up to 3; upgrade pytest-neuralpower" in text

    def test_an_earlier_version_names_the_commands_that_renew_it(self, saved: Path) -> None:
        text = refusal(edit(saved, lambda data: data.update(version=2), sign=False))
        assert "version 2 is of an earlier release, this one reads 3; renew it: " in text
        assert "`neuralpower fit FOLDER --out toy.json`" in text
        assert "`neuralpower calibrate`" in text

    @pytest.mark.parametrize("version", [None, 0, "1", True, 1.0])
    def test_a_version_that_is_none(self, saved: Path, version: object) -> None:
        assert "not a positive whole number" in refusal(
            edit(saved, lambda data: data.update(version=version))
        )

    def test_a_hand_edited_file(self, saved: Path) -> None:
        text = refusal(
            edit(saved, lambda data: data["hardware"].update(peak_gflops=1.0), sign=False)
        )
        assert "does not match its sha256" in text
        assert "refit" in text

    def test_a_file_without_a_hash(self, saved: Path) -> None:
        text = refusal(edit(saved, lambda data: data.pop("sha256"), sign=False))
        assert "does not match its sha256" in text

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda d: d.pop("device"), "field 'device' is missing"),
            (lambda d: d.update(device=3), "device must be a string, not 3"),
            (lambda d: d.update(families=[]), "families must be an object, not []"),
            (lambda d: d.update(power=3), "power must be an object or null, not 3"),
            (lambda d: d.update(extra=1), "unknown field 'extra'"),
            (lambda d: d.update(name="../x"), "name '../x' must be a file's name"),
            (lambda d: d["tiers"].update(power=[]), "tiers.power must be a string, not []"),
            (lambda d: d.update(provenance={"sources": 5}), "sources must be a list of objects"),
            (
                lambda d: d["inferred"]["norm"]["prior"].update(between=-1),
                "inferred.norm.prior.between must be a number >= 0, not -1",
            ),
            (
                lambda d: d["inferred"]["norm"]["prior"].pop("factor"),
                "field 'inferred.norm.prior.factor' is missing",
            ),
            (lambda d: d.pop("inferred"), "field 'inferred' is missing"),
            (lambda d: d["inferred"].update(pool=3), "inferred.pool must be an object, not 3"),
            (
                lambda d: d["inferred"]["pool"].update(estimator="physical"),
                "inferred.pool.estimator is 'physical'; allowed: bounded",
            ),
            (lambda d: d["inferred"].pop("rnn"), "neither families nor inferred have 'rnn'"),
            (
                lambda d: d["inferred"].update(rnn=d["inferred"]["pool"]),
                "inferred 'rnn': its runtime is that of 'pool'",
            ),
            (
                lambda d: d["inferred"]["pool"].update(family="pools"),
                "inferred.pool: family 'pools' is not one of conv, linear, ",
            ),
            (
                lambda d: d["inferred"]["pool"].pop("prior"),
                "field 'inferred.pool.prior' is missing",
            ),
            (
                lambda d: d["inferred"]["pool"]["ceilings"].update(peak_gflops=0),
                "inferred.pool.ceilings.peak_gflops must be a number >= 1e-30, not 0",
            ),
            (
                lambda d: d["inferred"]["pool"]["ceilings"].update(launch_ms=-1),
                "inferred.pool.ceilings.launch_ms must be a number >= 0, not -1",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"].update(within=11),
                "inferred.pool.prior.within must be a number <= 10, not 11",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"]["factor"].update(inputs=["colour"]),
                "inferred.pool.prior.factor: unknown input 'colour'; there are waves, ",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"]["factor"].update(coefficients={"m*n": 1}),
                "inferred.pool.prior.factor: unknown input 'm'; there are waves, ",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"]["factor"].update(
                    inputs=["width"], coefficients={"width": 1.0}
                ),
                "inferred.pool.prior.factor: a term of 'width', which has no range",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"]["factor"].update(of="flops"),
                "inferred.pool.prior.factor.of is 'flops'; allowed: ",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"]["factor"].update(bounds=[1.0, 0.5]),
                "inferred.pool.prior.factor: bounds end below their start",
            ),
            (
                lambda d: d["inferred"]["pool"]["prior"]["factor"].update(of="prior_ms"),
                "inferred.pool.prior: its factor is of prior_ms, not of roofline_ms",
            ),
            (
                lambda d: d["inferred"]["pool"].update(bounds=[0.1, -0.1]),
                "inferred.pool: bounds end below their start",
            ),
            (
                lambda d: d["inferred"]["pool"].update(center=11.0),
                "inferred.pool.center must be a number <= 10, not 11.0",
            ),
            (
                lambda d: d["inferred"]["pool"].update(ranges={"nosuch": [1, 2]}),
                "inferred 'pool': no size 'nosuch'",
            ),
            (
                lambda d: d["inferred"]["pool"].update(ranges={"batch": [2, 1]}),
                "inferred.pool: range 'batch' ends below its start",
            ),
            (
                lambda d: d["families"]["conv"].update(runtime=d["inferred"]["linear"]),
                "family 'conv': its runtime is that of 'linear'",
            ),
            (
                lambda d: d["hardware"].update(peak_gflops=-1),
                "hardware.peak_gflops must be a number >= 0, not -1",
            ),
            (
                lambda d: d["families"]["conv"]["ranges"].update(k=[9, 1]),
                "families.conv: range 'k' ends below its start",
            ),
            (
                lambda d: d["families"]["conv"].update(overheads={"launch": -1.0}),
                "families.conv.overheads.launch must be a number >= 0, not -1.0",
            ),
            (lambda d: d["families"].update(conv=3), "families.conv must be an object, not 3"),
            (
                lambda d: d["families"]["conv"]["ranges"].update(k=[1]),
                "families.conv.ranges.k must be a list of length 2, not [1]",
            ),
            (
                lambda d: d["families"]["conv"]["ranges"].update({"k-n": [1, 2]}),
                "range 'k-n' is of no size",
            ),
            (
                lambda d: d["families"]["conv"]["ranges"].update(launch=[1, 2]),
                "family 'conv': no size 'launch'",
            ),
            (lambda d: d.update(intervals=[]), "intervals must be an object or null, not []"),
            (lambda d: d.update(intervals={}), "field 'intervals.coverage' is missing"),
            (
                lambda d: d["intervals"].update(coverage=1.0),
                "intervals.coverage must be a number < 1, not 1.0",
            ),
            (lambda d: d["intervals"].pop("runtime"), "field 'intervals.runtime' is missing"),
            (lambda d: d["intervals"].update(memory={}), "unknown field 'intervals.memory'"),
            (
                lambda d: d["intervals"]["runtime"].update(model_error=-1),
                "intervals.runtime.model_error must be a number >= 0, not -1",
            ),
            (
                lambda d: d["intervals"]["runtime"]["families"]["conv"].update(inside="wide"),
                "intervals.runtime.families.conv.inside must be a number, not 'wide'",
            ),
            (
                lambda d: d["intervals"]["runtime"]["families"]["conv"].update(outside=0.01),
                "intervals.runtime.families.conv: outside 0.01 is less than inside 0.1",
            ),
            (
                lambda d: d["intervals"]["power"]["other"].update(correlation=2),
                "intervals.power.other.correlation must be a number <= 1, not 2",
            ),
            (
                lambda d: d["families"]["conv"].update(speed={}),
                "unknown field 'families.conv.speed'",
            ),
            (lambda d: d["families"]["conv"].update(overheads={"x": 1.0}), "overhead 'x'"),
            (
                lambda d: d["families"]["conv"].update(runtime={}),
                "field 'families.conv.runtime.estimator' is missing",
            ),
            (
                lambda d: d["families"]["conv"]["runtime"].update(estimator="oracle"),
                "families.conv.runtime.estimator is 'oracle'; allowed: boosted, bounded, ",
            ),
            (
                lambda d: d["families"]["conv"]["runtime"]["regimes"][0]["rates"].update(fl=1.0),
                "rate of 'fl', which is no term of regime 'all'",
            ),
            (
                lambda d: d["families"]["conv"]["runtime"]["regimes"][0]["rates"].update(flops=-1),
                "families.conv.runtime.regimes[0].rates.flops must be a number >= 0, not -1",
            ),
            (
                lambda d: d["families"]["conv"]["runtime"]["regimes"].insert(
                    0, {"name": "odd", "terms": ["launch"], "when": [["nosuch", "<=", 5]]}
                ),
                "family 'conv': no size 'nosuch'",
            ),
            (
                lambda d: d["families"]["conv"]["runtime"].pop("regimes"),
                "field 'families.conv.runtime.regimes' is missing",
            ),
            (
                lambda d: d["families"]["conv"].update(power_range_w=[1, 2]),
                "families.conv: power_range_w needs energy or power",
            ),
            (
                lambda d: d["families"]["conv"].update(energy=d["families"]["conv"]["runtime"]),
                "families.conv: energy needs power_range_w",
            ),
            (lambda d: d.update(dtype="float23"), "dtype 'float23' is not one of float64, "),
            (lambda d: d["hardware"].pop("peak_gflops"), "hardware.peak_gflops must be above 0"),
            (lambda d: d["hardware"].update(bandwidth_gbs=0), "hardware.bandwidth_gbs must be ab"),
            (lambda d: d["hardware"].update(process_nm=0), "hardware.process_nm must be above 0"),
            (lambda d: d["power"]["load"].pop("base"), "power: load needs base, compute, bandw"),
            (lambda d: d["power"].update(load={}), "power: load is empty; refit it"),
            (lambda d: d["power"].pop("load"), "power: load is empty; refit it"),
            (
                lambda d: d["families"]["conv"].update(power={**d["power"], "load": {}}),
                "family 'conv': load needs base, compute, bandwidth, and is empty; refit it",
            ),
        ],
    )
    def test_a_field_of_a_wrong_type(
        self, saved: Path, change: Callable[[dict[str, Any]], object], says: str
    ) -> None:
        assert says in refusal(edit(saved, change))

    def test_a_bandwidth_that_makes_intervals_overflow(self, saved: Path) -> None:
        def crawl(data: dict[str, Any]) -> None:
            data["inferred"]["pool"]["ceilings"]["bandwidth_gbs"] = 1e-300

        assert "bandwidth_gbs must be a number >= 1e-30, not 1e-300" in refusal(edit(saved, crawl))

    def test_an_absent_file(self, tmp_path: Path) -> None:
        assert "there is no such file" in refusal(tmp_path / "none.json")

    def test_a_directory(self, tmp_path: Path) -> None:
        assert "it is a directory" in refusal(tmp_path)


class TestNames:
    def test_an_unknown_one_names_the_nearest_and_how_to_make_it(self) -> None:
        with pytest.raises(PlatformError) as found:
            load_platform("titan-x")
        assert str(found.value).startswith("unknown platform 'titan-x'; nearest: titanx, ")
        with pytest.raises(PlatformError, match=r"platforms new A100 --like a100`"):
            load_platform("A100")

    def test_several_at_once_are_given_one_at_a_time(self) -> None:
        with pytest.raises(PlatformError, match="'h200,titanx' is no platform: give one at a time"):
            load_platform("h200,titanx")

    def test_a_far_one_names_none(self) -> None:
        with pytest.raises(PlatformError) as found:
            load_platform("qwerty")
        assert "nearest" not in str(found.value)
        assert "`neuralpower platforms new qwerty`" in str(found.value)

    def test_the_shipped_ones_load_and_are_small(self) -> None:
        assert {"titanx", "titanx-tf"} <= set(list_platforms())
        for name in list_platforms():
            loaded = load_platform(name)
            assert loaded.name == name
            assert loaded.summary().sha256 == loaded.sha256
            assert (SHIPPED / f"{name}.json").stat().st_size < 750_000


class TestHostile:
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "\x1b[31mred", "a\0b"])
    def test_name_is_a_printable_name_of_a_file(self, saved: Path, name: str) -> None:
        edit(saved, lambda data: data.update(name=name))
        assert repr(name) in refusal(saved)

    @pytest.mark.parametrize(
        "accuracy",
        [
            {"runtime": None},
            {"runtime": {"conv": []}},
            {"runtime": {"conv": {"rows": 3}}},
            {"power": {"leave_one_network_out": 0}},
        ],
    )
    def test_accuracy_is_what_reports_read(self, saved: Path, accuracy: object) -> None:
        edit(saved, lambda data: data.update(accuracy=accuracy))
        assert "accuracy is not what `neuralpower fit` writes; refit it" in refusal(saved)

    def test_a_count_of_400_digits(self, tmp_path: Path) -> None:
        path = tmp_path / "changed.json"
        path.write_bytes((SHIPPED / "titanx.json").read_bytes())

        def change(data: dict[str, Any]) -> None:
            data["families"]["matmul"]["runtime"]["ceilings"]["units"] = 10**400

        edit(path, change)
        assert "families.matmul.runtime.ceilings.units" in refusal(path)

    def test_a_byte_order_mark_is_no_content(self, saved: Path) -> None:
        saved.write_bytes(b"\xef\xbb\xbf" + saved.read_bytes())
        assert load_platform(saved).name == "toy"


def test_isinstance_tells_platforms(platform: FittedPlatform) -> None:
    assert isinstance(platform, pytest_neuralpower.Platform)
    assert isinstance(load_platform("eyeriss"), pytest_neuralpower.Platform)
    assert not isinstance("titanx", pytest_neuralpower.Platform)


class TestNamesOfStrangers:
    """What a platform's file calls itself leads nowhere, and is shown to people."""

    def test_a_file_is_called_as_it_is_named(self, saved: Path) -> None:
        other = saved.with_name("other.json")
        saved.rename(other)
        assert load_platform(other).name == "other"

    @pytest.mark.parametrize(
        "name", ["-x.json", "a b?.json", "con\\x.json", "`ls`.json", "a|b.json"]
    )
    def test_a_file_with_no_plain_name_is_refused(self, saved: Path, name: str) -> None:
        other = saved.with_name(name)
        saved.rename(other)
        assert "rename the file" in refusal(other)

    @pytest.mark.parametrize(
        "name", ["../../x", "/abs", "a\\b", "-x", "a:b", "x.", "x" * 101, "<b>"]
    )
    def test_a_content_with_no_plain_name_is_refused(self, saved: Path, name: str) -> None:
        assert "name " in refusal(edit(saved, lambda data: data.update(name=name)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.update(mode="\x1b[2J"),
            lambda d: d.update(tiers={"runtime": "x\n::error::y"}),
            lambda d: d.update(provenance={"sources": [{"title": "\u202e"}]}),
            lambda d: d.update(accuracy={"\ud800".encode("utf-8", "replace").decode() + "\n": 1}),
        ],
    )
    def test_a_text_that_no_terminal_should_get_is_refused(self, saved: Path, change: Any) -> None:
        assert "a text is not printable" in refusal(edit(saved, change))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda d: d["families"]["conv"]["runtime"].update(multiprocessors=0), ">= 1, not 0"),
            (lambda d: d["hardware"].update(launch_ms=1e308), "a number <= 1e+30"),
        ],
    )
    def test_a_number_that_makes_others_infinite_is_refused(
        self, saved: Path, change: Any, says: str
    ) -> None:
        assert says in refusal(edit(saved, change))

    def test_runtime_cannot_ask_for_the_runtime(self, saved: Path) -> None:
        text = refusal(
            edit(saved, lambda d: d["families"]["conv"].update(runtime=dict(d["power"])))
        )
        assert "family 'conv': no size 'runtime_ms'" in text
