"""What a device says of its state, read from files as Linux writes them."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import pytest

from edgeq.on_device import health as on_device

FILES = {
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
    "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
    "/sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "2400000",
    "/sys/class/thermal/thermal_zone0/temp": "48312",
    "/sys/class/hwmon/hwmon0/name": "ina3221",
    "/sys/class/hwmon/hwmon0/temp1_input": "61000",
    "/sys/class/hwmon/hwmon0/power1_input": "4250000",
    "/sys/class/hwmon/hwmon0/power1_label": "VDD_IN",
    "/sys/class/hwmon/hwmon0/energy1_input": "7000000",
    "/sys/class/powercap/intel-rapl:0/name": "package-0",
    "/sys/class/powercap/intel-rapl:0/energy_uj": "2500000",
    "/sys/class/powercap/intel-rapl:0:0/name": "core",
    "/sys/class/powercap/intel-rapl:0:0/energy_uj": "1500000",
    "/sys/class/power_supply/BAT0/status": "Discharging",
    "/sys/class/power_supply/BAT0/voltage_now": "3800000",
    "/sys/class/power_supply/BAT0/current_now": "-500000",
    "/proc/meminfo": "MemTotal: 1000 kB",
}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board whose files lie in a folder."""
    for name, content in FILES.items():
        path = tmp_path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    real = glob.glob

    def there(pattern: str) -> list[str]:
        return [path.removeprefix(str(tmp_path)) for path in real(str(tmp_path) + pattern)]

    def opened(path: str, *args: Any, **kwargs: Any) -> Any:
        return open(f"{tmp_path}{path}", *args, **kwargs)

    monkeypatch.setattr(on_device.glob, "glob", there)
    monkeypatch.setattr(on_device, "open", opened, raising=False)
    return tmp_path


def test_what_a_board_tells(board: Path) -> None:
    found = on_device.health(str(board))
    assert found["governors"] == ["powersave"] and found["megahertz"] == [1500] and found["most_megahertz"] == [2400]
    assert found["celsius"] == 61 and found["memory_bytes"] == 1024000 and found["free_bytes"] > 0
    assert found["counters"] == ["hwmon ina3221 energy1_input", "rapl package-0"]
    assert on_device.joules() == {"rapl package-0": 2.5, "hwmon ina3221 energy1_input": 7.0}
    assert on_device.watts() == {"hwmon ina3221 VDD_IN": 4.25, "battery BAT0": pytest.approx(1.9)}


def test_a_board_that_tells_nothing(board: Path) -> None:
    for name in FILES:
        (board / name.lstrip("/")).unlink()
    assert set(on_device.health(str(board))) == {"cores", "free_bytes"}
    assert on_device.joules() == {} and on_device.watts() == {}
