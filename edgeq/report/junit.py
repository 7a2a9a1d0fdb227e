"""`junit.xml`: the gates as test cases, which continuous integration knows how to show."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from edgeq.files import atomic_write
from edgeq.records.schema import Report
from edgeq.visible import visible

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: Report) -> str:
    """One suite for each build; a gate is a case, and so is the validation itself."""
    root = ET.Element("testsuites", name="edgeq")
    for build in report.builds:
        name = _clean(f"{report.model} {build.format} {build.runtime}")
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
