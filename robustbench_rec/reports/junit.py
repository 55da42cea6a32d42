"""Checks as JUnit XML, which systems of continuous integration read."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET


@dataclass(frozen=True)
class Check:
    """Something wanted and what was found. group: of what kind; detail: what else there is to know."""

    group: str
    name: str
    wanted: str
    found: str
    passed: bool
    detail: str = ""


def junit(name: str, checks: Sequence[Check], seconds: float) -> str:
    """A test suite with a case for each check; one that did not pass is a failure."""
    failures = str(sum(not each.passed for each in checks))
    counts = {"name": name, "tests": str(len(checks)), "failures": failures, "errors": "0", "time": f"{seconds:.3f}"}
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {**counts, "skipped": "0"})
    for each in checks:
        case = ET.SubElement(suite, "testcase", {"classname": f"{name}.{each.group}", "name": each.name, "time": "0"})
        told = f"wanted {each.wanted}, found {each.found}"
        if not each.passed:
            failure = ET.SubElement(case, "failure", {"message": told, "type": "limit"})
            failure.text = f"{told}. {each.detail}".strip()
        else:
            ET.SubElement(case, "system-out").text = f"{told}. {each.detail}".strip()
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(title: str, checks: Sequence[Check], notes: Sequence[str]) -> str:
    """The same for people: a table with a row for each check."""
    passed = sum(each.passed for each in checks)
    lines = [
        f"# {title}",
        "",
        f"**{'PASS' if passed == len(checks) else 'FAIL'}**: {passed} of {len(checks)} checks passed",
        "",
    ]
    lines += ["| check | wanted | found | | detail |", "|---|---|---|---|---|"]
    for each in checks:
        cells = [
            f"{each.group}: {each.name}",
            each.wanted,
            each.found,
            "pass" if each.passed else "**fail**",
            each.detail,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
