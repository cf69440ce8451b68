"""A tour of atlas-tool on the files in ``sample_data/`` (``make demo``).

Shows each command as one would type it in this folder, what it prints, and checks that it ends with the
exit code that it should. What the commands write is left in ``build/demo/`` for a closer look.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools.make_sample_data import PASSPHRASE  # noqa: E402
from tools.reference import split  # noqa: E402

ATLAS, GGUF, BROKEN, OUT = "sample_data/atlas", "sample_data/gguf", "sample_data/broken", "build/demo"
MODEL, DOCUMENT = "sample_data/models/tiny-python.gguf", "sample_data/documents/statistics.py"

#: Chapters of (title, [(command, expected exit code)]).
TOUR = [
    (
        "A model with a memory: what is it worth on a text that the model has never read?",
        [
            (f"atlas-tool recommend {MODEL}", 0),
            (
                f"atlas-tool perplexity {MODEL} {DOCUMENT} --memory none,window,knn,omega,atlas --atlas-auto --curve",
                0,
            ),
        ],
    ),
    (
        "Read a document into a memory, and write on from it, without the memory and with it",
        [
            (f"atlas-tool learn {MODEL} {DOCUMENT} --atlas-auto --memory-file {OUT}/statistics.atlas", 0),
            (f"atlas-tool inspect {OUT}/statistics.atlas", 0),
            (f"atlas-tool run {MODEL} --no-chat -p 'def pstdev(data,' --temperature 0 --max-tokens 60", 0),
            (
                f"atlas-tool run {MODEL} --no-chat -p 'def pstdev(data,' --temperature 0 --max-tokens 60"
                f" --memory-file {OUT}/statistics.atlas --read-only",
                0,
            ),
        ],
    ),
    (
        "Look into a memory file, and into a model",
        [
            (f"atlas-tool inspect {ATLAS}/llama-7b_memory.atlas", 0),
            (f"atlas-tool inspect {ATLAS}/llama-7b_memory.atlas --entry chat_history", 0),
            (f"atlas-tool inspect {GGUF}/tiny.gguf", 0),
            (f"atlas-tool inspect {GGUF}/tiny.gguf --tensors --stats", 0),
        ],
    ),
    (
        "See every byte, with its name and meaning",
        [
            (f"atlas-tool inspect {ATLAS}/llama-7b_memory.atlas --hex", 0),
            (f"atlas-tool inspect {GGUF}/micro.gguf --map", 0),
        ],
    ),
    (
        "A memory that learned: what it is, and what the next 24 tokens changed (exit code 1 means: they differ)",
        [
            (f"atlas-tool inspect {ATLAS}/learned.atlas", 0),
            (f"atlas-tool diff {ATLAS}/learned.atlas {ATLAS}/learned-more.atlas", 1),
        ],
    ),
    (
        "Check: all findings, with the place and what to do (exit code 1 means: there are findings)",
        [
            (f"atlas-tool validate {ATLAS}/chat.atlas {GGUF}/tiny.gguf", 0),
            (f"atlas-tool validate {BROKEN}", 1),
        ],
    ),
    (
        "Rescue what is intact (exit code 1 means: something is lost)",
        [
            (f"atlas-tool repair {BROKEN}/truncated.atlas -o {OUT}/rescued.atlas", 1),
            (f"atlas-tool ls {OUT}/rescued.atlas", 0),
            (f"atlas-tool repair {BROKEN}/wrong-tensor-count.gguf -o {OUT}/mended.gguf", 1),
            (f"atlas-tool validate {OUT}/rescued.atlas {OUT}/mended.gguf", 0),
        ],
    ),
    (
        "Convert to JSON, which any editor opens, and back: the same bytes",
        [
            (f"atlas-tool convert {ATLAS}/llama-7b_memory.atlas {OUT}/memory.json", 0),
            (f"cat {OUT}/memory.json", 0),
            (f"atlas-tool convert {OUT}/memory.json {OUT}/memory.atlas --to atlas-v1", 0),
            (f"cmp {ATLAS}/llama-7b_memory.atlas {OUT}/memory.atlas", 0),
        ],
    ),
    (
        "Convert a model to ATLAS-native GGUF, which llama.cpp still loads, and back: the same bytes",
        [
            (f"atlas-tool convert {GGUF}/tiny.gguf {OUT}/tiny-atlas.gguf --to atlas-gguf", 0),
            (f"atlas-tool convert {OUT}/tiny-atlas.gguf {OUT}/tiny.gguf --to gguf", 0),
            (f"cmp {GGUF}/tiny.gguf {OUT}/tiny.gguf", 0),
        ],
    ),
    (
        "Shrink",
        [(f"atlas-tool compress {ATLAS}/chat.atlas -o {OUT}/chat.atlas --codec lz4", 0)],
    ),
    (
        "Change, and compare by meaning (exit code 1 means: different)",
        [
            (f"cp {ATLAS}/llama-7b_memory.atlas {OUT}/changed.atlas", 0),
            (f"atlas-tool set {OUT}/changed.atlas user_prefs --from sample_data/text/prefs.json", 0),
            (f"atlas-tool diff {ATLAS}/llama-7b_memory.atlas {OUT}/changed.atlas", 1),
        ],
    ),
    (
        "Encrypted memories",
        [
            (f"ATLAS_PASSPHRASE='{PASSPHRASE}' atlas-tool ls {ATLAS}/secret.atlas", 0),
            (f"ATLAS_PASSPHRASE=wrong atlas-tool ls {ATLAS}/secret.atlas", 2),
        ],
    ),
]


def main() -> int:
    """Run the tour and return 0 when every command did what it should."""
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    Path(OUT).mkdir(parents=True)
    wrong, count = [], 0
    for title, steps in TOUR:
        say(f"\n{title}", "1")
        for command, expected in steps:
            count += 1
            say(f"\n$ {command}", "36")
            code = run(command)
            if code != expected:
                wrong.append(command)
                say(f"(exit code {code} instead of {expected})", "31")
    verdict = f"{len(wrong)} did not do what they should" if wrong else "all as expected"
    say(f"\n{count} commands, {verdict}", "1")
    say(f"What they wrote is in {OUT}/. Next: README.md, or atlas-tool --help (in .venv/bin/).", "0")
    return 1 if wrong else 0


def run(command: str) -> int:
    """Run one line; the few commands that are not ours are done here, so that they exist everywhere."""
    variables, words = split(command)
    if words[0] == "cp":
        shutil.copy(words[1], words[2])
        return 0
    if words[0] == "cat":
        print(Path(words[1]).read_text(encoding="utf-8"), end="")
        return 0
    if words[0] == "cmp":
        same = filecmp.cmp(words[1], words[2], shallow=False)
        print(f"({'the same bytes' if same else 'they differ'})")
        return 0 if same else 1
    environment = {k: v for k, v in os.environ.items() if k != "ATLAS_PASSPHRASE"}
    return subprocess.run(
        words, env={**environment, **variables}, stdin=subprocess.DEVNULL, check=False
    ).returncode


def say(text: str, style: str) -> None:
    """Print a line of the tour itself, coloured on a terminal."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(f"\033[{style}m{text}\033[0m" if colour else text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
