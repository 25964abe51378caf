"""A gate as JUnit XML: one test case a criterion, as CI servers read it.

There is no standard; this is what Jenkins, GitLab and GitHub's readers agree on. Broken is a failure. Inconclusive is
an error, a failure where it is to be taken as one, or skipped where it is to pass.
"""

import xml.etree.ElementTree as ET

from edgepress.compressor.printable import printable
from edgepress.compressor.report.gate import Criterion, Gate
from edgepress.compressor.report.gate_words import headline, message


def junit(gate: Gate) -> str:
    """The document; names of files, outputs and metrics are text, whatever they hold."""
    tags = [_tag(gate, criterion) for criterion in gate.criteria]
    counts: dict[str, str] = {
        f"{tag}s" if tag != "skipped" else tag: str(tags.count(tag))
        for tag in ("failure", "error", "skipped")
    }
    suite = ET.Element("testsuite", {"name": "edgepress gate", "tests": str(len(gate.criteria)), **counts})
    properties = ET.SubElement(suite, "properties")
    for name in ("baseline", "candidate"):
        file = getattr(gate, name)
        ET.SubElement(properties, "property", name=name, value=printable(f"{file.name} sha256:{file.sha256}"))
    ET.SubElement(properties, "property", name="reproduce", value=printable(gate.reproduce))
    for criterion, tag in zip(gate.criteria, tags, strict=True):
        case = ET.SubElement(
            suite, "testcase", classname="edgepress.gate", name=printable(criterion.name), time="0"
        )
        if tag:
            ET.SubElement(case, tag, message=message(criterion), type=criterion.verdict)
        else:
            ET.SubElement(case, "system-out").text = message(criterion)
    ET.SubElement(suite, "system-out").text = headline(gate)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _tag(gate: Gate, criterion: Criterion) -> str:
    if criterion.verdict == "inconclusive":
        return {"pass": "skipped", "fail": "failure"}.get(gate.inconclusive, "error")
    return "failure" if criterion.verdict == "broken" else ""
