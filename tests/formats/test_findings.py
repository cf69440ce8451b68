"""What a checker reports, collected: bounded, or counted and said once."""

from __future__ import annotations

from atlas_kit.formats.findings import Finding, Report


def test_only_so_many_of_a_kind_are_listed():
    report = Report(most=2)
    for number in range(5):
        report.warning("odd", f"number {number}", offset=number)
    report.note("seen", "once")
    assert [(f.code, f.severity, f.message) for f in report.findings()] == [
        ("odd", "warning", "number 0"),
        ("odd", "warning", "number 1"),
        ("seen", "note", "once"),
        ("odd", "warning", "and 3 more of the same kind"),
    ]


def test_without_a_bound_all_are_listed():
    report = Report()
    for number in range(500):
        report.error("odd", str(number))
    assert len(report.findings()) == 500


def test_what_many_have_in_common_is_said_once():
    report = Report()
    report.tally("bare", "note", "without a time", offset=8, key="a")
    report.tally("big", "warning", "that is large", offset=16, key="b", hint="Shrink it.")
    report.tally("big", "warning", "that is large", offset=24, key="c", hint="Shrink it.")
    assert report.findings() == [
        Finding("bare", "note", "1 entry without a time", "", 8, "a"),
        Finding(
            "big", "warning", "2 entries that is large", "The first one is at byte 16. Shrink it.", 16, None
        ),
    ]


def test_findings_may_be_asked_for_twice():
    report = Report(most=1)
    report.error("odd", "one")
    report.error("odd", "two")
    report.tally("bare", "note", "without a time", offset=8)
    assert report.findings() == report.findings()
