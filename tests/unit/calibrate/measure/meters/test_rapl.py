"""RAPL's meter over a tree of powercap files that a thread advances."""

import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_neuralpower.calibrate.measure.meters.probe import Probe
from pytest_neuralpower.calibrate.measure.meters.rapl import open_rapl
from pytest_neuralpower.errors import DeviceLost, MeterRefused

SHORT = Probe(load_s=0.1, settle_s=0.0, still_s=0.3)
RANGE_UJ = 262_143_328_850


def step() -> None:
    time.sleep(0.004)


class Powercap:
    """``/sys/class/powercap`` of a made-up processor; watts by zone."""

    def __init__(self, sysfs: Path) -> None:
        self.sysfs = sysfs
        self.folder = sysfs / "class" / "powercap"
        self._zones: list[tuple[Path, float, int, int]] = []
        self._began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._advance, daemon=True)

    def zone(
        self, place: str, name: str, watts: float, *, start_uj: int = 0, range_uj: int = RANGE_UJ
    ) -> None:
        zone = self.folder / place
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (zone / "energy_uj").write_text(f"{start_uj}\n")
        self._zones.append((zone / "energy_uj", watts, start_uj, range_uj))

    def mirror(self, place: str, name: str, of: str) -> None:
        """A zone that shows another one's counter."""
        zone = self.folder / place
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        for file in ("max_energy_range_uj", "energy_uj"):
            (zone / file).symlink_to(self.folder / of / file)

    def run(self) -> None:
        self._began = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _advance(self) -> None:
        while not self._stop.wait(0.001):
            used_s = time.perf_counter() - self._began
            for path, watts, start_uj, range_uj in self._zones:
                part = path.with_suffix(".part")
                part.write_text(f"{int(start_uj + watts * used_s * 1e6) % range_uj}\n")
                if path.parent.exists():
                    part.replace(path)


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[Powercap]:
    tree = Powercap(tmp_path)
    yield tree
    tree.stop()


def test_sums_packages_and_memory_and_counts_nothing_twice(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0", 40.0)
    powercap.zone("intel-rapl:0:0", "core", 30.0)  # within the package
    powercap.zone("intel-rapl:0:1", "dram", 5.0)
    powercap.zone("intel-rapl:1", "package-1", 20.0)
    powercap.zone("intel-rapl:2", "psys", 90.0)  # the whole machine
    powercap.zone("intel-rapl-mmio:0", "package-0", 40.0)  # package 0 by another way
    powercap.run()
    meter = open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)
    calls: list[float] = []

    def counted() -> None:
        calls.append(time.perf_counter())
        step()

    reading = meter.measure(counted, seconds=1.5, settle_s=0.05)
    assert reading.power_w == pytest.approx(65.0, rel=0.05)
    # The load's own calls within the window, however busy the machine is; settling is left out.
    lasted = calls[-1] - calls[0]
    assert 1.2 < reading.seconds < lasted
    assert reading.steps == pytest.approx(len(calls) * reading.seconds / lasted, rel=0.3)
    assert meter.method == "RAPL counters of package-0, dram, package-1"
    assert meter.idle_w(1.0) == pytest.approx(65.0, rel=0.15)


def measured(powercap: Powercap, *zones: tuple[str, float, int]) -> tuple[float | None, str, str]:
    """Watts by zones (name, watts, where the counter stands), and what the meter says of itself."""
    for number, (name, watts, start_uj) in enumerate(zones):
        powercap.zone(f"intel-rapl:{number}", name, watts, start_uj=start_uj)
    powercap.run()
    probe = Probe(load_s=0.5, settle_s=0.0, still_s=0.5)
    meter = open_rapl(load=step, probe=probe, sysfs=powercap.sysfs)
    reading = meter.measure(step, seconds=1.0, settle_s=0.0)
    return reading.power_w, meter.method, " ".join(meter.notes)


def test_dies_that_show_one_counter_count_once(powercap: Powercap) -> None:
    for number in range(1, 4):
        powercap.mirror(f"intel-rapl:{number}", f"package-0-die-{number}", "intel-rapl:0")
    watts, method, notes = measured(powercap, ("package-0-die-0", 68.0, 10**9))
    assert watts == pytest.approx(68.0, rel=0.05)
    assert method == "RAPL counters of package-0-die-0"
    assert "package-0-die-3 shows the counter of another die: counted once" in notes


@pytest.mark.parametrize(
    "dies",
    [
        [("package-0-die-0", 40.0, 0), ("package-0-die-1", 28.0, 0)],
        [("package-0-die-0", 34.0, 0), ("package-0-die-1", 34.0, 10**9)],
        [("package-0-die-0", 34.0, 0), ("package-1-die-0", 34.0, 0)],
    ],
    ids=["other powers", "other counts", "other packages"],
)
def test_dies_with_counters_of_their_own_are_summed(powercap: Powercap, dies: list) -> None:
    watts, _, notes = measured(powercap, *dies)
    assert watts == pytest.approx(68.0, rel=0.05)
    assert not notes


def test_another_load_within_a_window_is_noted(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0", 40.0)
    powercap.zone("intel-rapl:0:0", "dram", 0.0)
    powercap.run()
    meter = open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)
    began = time.perf_counter()

    def beside() -> None:
        step()
        used_s = time.perf_counter() - began
        path, watts, start_uj, range_uj = powercap._zones[1]
        if used_s > 0.6 and not watts:  # from now on 60 W more
            since_s = time.perf_counter() - powercap._began
            powercap._zones[1] = path, 60.0, start_uj - int(60e6 * since_s), range_uj

    assert not meter.notes
    meter.measure(beside, seconds=1.2, settle_s=0.0)
    assert "under one load: something else runs on the device" in meter.notes[0]


def test_a_wrap_is_counted_on(powercap: Powercap) -> None:
    # At 50 W a range of 5 J wraps every 100 ms.
    powercap.zone("intel-rapl:0", "package-0", 50.0, start_uj=4_000_000, range_uj=5_000_000)
    powercap.run()
    meter = open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)
    reading = meter.measure(step, seconds=0.3, settle_s=0.0)
    assert reading.power_w == pytest.approx(50.0, rel=0.05)


def test_counters_that_stay_zero_are_refused(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0", 0.0)
    with pytest.raises(MeterRefused, match=r"did not move for 0\.\d s; RAPL counts nothing inside"):
        open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)


def test_a_machine_without_counters_is_refused(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "psys", 90.0)
    with pytest.raises(MeterRefused, match=r"no package counter under .*; use --meter none"):
        open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)


def test_a_counter_that_is_no_number_is_refused(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0", 1.0)
    (powercap.folder / "intel-rapl:0" / "energy_uj").write_text("?")
    with pytest.raises(MeterRefused, match=r"cannot be read \(invalid literal"):
        open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)


def test_counters_that_vanish_are_a_lost_device(powercap: Powercap) -> None:
    powercap.zone("intel-rapl:0", "package-0", 40.0)
    powercap.run()
    meter = open_rapl(load=step, probe=SHORT, sysfs=powercap.sysfs)
    begun = time.perf_counter()

    def step_then_vanish() -> None:
        step()
        if time.perf_counter() - begun > 0.1:
            powercap.stop()
            shutil.rmtree(powercap.folder, ignore_errors=True)

    with pytest.raises(DeviceLost, match="rapl: a counter can no longer be read"):
        meter.measure(step_then_vanish, seconds=5.0, settle_s=0.0)


def _open_as_nobody(sysfs: str) -> str:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        open_rapl(load=step, probe=SHORT, sysfs=Path(sysfs))
    except MeterRefused as refusal:
        return str(refusal)
    return "not refused"


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs the permissions of a Unix system")
def test_counters_of_root_alone_say_how_to_open_them() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        tree = Powercap(Path(folder))
        tree.zone("intel-rapl:0", "package-0", 40.0)
        counter = tree.folder / "intel-rapl:0" / "energy_uj"
        counter.chmod(0o000)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            message = pool.apply(_open_as_nobody, (folder,))
    assert message == (
        f"rapl: only root may read {counter}; run once: sudo chmod a+r "
        f"{tree.folder}/intel-rapl:*/energy_uj"
    )
