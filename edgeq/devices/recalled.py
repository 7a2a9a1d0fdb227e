"""What the runtimes of this machine said of themselves to an earlier run: asking takes a process for each of them."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

import numpy as np

from edgeq.cache import Cache, Entry, cached, content_key
from edgeq.devices.device import Device
from edgeq.on_device.worker import describe_cpu, usable_cores
from edgeq.runtimes import runtime

VERSION = 2
"""To be raised whenever the worker's account of its environment changes."""

_HEEDED = ("ONEDNN_", "DNNL_", "ORT_", "OPENVINO_", "OV_", "XNNPACK_")
"""How the variables begin by which runtimes choose their kernels."""


def ask_once(device: Device, name: str, cache: Cache) -> None:
    """Lets a device know its environment, from an earlier run's if it is this machine and nothing of that has changed.

    Raises:
        DeviceError: the runtime is not installed on the device, or is broken.
    """
    if device.emulated or not device.shares_host:
        device.environment(name)
        return
    key = content_key(
        "environment",
        VERSION,
        runtime=name,
        # digests of all files of the package; empty where it is not installed, which the device itself will tell
        package=_record(runtime(name).distribution),
        numpy=np.__version__,
        python=[sys.version, sys.executable],
        system=platform.release(),
        cpu=describe_cpu(),
        cores=usable_cores(),
        variables={key: value for key, value in os.environ.items() if key.startswith(_HEEDED)},
        facts=dict(device.facts),
    )
    device.know(name, cached(cache, "environment", key, lambda: device.environment(name), Entry, lambda e: e.values))


def _record(distribution: str) -> str:
    try:
        return metadata.distribution(distribution).read_text("RECORD") or ""
    except metadata.PackageNotFoundError:
        return ""
