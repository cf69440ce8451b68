"""Every remedy that a finding names is tried on the file that has the finding, and helps.

The files are those of the tests of the checks, so a new finding comes here by itself; one that names a remedy
and that no file has fails, too.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import test_atlas_check as atlas_cases
import test_gguf_check as gguf_cases
import test_gguf_mend as mend_cases
from gguf_builder import F32, HOSTILE, KV, split_llama

import atlas_kit
from atlas_kit.cli._remedies import worded
from atlas_kit.formats.atlas import MemoryFile, checksums, layout
from atlas_kit.formats.findings import Finding
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage.keys import Keys

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
PACKAGE = Path(atlas_kit.__file__).parent
#: What a user puts where a remedy says VALUE, by the type that the key wants.
VALUES = {"bool": "true", "str": "llama"}
#: What the keys of the tiny model need where they are missing.
BY_KEY = {"tokenizer.ggml.model": "llama"}
#: Remedies that tell which option or secret is lacking: there is no command in them to try.
NO_COMMAND = {"give-key", "give-passphrase", "give-secret", "make-key"}
#: Findings whose code is not written where they are made, or which need more than a file.
ELSEWHERE = {
    "edit-interrupted",  # tests/formats/test_gguf_edit.py puts a header back
    "episodes",  # tests/operations/test_episodes.py repairs them
    "unknown-format",  # "if the file is damaged": what it was is not known
    "wrong-key",  # asks for another secret
}


def files(folder: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yield (name, content, secret) of every file that has findings."""
    for path in sorted(SAMPLES.glob("*/*.*")):
        if path.suffix in (".atlas", ".gguf"):
            secret = {"passphrase": b"correct horse battery staple"} if "secret" in path.name else {}
            yield path.name, path.read_bytes(), secret
    for name, make in HOSTILE.items():
        yield f"{name}.gguf", make(), {}
    for name, (data, _) in {**mend_cases.MENDABLE, **mend_cases.LOSING}.items():
        yield f"mend {name}.gguf", data, {}
    tiny = gguf_cases.TINY
    epsilon, factor = "llama.attention.layer_norm_rms_epsilon", "llama.rope.scaling.factor"
    yield "eps.gguf", tiny.with_kv(KV(epsilon, F32, -1.0)).bytes(), {}
    yield "prefixed.gguf", prefixed(), {}
    yield "factor.gguf", tiny.with_kv(KV(factor, F32, -1.0)).bytes(), {}
    shards = [shard.bytes() for shard in split_llama(3)]
    yield "shard.gguf", shards[0], {}
    yield "joined.gguf", b"".join(shards), {}
    for name, (file, _) in gguf_cases.CASES.items():
        yield f"{name}.gguf", file.bytes(), {}
    for number, (data, secret) in enumerate(atlas_files(folder)):
        yield f"{number}.atlas", data, secret


def prefixed() -> bytes:
    """Return a model all of whose tensors are called ``model.*``."""
    tensors = tuple(replace(t, name=f"model.{t.name}") for t in gguf_cases.TINY.tensors)
    return replace(gguf_cases.TINY, tensors=tensors).bytes()


def atlas_files(folder: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the files that the tests of the check of memory files look at."""
    found: list[tuple[bytes, dict[str, Any]]] = [(data, {}) for data, _ in atlas_cases.V1_CASES.values()]
    look = atlas_cases.codes

    def remember(data: bytes, **secret: Any) -> dict[str, str]:
        codes = look(data, **secret)
        wrong = "wrong-key" in codes
        found.append((data, {} if wrong else secret))
        return codes

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(atlas_cases, "codes", remember)
        for test in (atlas_cases.test_version_2, atlas_cases.test_version_3):
            test(folder)
    for name, test in (("left", atlas_cases.test_what_updates_leave_is_a_note),
                       ("aligned", atlas_cases.test_misaligned_tensor)):  # fmt: skip
        (folder / name).mkdir()
        test(folder / name)
        found.append(((folder / name / "a.atlas").read_bytes(), {}))
    return [*found, *more_atlas_files(folder)]


def more_atlas_files(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield memory files with findings that the tests of the check do not come to."""
    path = folder / "more.atlas"
    good = atlas_cases.v2_file(path)
    index = int.from_bytes(good[128:136], "little")
    yield (
        atlas_cases.sealed_index(
            good, lambda rows: [[*rows[0][:2], rows[0][2] + 8, *rows[0][3:]], *rows[1:]]
        ),
        {},
    )
    fields = layout.INDEX.unpack_from(good, index)
    for place in (3, 5):  # the block's file_id, the block before it
        head = layout.INDEX.pack(*fields[:place], index, *fields[place + 1 :])
        data = atlas_cases.patch(good, index, head)
        body = data[index + 16 : index + fields[2]]
        yield atlas_cases.patch(data, index + 8, struct.pack("<Q", checksums.xxh3(body))), {}
    two = atlas_cases.v1_file() * 2
    yield atlas_cases.sealed_v1(two, 12, struct.pack("<I", 6)), {}
    with MemoryFile.open(path) as memory:
        memory["first"] = "changed"
        memory.commit()
    yield atlas_cases.sealed_v2(path.read_bytes(), index_offset=index), {}
    sealed = atlas_cases.patch(
        atlas_cases.v2_file(folder / "sealed.atlas", key=atlas_cases.KEY), 152, b"\xee"
    )
    sealed = atlas_cases.patch(sealed, 8, struct.pack("<I", checksums.fnv1a(sealed[12:104])))
    yield (
        atlas_cases.patch(sealed, 248, struct.pack("<Q", checksums.xxh3(sealed[:248]))),
        {"key": atlas_cases.KEY},
    )


def tried(folder: Path, run_cli: Any) -> Iterator[tuple[str, Finding, str]]:
    """Yield (file, finding, what is wrong with its remedy), one of each code and remedy of a file."""
    (folder / "cases").mkdir()
    for name, data, secret in files(folder / "cases"):
        path = folder / re.sub(r"[^\w.]", "_", name)
        path.write_bytes(data)
        keys = Keys(secret.get("passphrase"), secret.get("key"))
        if path.suffix == ".atlas" and data[4:5] == b"\3" and not secret:
            secret = {"key": atlas_cases.KEY}  # whoever follows a remedy has it
        options = []
        for option, value in secret.items():
            (folder / option).write_bytes(value)
            options += [f"--{'key' if option == 'key' else option}-file", folder / option]
        seen = set()
        for finding in validate_file(path, keys).findings:
            kind = (finding.code, finding.remedy)
            if finding.remedy is not None and kind not in seen:
                seen.add(kind)
                yield name, finding, fails(path, finding, keys, options, run_cli)
                path.write_bytes(data)


def fails(path: Path, finding: Finding, keys: Keys, options: list[Any], run_cli: Any) -> str:
    """Do what a finding's remedy says; return what is wrong with that, or nothing."""
    assert finding.remedy is not None
    words = worded(finding.remedy, str(path))
    command = re.search(r"atlas-tool (.*?)(, or .*)?$", words)
    if command is None:
        return "" if finding.remedy.name in NO_COMMAND else f"no command: {words}"
    out = path.with_name(f"out{path.suffix}")
    kind = finding.remedy.arguments.get("type", "u32")
    value = BY_KEY.get(finding.key or "", VALUES.get(kind, "8"))
    known = {"OUT": str(out), f"OUT{path.suffix}": str(out), "VALUE": value, "NAME": "short"}
    if finding.remedy.name == "recover":  # "if there is a backup"
        shutil.copy(SAMPLES / "atlas" / "chat.atlas", f"{path}.bak")
    done = run_cli(*[known.get(word, word) for word in shlex.split(command[1])], *options)
    target = out if out.exists() else path
    left = validate_file(target, keys).findings
    for place in (out, Path(f"{out}.lost.json"), Path(f"{path}.bak")):
        place.unlink(missing_ok=True)
    if done.exit_code == 2:
        return f"{words}: {done.stderr}"
    if any((one.code, one.key) == (finding.code, finding.key) for one in left):
        return f"{words}: it is as before"
    return ""


def test_every_remedy_helps(tmp_path: Path, run_cli: Any) -> None:
    wrong, codes = [], set()
    for name, finding, problem in tried(tmp_path, run_cli):
        codes.add(finding.code)
        if problem:
            wrong.append(f"{name}: [{finding.code}] {problem}")
    assert wrong == []
    missing = with_remedies() - codes - ELSEWHERE
    assert missing == set(), "the tests of the checks have no file with this finding"


@cache
def with_remedies() -> set[str]:
    """Return the codes of findings that the source makes with a remedy."""
    found = set()
    for path in [*PACKAGE.glob("formats/*/check*.py"), *PACKAGE.glob("formats/*/v[12].py"),
                 PACKAGE / "operations" / "validate.py"]:  # fmt: skip
        usual = (
            "remedy=REPAIR)" in (PACKAGE / "formats" / "atlas" / "check.py").read_text()
            and path.parent.name == "atlas"
        )
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            code = call.args[0]
            if name not in ("error", "warning", "note", "add", "tally", "Finding"):
                continue
            if not isinstance(code, ast.Constant) or not isinstance(code.value, str):
                continue
            remedy = next((word.value for word in call.keywords if word.arg == "remedy"), None)
            none = isinstance(remedy, ast.Constant) and remedy.value is None
            if (remedy is not None and not none) or (remedy is None and usual and name == "error"):
                found.add(code.value)
    return found
