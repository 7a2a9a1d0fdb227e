"""Devices: where artefacts run and are measured."""

from edgeq.devices.artifact import Candidate, ColdStart, Files, Inputs, Interface, Port
from edgeq.devices.device import Device, workers_ahead
from edgeq.devices.doctor import Finding, examine
from edgeq.devices.links import DeviceStatus, add_device, device_status, open_device
from edgeq.devices.named import forget as forget_device

__all__ = [
    "Candidate",
    "ColdStart",
    "Device",
    "DeviceStatus",
    "Files",
    "Finding",
    "Inputs",
    "Interface",
    "Port",
    "add_device",
    "device_status",
    "examine",
    "forget_device",
    "open_device",
    "workers_ahead",
]
