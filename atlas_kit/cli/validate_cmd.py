"""``atlas-tool validate``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _remedies, _render
from atlas_kit.cli._fleet import fleet_options
from atlas_kit.cli._options import (
    FILE,
    command_,
    given,
    json_option,
    one_shard_option,
    one_stdin,
    several_keys_options,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.validate import FileReport

#: Findings of one code that are listed one by one.
ALIKE = 20
_STYLES = {"error": "bad", "warning": "warn", "note": "dim"}


@command_(
    "validate",
    """\
Check files, and explain everything that is wrong with them.

Every finding has a severity, the byte where it is, plain words, and what to do about it. An error means that
the file cannot be used as it is; for a GGUF model, that stock llama.cpp does not load it, or dies of it at the
first token. Warnings and notes leave a file usable. Directories are searched for .atlas, .gguf, .safetensors and
.npz files; patterns may be given in quotes. Nothing is written.

Checksums of .atlas and .npz files are always verified. GGUF and safetensors have none: there --data reads all
tensors and finds NaN, infinity, scales that cannot be, zeros that a download never filled, and bytes that it
wrote twice. Without it, only what shows at once is found: holes in the file, a zeroed end.

The exit code is 0 when no file has an error, 1 when one has, 2 when one cannot be read. --json prints a list
with path, ok and findings for each file.

--workers, --scheduler and --table check many files at once, also those of a store (s3://bucket/**/*.gguf): what is
wrong with one stops no other, and what is in the table and unchanged is not checked again.

Examples:
  atlas-tool validate llama-7b_memory.atlas
  atlas-tool validate models/ 'backups/*.atlas'
  atlas-tool validate model.gguf --data
  atlas-tool validate model.gguf --json
  atlas-tool validate models/ --workers 2 --table checked.jsonl
""",
)
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@click.option("--data", is_flag=True, help="Also read all tensor data.")
@click.option("--strict", is_flag=True, help="Also exit with 1 for warnings.")
@click.option("-q", "--quiet", is_flag=True, help="Show only files with errors or warnings.")
@one_shard_option
@json_option
@several_keys_options
@fleet_options("validate")
def command(
    files: tuple[str, ...],
    data: bool,
    strict: bool,
    quiet: bool,
    one_shard: bool,
    as_json: bool,
    keys: Any,
) -> int:
    """Run the command."""
    one_stdin(*files)
    from atlas_kit.operations.validate import expand, validate_file
    from atlas_kit.storage.urls import shown

    reports = []
    names = list(expand(files))
    with _render.progress() as progress:
        for number, name in enumerate(names):
            if progress:
                progress(shown(name), number, len(names))
            report = validate_file(
                given(name), keys, strict=strict, one_shard=one_shard, data=data, progress=progress
            )
            reports.append(report)
    code = _render.emit_all(reports, _quiet_text if quiet else _text, as_json)
    if not as_json and len(reports) > 1:
        bad = sum(not report.ok for report in reports)
        _render.show([f"{_render.plural(len(reports), 'file')}, {bad} with errors"])
    return code


def _quiet_text(report: FileReport) -> Iterator[_render.Block]:
    if any(finding.severity != "note" for finding in report.findings):
        yield from _text(report)


def _text(report: FileReport) -> Iterator[_render.Block]:
    lines: list[str | _render.Styled] = []
    unread = " (tensor data not looked at: --data)" if report.data_read is False else ""
    verdict = _render.Styled(f"{report.path}: ok{unread}", "good")
    if not report.ok:
        verdict = _render.Styled(f"{report.path}: not ok", "bad")
    lines.append(verdict)
    said = ("", "")
    count: Counter[str] = Counter()
    for finding in report.findings:
        count[finding.code] += 1
        if count[finding.code] > ALIKE:
            continue
        place = "" if finding.offset is None else f" at byte {finding.offset:,}"
        about = "" if finding.key is None else f' "{_render.name(finding.key)}":'
        text = f"  {finding.severity}{place} [{finding.code}]{about} {finding.message}"
        lines.append(_render.Styled(text, _STYLES[finding.severity]))
        advice = _remedies.advice(finding, report.path)
        if advice and (finding.code, advice) != said:  # what helps with one of a kind helps with the next
            lines.append(_render.Styled(f"      {advice}", "dim"))
        said = finding.code, advice
    for code, number in count.items():
        if number > ALIKE:
            lines.append(f"  ... and {number - ALIKE:,} more of [{code}] (--json lists all)")
    yield _render.Lines(lines)
