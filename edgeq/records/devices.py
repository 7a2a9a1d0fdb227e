"""What became of an artefact on several devices."""

from __future__ import annotations

from edgeq.errors import DeviceError, GateError
from edgeq.records.schema import Report
from edgeq.records.strict import Strict


class Unreached(Strict):
    """A device that could not be used, and what would help."""

    cause: str
    remedy: str


class DevicesReport(Strict):
    """What became of an artefact on each device, by its name, in the order in which they were named."""

    artifact: str
    reports: dict[str, Report]
    unreached: dict[str, Unreached]

    @property
    def exit_code(self) -> int:
        """3 where a limit was missed on a device, else 5 where one could not be used, else 0."""
        if any(report.verdict == "failed" for report in self.reports.values()):
            return GateError.exit_code
        return DeviceError.exit_code if self.unreached else 0
