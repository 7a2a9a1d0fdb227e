"""`junit.xml`: the gates as test cases, which continuous integration knows how to show."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from edgeq.files import atomic_write
from edgeq.records.devices import DevicesReport
from edgeq.records.schema import Report
from edgeq.visible import visible

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: Report) -> str:
    """One suite for each build; a gate is a case, and so is the validation itself."""
    root = ET.Element("testsuites", name="edgeq")
    _add(root, report, report.model)
    return _text(root)


def junit_of_devices(report: DevicesReport) -> str:
    """One suite for each device; one that could not be used is an error."""
    root = ET.Element("testsuites", name="edgeq")
    for device, one in report.reports.items():
        _add(root, one, f"{device} {one.model}")
    for device, why in report.unreached.items():
        name = _clean(device)
        suite = ET.SubElement(root, "testsuite", name=name, tests="1", failures="0", errors="1", skipped="0")
        case = ET.SubElement(suite, "testcase", classname=name, name="validated")
        ET.SubElement(case, "error", message=_clean(f"{why.cause}; {why.remedy}"))
    return _text(root)


def _add(root: ET.Element, report: Report, title: str) -> None:
    for build in report.builds:
        name = _clean(f"{title} {build.format} {build.runtime}")
        suite = ET.SubElement(root, "testsuite", name=name)
        case = ET.SubElement(suite, "testcase", classname=name, name="validated")
        if build.error is not None:
            ET.SubElement(case, "error", message=_clean(build.error))
        elif not build.validated:
            ET.SubElement(case, "skipped", message=_clean(build.not_validated_because or ""))
        for gate in build.gates:
            case = ET.SubElement(suite, "testcase", classname=name, name=_clean(f"{gate.name}: {gate.limit}"))
            if not gate.passed:
                ET.SubElement(case, "failure", message=_clean(f"{gate.measured}. {gate.reason}"))
        suite.set("tests", str(len(build.gates) + 1))
        suite.set("failures", str(sum(not g.passed for g in build.gates)))
        suite.set("errors", str(int(build.error is not None)))
        suite.set("skipped", str(int(build.error is None and not build.validated)))


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def write_junit(report: Report, path: Path) -> None:
    """Write the file.

    Raises:
        UsageError: the folder is not writable, or the disk is full.
    """
    atomic_write(path, junit_xml(report))


def _clean(text: str) -> str:
    """Without what XML cannot hold, and with what would hide in it as escapes."""
    return visible(_NOT_XML.sub("?", text))
