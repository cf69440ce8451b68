"""Run experiments and write down what they gave: ``python -m tools.experiments [names] [--quick] [--out FOLDER]``.

Each writes NAME.csv (its rows), NAME.json (claim, summary, seeds, date, versions, machine, seconds) and
NAME.png, and its table in ``README.md`` beside the folder of the results, when there is one.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import inspect
import io
import json
import math
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import atlas_kit
from tools.experiments import NAMES, common


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.experiments", description="Measure the paper's claims about memories."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)} (all)")
    parser.add_argument("--quick", action="store_true", help="a small part of each, in seconds")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="experiments at a time")
    options = parser.parse_args(arguments)
    names = options.names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no experiment is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.jobs <= 1 or len(names) == 1:
        for name in names:
            print(measure(name, options.out, options.quick))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(options.jobs, len(names)), mp_context=spawn) as pool:
            for line in pool.map(measure, names, [options.out] * len(names), [options.quick] * len(names)):
                print(line, flush=True)
    page = options.out.parent / "README.md"
    if page.is_file() and not options.quick:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), options.out), encoding="utf-8")
    return 0


def measure(name: str, out: Path, quick: bool) -> str:
    """Run one experiment, write its files, and say how long it took."""
    experiment = importlib.import_module(f"tools.experiments.{name}")
    begin = time.perf_counter()
    rows = experiment.run(quick=quick)
    seconds = time.perf_counter() - begin
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
    document = {
        "name": name,
        "question": experiment.__doc__.splitlines()[0],
        "claim": experiment.CLAIM,
        "quick": quick,
        "seeds": list(inspect.signature(experiment.run).parameters["seeds"].default),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "seconds": round(seconds, 1),
        "versions": {
            "atlas_kit": atlas_kit.__version__, "numpy": np.__version__, "python": platform.python_version()
        },
        "machine": machine(),
        "summary": experiment.summary(rows),
    }  # fmt: skip
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (out / f"{name}.json").write_text(text, encoding="utf-8")
    save(experiment.figure(rows), out / f"{name}.png")
    return f"{name}: {len(rows)} rows in {seconds:.0f} s"


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG of 128 colours: a third of the size, and no difference to see."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def machine() -> str:
    """Return processor, cores and system, without names that belong to one installation."""
    model = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        model = found.group(1) if found else model
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, one thread per experiment"


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else value


def with_tables(page: str, results: Path) -> str:
    """Return the page with the table between each pair of ``<!-- table NAME -->`` marks made from the results."""

    def table(match: re.Match[str]) -> str:
        document = json.loads((results / f"{match.group(2)}.json").read_text(encoding="utf-8"))
        return f"{match.group(1)}\n{as_table(document)}\n{match.group(3)}"

    return re.sub(r"(<!-- table (\w+) -->).*?(<!-- end -->)", table, page, flags=re.DOTALL)


def as_table(document: dict[str, Any]) -> str:
    """Return a summary as a Markdown table, and under it when, where and how long it was measured."""
    rows = document["summary"]
    lines = ["| " + " | ".join(key.strip() for key in rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    when = f"{document['date']}, {document['machine']}: {document['seconds']:.0f} s"
    return "\n".join([*lines, "", f"*Means over {len(document['seeds'])} seeds. {when}.*"])


def _cell(value: Any) -> str:
    return "–" if value == "" or (isinstance(value, float) and math.isnan(value)) else str(value)
