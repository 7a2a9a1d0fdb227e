"""What a device says of its own state: cores, clocks, temperatures, room, and what it has used of energy.

It is read from Linux' `/proc` and `/sys`, as far as they tell. Runs under Python 3.8 without any package.
"""

from __future__ import annotations

import glob
import os
import shutil
from typing import Any, Dict, List, Optional

MICRO = 1e-6


def health(folder: str = ".") -> Dict[str, Any]:
    """What is known, each by its name; what is not told is left out.

    Args:
        folder: the free room of this one's file system.
    """
    found: Dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "free_bytes": shutil.disk_usage(folder).free,
        "governors": sorted(set(_lines("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))),
        "megahertz": [
            float(one) / 1000 for one in _lines("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
        ],
        "most_megahertz": [
            float(one) / 1000 for one in _lines("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq")
        ],
        "celsius": temperature(),
        "counters": sorted(joules()),
    }
    found.update(_memory())
    return {key: value for key, value in found.items() if value not in (None, [], {})}


def temperature() -> Optional[float]:
    """Of the warmest place that has a sensor, in degrees."""
    told = _lines("/sys/class/thermal/thermal_zone*/temp") + _lines("/sys/class/hwmon/hwmon*/temp*_input")
    return max((float(one) / 1000 for one in told), default=None)


def joules() -> Dict[str, float]:
    """What each counter of energy has counted, by its name; only differences mean something."""
    found: Dict[str, float] = {}
    for zone in sorted(glob.glob("/sys/class/powercap/*:[0-9]")):
        if os.path.basename(zone).count(":") == 1:  # a package; its parts are counted in it
            _count(found, "rapl " + (_line(zone + "/name") or zone), zone + "/energy_uj")
    for counter in sorted(glob.glob("/sys/class/hwmon/hwmon*/energy*_input")):
        chip, label = _line(os.path.dirname(counter) + "/name"), _line(counter.replace("_input", "_label"))
        _count(found, "hwmon %s %s" % (chip or "", label or os.path.basename(counter)), counter)
    return found


def watts() -> Dict[str, float]:
    """What sensors say of the power now, by their names: INA rails and other chips, and a battery that is drained."""
    found: Dict[str, float] = {}
    for sensor in sorted(glob.glob("/sys/class/hwmon/hwmon*/power*_input")):
        chip, label = _line(os.path.dirname(sensor) + "/name"), _line(sensor.replace("_input", "_label"))
        _count(found, "hwmon %s %s" % (chip or "", label or os.path.basename(sensor)), sensor)
    for battery in sorted(glob.glob("/sys/class/power_supply/*")):
        if _line(battery + "/status") == "Discharging":
            name, volts, amperes = (
                os.path.basename(battery),
                _line(battery + "/voltage_now"),
                _line(battery + "/current_now"),
            )
            if _line(battery + "/power_now"):
                _count(found, "battery " + name, battery + "/power_now")
            elif volts and amperes:
                found["battery " + name] = abs(float(volts) * MICRO * float(amperes) * MICRO)
    return found


def _count(found: Dict[str, float], name: str, path: str) -> None:
    value = _line(path)
    if value is not None:
        found[name] = float(value) * MICRO


def _memory() -> Dict[str, int]:
    names = {"MemTotal": "memory_bytes", "MemAvailable": "available_bytes"}
    try:
        with open("/proc/meminfo", encoding="ascii", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return {}
    return {name: int(fields[key].split()[0]) * 1024 for key, name in names.items() if key in fields}


def _lines(pattern: str) -> List[str]:
    return [value for path in sorted(glob.glob(pattern)) for value in [_line(path)] if value]


def _line(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:  # not there, or only for root
        return None
