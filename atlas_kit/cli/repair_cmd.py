"""``atlas-tool repair``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from atlas_kit.cli import _render
from atlas_kit.cli._options import (
    FILE,
    command_,
    decrypt_option,
    dry_run_option,
    force_option,
    given,
    json_option,
    keys_options,
    output_option,
    place_of,
    quiet_option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.formats.atlas.rescue_plan import RescueResult
    from atlas_kit.formats.findings import Finding
    from atlas_kit.formats.gguf.mend import MendResult
    from atlas_kit.operations.repair import Repaired

#: How many intact entries are listed by name.
LISTED = 40
#: How many findings of one kind are told.
ALIKE = 5
#: What was looked at where nothing is to be repaired, by whether the tensor data were.
_LOOKED_AT = {
    None: "there is nothing to repair",
    False: "there is nothing to repair in the header; tensor data were not looked at (--data does)",
    True: "there is nothing to repair: header and tensor data were looked at",
}
#: Actions that say what became of a tensor, which its fate says, too.
_FATES = {"tensor-damaged", "tensor-missing", "tensor-dropped"}
_ZEROS = (
    " (zeros that take the place of what is lost, as said above: the model loads, and what it answers is worth "
    "nothing)"
)
_STATES = {"intact": "good", "damaged": "warn", "missing": "bad", "dropped": "bad"}


@command_(
    "repair",
    """\
Rescue what is intact in a damaged file, into a new file.

From a memory file of any version that is cut off, has flipped bits, wrong counts, no header or no index,
every entry whose bytes are undamaged is saved; what cannot be identified goes to `lost+found/` entries.
In a GGUF model, counts, offsets, padding, alignment and duplicate keys are mended, records of tensors are made again
where the other layers show what they were, bytes that a download wrote twice are taken out, and a missing tail is
reported tensor by tensor. FILE itself is never touched. Numbers in a model's tensors cannot be mended;
--data looks at them, too, as `validate --data` does, and says what is wrong with them. What is rescued is
encrypted if FILE is, or if a passphrase or key is given.

The exit code is 0 when nothing is wrong (no file is written then), 1 when something was mended or lost,
and 2 when FILE cannot be repaired.

Examples:
  atlas-tool repair broken.atlas --dry-run
  atlas-tool repair broken.atlas -o rescued.atlas
  atlas-tool repair broken.gguf -o mended.gguf
""",
)
@click.argument("file", type=FILE)
@output_option("Where the rescued file goes; - is standard output.")
@force_option
@dry_run_option
@click.option(
    "--to", type=click.Choice(["atlas-v1", "atlas-v2", "atlas-v3"]), help="Version of the rescued file."
)
@click.option("--data", is_flag=True, help="Also look at a model's tensor data.")
@click.option(
    "--drop-damaged",
    is_flag=True,
    help="Leave damaged tensors of a model out, instead of zeros.",
)
@decrypt_option
@quiet_option
@json_option
@keys_options
def command(
    file: str, output: str | None, dry_run: bool, to: str | None, data: bool, drop_damaged: bool, force: bool,
    decrypt: bool, as_json: bool, keys: Any,
) -> int:  # fmt: skip
    """Run the command."""
    from atlas_kit.operations.repair import RepairOptions, repair_file

    how = RepairOptions(dry_run, force, int(to[-1]) if to else None, drop_damaged, decrypt, data)
    target = place_of(output)
    with _render.progress() as progress:
        result = repair_file(given(file), target, how, keys, progress)
    return _render.emit_beside(result, _text, as_json, None if dry_run else target, aside=True)


def _text(result: Repaired) -> Iterator[_render.Block]:
    if result.intact and not result.passed_on:
        yield _LOOKED_AT[result.data_read]
        yield from _told(result.before, "warning")
        return
    if result.intact:
        yield "nothing is wrong"
    if result.rescue is not None:
        yield from _rescue(result.rescue)
    if result.mend is not None:
        yield from _mend(result.mend)
    yield from _told(result.after, "error", "warning", before="still: ", lost=bool(result.lost))
    verb = "would save" if result.dry_run else "saved"
    what = ("entry", "entries") if result.kind == "atlas" else ("part", "parts")
    mended = f", {'would mend' if result.dry_run else 'mended'} {result.mended:,}" if result.mended else ""
    words = (
        ("piece was damaged", "pieces were damaged")
        if result.kind == "atlas"
        else ("part was lost", "parts were lost")
    )
    lost = f", {_render.plural(result.lost, *words)}" if result.lost else ""
    yield f"{verb} {_render.plural(result.saved, *what)}{mended}{lost}"
    if result.output is not None and not result.dry_run:
        yield f"-> {result.output}"


def _told(
    findings: list[Finding], *severities: str, before: str = "", lost: bool = False
) -> Iterator[_render.Block]:
    """Say what is wrong with a file; of many findings of a kind the first."""
    count: Counter[str] = Counter()
    for finding in findings:
        if finding.severity not in severities:
            continue
        count[finding.code] += 1
        if count[finding.code] <= ALIKE:
            about = "" if finding.key is None else f' "{finding.key}":'
            because = _ZEROS if lost and finding.code in ("tensor-zeroed", "tensor-all-zeros") else ""
            yield f"{before}{finding.severity}{about} {finding.message}{because}"
    for code, number in count.items():
        if number > ALIKE:
            yield f"{before}{number - ALIKE:,} more like these: {code}"


def _rescue(rescue: RescueResult) -> Iterator[_render.Block]:
    lines: list[str | _render.Styled] = []
    mended = [entry for entry in rescue.saved if entry.how != "intact"]
    lines += [_render.Styled(f"mended {entry.key}: {entry.how}", "warn") for entry in mended[:LISTED]]
    if len(mended) > LISTED:
        lines.append(f"... and {len(mended) - LISTED:,} more")
    for piece in rescue.lost:
        whose = f" {piece.key}" if piece.key is not None else ""
        kept = f"; its bytes are kept as {piece.kept_as}" if piece.kept_as else ""
        text = f"damaged{whose}, {_render.size(piece.size)} at byte {piece.offset:,}: {piece.why}{kept}"
        lines.append(_render.Styled(text, "bad"))
    lines += [f"not committed: {key}" for key in rescue.uncommitted]
    lines += [f"note: {note}" for note in rescue.notes]
    yield _render.Lines(lines)


def _mend(mend: MendResult) -> Iterator[_render.Block]:
    lines: list[str | _render.Styled] = []
    count: Counter[str] = Counter()
    for action in mend.actions:
        if action.code in _FATES:  # told below
            continue
        count[action.code] += 1
        if count[action.code] > ALIKE:
            continue
        place = "" if action.offset is None else f" at byte {action.offset:,}"
        about = "" if action.key is None else f' "{action.key}":'
        lines.append(f"[{action.code}]{place}{about} {action.message}")
    lines += [f"[{code}] {number - ALIKE:,} more" for code, number in count.items() if number > ALIKE]
    lost = [fate for fate in mend.tensors if fate.state != "intact"]
    for fate in lost[:LISTED]:
        instead = "" if fate.state == "dropped" else ", and zeros take their place"
        text = f"{fate.state} {fate.name}: {fate.why}{instead}"
        lines.append(_render.Styled(text, _STATES[fate.state]))
    if len(lost) > LISTED:
        size = _render.size(sum(fate.missing for fate in lost[LISTED:]))
        lines.append(f"... and {len(lost) - LISTED:,} more tensors, of which {size} are missing")
    if mend.lost_file:
        lines.append(f"what is lost is told in {mend.lost_file}")
    yield _render.Lines(lines)
