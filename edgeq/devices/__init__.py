"""Devices: where artefacts run and are measured."""

from edgeq.devices.artifact import Candidate, ColdStart, Files, Inputs, Interface, Port
from edgeq.devices.device import Device, workers_ahead
from edgeq.devices.links import DeviceStatus, device_status, open_device

__all__ = [
    "Candidate",
    "ColdStart",
    "Device",
    "DeviceStatus",
    "Files",
    "Inputs",
    "Interface",
    "Port",
    "device_status",
    "open_device",
    "workers_ahead",
]
