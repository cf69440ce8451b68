"""Write the parts of README.md and docs/ that must be true: help texts, output, measured figures; called by cog.

Commands run in a scratch copy of ``sample_data/``, in UTC, without colour, at a fixed width, so that the
same text comes out on every machine.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 96


def environment(**changes: str) -> dict[str, str]:
    """Return the environment in which documented commands run: nothing of this machine or user shows."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ATLAS_", "CLICOLOR", "FORCE_COLOR"))}
    path = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    fixed = {"COLUMNS": str(WIDTH), "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "PYTHONPATH": path, "TZ": "UTC"}
    return {**env, **fixed, "PYTHONUTF8": "1", "TERM": "dumb", **changes}


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """Split a shell line into its variables and words; ``atlas-tool`` becomes this interpreter's module."""
    words = shlex.split(command, comments=True)
    variables = {}
    while words and "=" in words[0] and words[0].split("=")[0].isidentifier():
        name, value = words.pop(0).split("=", 1)
        variables[name] = value
    if words and words[0] == "atlas-tool":
        words[:1] = [sys.executable, "-m", "atlas_kit"]
    return variables, words


def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one documented line and return what it printed (both streams as one) and its exit code."""
    variables, words = split(command)
    return subprocess.run(
        words,
        cwd=cwd,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )


def console(*commands: str, lines: int | None = None) -> None:
    """Print a block with commands and what they really print, at most ``lines`` lines of each."""
    import cog

    cog.outl("```console")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "sample_data", Path(folder) / "sample_data")
        for command in commands:
            cog.outl(f"$ {command}")
            output = run(command, Path(folder)).stdout.rstrip("\n").splitlines()
            shown = output if lines is None or len(output) <= lines else [*output[:lines], "..."]
            for line in shown:
                cog.outl(line.rstrip())
    cog.outl("```")


def help_text(name: str | None = None) -> str:
    """Return the help of one command, or of the whole tool."""
    import click

    from atlas_kit.cli._group import group
    from atlas_kit.cli._options import CONTEXT

    names: Any = CONTEXT["help_option_names"]
    context = click.Context(group, info_name="atlas-tool", terminal_width=WIDTH, help_option_names=names)
    if name is None:
        return group.get_help(context)
    command = group.get_command(context, name)
    assert command is not None
    return command.get_help(click.Context(command, info_name=name, parent=context, terminal_width=WIDTH))


def command_reference() -> None:
    """Print every command's help, each below a heading of its own."""
    import cog

    from atlas_kit.cli._group import COMMANDS

    cog.outl(f"```text\n{help_text()}\n```\n")
    for name, row in COMMANDS.items():
        cog.outl(f"## atlas-tool {name}\n\n{row.summary}\n\n```text\n{help_text(name)}\n```\n")


def _quantity(value: float, unit: str) -> str:
    """Return a measured value to three digits, in a unit in which it is easily read."""
    steps = {
        "s": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)),
        "bytes": (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)),
    }.get(unit, ((unit, 1.0),))
    name, size = next((step for step in steps if abs(value) >= step[1]), steps[-1])
    number = value / size
    digits = max(0, 2 - len(str(int(abs(number)))) + 1) if number != int(number) else 0
    return f"{number:,.{digits}f} {name}".rstrip()


def bench_table(name: str) -> None:
    """Print what one program of tools/bench saved in its folder results, and where and when it was measured."""
    import cog

    path = ROOT / "tools" / "bench" / "results" / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    cog.outl("| what | here | to compare with | ratio |")
    cog.outl("|---|---|---|---|")
    for row in found["rows"]:
        if not row["unit"]:
            continue  # a check, not a measurement
        ours, peer = (_quantity(row[side], row["unit"]) for side in ("ours", "peer"))
        against = "" if row["against"] == peer else f", {row['against']}"
        cog.outl(f"| {row['what']} | {ours} | {peer}{against} | {row['ratio']:.2f} |")
    cog.outl("")
    dates = sorted({row.get("date", found["date"]) for row in found["rows"]})
    days = " and ".join(filter(None, (", ".join(dates[:-1]), dates[-1])))
    cog.outl(
        f"Measured on {days} with `python tools/bench/{name.removesuffix('-cpu')}.py` "
        f"on {found['cores']} cores of an {found['processor']}, Python {found['python']}, NumPy {found['numpy']}."
    )
    if "peer" in found:
        shares = sorted({row.get("others", found["others"]) for row in found["rows"]})
        share = (
            f"{shares[0]:.0%}"
            if f"{shares[0]:.0%}" == f"{shares[-1]:.0%}"
            else f"{shares[0]:.0%} to {shares[-1]:.0%}"
        )
        cog.outl(f"The peer is {found['peer']}; other programs had {share} of the processors meanwhile.")


def sizing_example(model: str = "SmolLM2", cores: int = 4) -> None:
    """Print how many people are answered at once by a machine of so many cores, by what the server's bench saved."""
    import cog

    path = ROOT / "tools" / "bench" / "results" / "server-cpu.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    what = f"{model}, 8 clients, with memory"
    row = next(row for row in found["rows"] if (row["name"], row["what"]) == ("throughput", what))
    each = row["ours"] / found["threads"]
    whole = cores * each
    cog.outl(
        f"{cores} x {each:,.0f} = {whole:,.0f} tokens per second are answers for {whole / 10:,.0f} to {whole / 5:,.0f} "
        f"people at once.\nWhere one in ten of those who chat waits for an answer at any moment, {whole:,.0f} to "
        f"{2 * whole:,.0f} people can use it."
    )


def neighbours_table() -> None:
    """Print what the server keeps of its speed beside busy neighbours, and what five times the peer would be."""
    import cog

    path = ROOT / "tools" / "bench" / "results" / "server-cpu.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["what"]: row for row in found["rows"] if row["name"] == "neighbours"}
    cog.outl(
        "| 8 clients, memory off | alone | beside busy neighbours | kept | llama-server there | ratio | five times it |"
    )
    cog.outl("|---|---|---|---|---|---|---|")
    for what, busy in rows.items():
        if not what.endswith("busy neighbours, memory off"):
            continue
        title = what.split(",")[0]
        alone = rows[f"{title}, 8 clients alone, {found['threads']} threads, memory off"]["ours"]
        ours, peer = busy["ours"], busy["peer"]
        cells = [
            title, _quantity(alone, "tokens/s"), _quantity(ours, "tokens/s"), f"{ours / alone:.0%}",
            _quantity(peer, "tokens/s"), f"{ours / peer:.2f}", f"{5 * peer / alone:.0%} of alone",
        ]  # fmt: skip
        cog.outl(f"| {' | '.join(cells)} |")


def sizing_table() -> None:
    """Print what a server of each model serves on one core, and the room that it takes, from what its bench saved."""
    import cog

    path = ROOT / "tools" / "bench" / "results" / "server-cpu.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    figures = {(row["name"], row["what"]): row["ours"] for row in found["rows"]}

    def figure(name: str, what: str, unit: str, share: float = 1) -> str:
        value = figures.get((name, what))
        return "" if value is None else _quantity(value / share, unit)

    titles = list(dict.fromkeys(what.split(",")[0] for name, what in figures if name == "throughput"))
    cog.outl(f"| | {' | '.join(titles)} |")
    cog.outl("|---" * (1 + len(titles)) + "|")
    rows: list[tuple[str, str, str, str]] = [
        (f"tokens per second per core, {clients}, {kind}", "throughput", f"{clients}, {kind}", "")
        for clients in ("1 client", "8 clients", "50 clients")
        for kind in ("memory off", "with memory")
    ]
    rows += [
        (
            f"the process after its first answer, {kind}",
            "start",
            f"the process after its first answer, {kind}",
            "bytes",
        )
        for kind in ("memory off", "with memory")
    ]
    rows += [
        (
            "a memory in use that has read 1,024 tokens",
            "sessions",
            "a session of 1,024 tokens, its memory",
            "bytes",
        ),
        (
            "its session in a file, with its context",
            "sessions",
            "a session of 1,024 tokens, its file",
            "bytes",
        ),
        ("the process with 1,000 idle sessions", "sessions", "1,000 idle sessions, the process", "bytes"),
        ("what each of these added to it", "sessions", "1,000 idle sessions, each", "bytes"),
    ]
    for label, name, what, unit in rows:
        cells = []
        for title in titles:
            # the sample model has one thread, whatever cores there are
            cores = 1 if unit or title == "sample model" else found["threads"]
            cells.append(figure(name, f"{title}, {what}", unit, cores))
        if any(cells):
            cog.outl(f"| {label} | {' | '.join(cells)} |")
    cog.outl("")
    cog.outl(f"Measured on {found['date']} on {found['cores']} cores of an {found['processor']}.")


def _quality() -> dict[str, Any]:
    path = ROOT / "tools" / "bench" / "results" / "quality.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def quality_sentence() -> None:
    """Print what the memory is worth to the sample model, in one sentence."""
    import cog

    found = _quality()
    python, machine = found["python"], found["machine"]
    alone, with_memory = (python["results"][kind]["perplexity_after"] for kind in ("none", "atlas"))
    cog.outl(
        f"On {python['tokens']:,} tokens of Python that the sample model (context of {python['n_ctx']} tokens) "
        f"had never seen, its perplexity after token 4,096\nis {alone:.2f} alone and {with_memory:.2f} with the memory "
        f"([measured](docs/performance.md#what-the-memory-is-worth) on {machine['date']} with {machine['cpus']} CPUs)."
    )


def recall_table() -> None:
    """Print how many questions each model answers, from what tools/bench/recall.py saved."""
    import cog

    from tools.bench._recall_set import GENERAL, GROUPS
    from tools.bench.recall import COLUMNS

    for path in sorted((ROOT / "tools" / "bench" / "results").glob("recall-*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        counts, columns = found["table"], [name for name in COLUMNS if name in found["columns"]]
        cog.outl(
            f"| {found['model']}: right answers | of | "
            + " | ".join(COLUMNS[name] for name in columns)
            + " |"
        )
        cog.outl("|---" * (len(columns) + 2) + "|")
        for group in [*GROUPS, "all", GENERAL]:
            if group not in counts:
                continue
            title = {"all": "**all of these**", GENERAL: "general questions"}.get(group) or GROUPS[group]
            cells = [_told(counts[group].get(name, {})) for name in columns]
            cog.outl(f"| {title} | {counts[group]['questions']} | " + " | ".join(cells) + " |")
        for what, name in (("hit_considered", "looked at"), ("hit_taken", "put before the question")):
            cells = [str(counts["all"].get(column, {}).get(what, "")) for column in columns]
            cog.outl(
                f"| the right segment is {name} | {counts['all']['questions']} | " + " | ".join(cells) + " |"
            )
        cog.outl("")
        _recall_words(found)


def _told(said: dict[str, Any]) -> str:
    if "right" not in said:
        return ""
    return f"{said['right']}" + (f" ({said['mistaken']})" if said.get("mistaken") else "")


def _recall_words(found: dict[str, Any]) -> None:
    import cog

    times, threads = found["times"], found["threads"]
    on = f"{threads} thread{'s' * (threads != 1)} of an {found['processor']}"
    if "ask" in times and "memory" in times:
        cpu = {name: times[name]["first_token_cpu_seconds"] for name in ("ask", "memory")}
        more = cpu["ask"]["median"] - cpu["memory"]["median"]
        cog.outl(
            f"With {times['stored']['tokens']:,} tokens stored, the first token of an answer comes after "
            f"{cpu['ask']['median']:.2f} s of processor time (median; at most {cpu['ask']['most']:.2f} s), "
            f"{more:.2f} s more than without recall; a search takes {1000 * times['ask']['search_cpu_seconds']:.1f} ms."
        )
    worse = found["table"].get("general", {}).get("ask", {}).get("worse")
    if worse is not None:
        cog.outl(
            f"Of the general questions that the model alone answers, {worse} "
            f"{'gets' if worse == 1 else 'get'} worse."
        )
    remarks = "".join(f" {remark}" for remark in found.get("remarks", ()))
    cog.outl(f"Measured on {found['date']} with `python tools/bench/recall.py`, {on}.{remarks}")
    cog.outl("")


#: Memories of tools/bench/quality.py --text, and what they are.
MEMORIES = {
    "polynomial": "until November: polynomial",
    "final": "whitened, final states",
    "atlas": "**as recommended: whitened, states of a middle layer**",
}


def quality_of_texts(name: str) -> None:
    """Print what memories gain on texts beside a model, from what tools/bench/quality.py --text saved."""
    import cog

    path = ROOT / "tools" / "bench" / "results" / f"quality-{name}.json"
    texts = list(json.loads(path.read_text(encoding="utf-8"))["texts"].items())
    kinds = [kind for kind in MEMORIES if kind in texts[0][1]["memories"]]
    titles = [
        MEMORIES[kind]
        if len(kinds) == len(MEMORIES)
        else {"atlas": "**as recommended**"}.get(kind, MEMORIES[kind])
        for kind in kinds
    ]
    cog.outl(
        f"| text | tokens | alone | {' | '.join(titles)} | more than until November | worst 1,000 tokens |"
    )
    cog.outl("|---" * (len(kinds) + 5) + "|")
    for title, text in texts:
        memories = text["memories"]
        gains = [f"{memories[kind]['gain']:.3f}" for kind in kinds]
        gains[-1] = f"**{gains[-1]}**"
        more = memories["atlas"]["gain"] - memories["polynomial"]["gain"]
        cog.outl(
            f"| {title} | {text['tokens']:,} | {memories['none']['perplexity_after']:.2f} | {' | '.join(gains)} "
            f"| {more:+.3f} | {min(memories['atlas']['stretches']):+.3f} |"
        )
    last = [text["memories"] for _, text in texts]
    sizes = [f"{max(one[kind]['state_bytes'] for one in last) / 1e6:.1f} MB" for kind in kinds]
    times = [1e6 * sum(one[kind]["seconds"] for one in last) / len(last) for kind in kinds]
    cog.outl(f"| state | | | {' | '.join(sizes)} | | |")
    took = " | ".join(f"{10 * round(time / 10):,.0f} us" for time in times)
    cog.outl(f"| processor time for each token | | | {took} | {times[-1] / times[0] - 1:+.0%} | |")
    dates = sorted({text["date"] for _, text in texts})
    cog.outl("")
    cog.outl(f"Measured on {' and '.join(dates)}, one thread of an {texts[0][1]['processor']}.")


def quality_table() -> None:
    """Print the table of perplexities from what tools/bench/quality.py saved."""
    import cog

    found = _quality()
    names = {
        "none": "the model alone",
        "window": "exact window of {window_size:,}",
        "omega": "learned memory",
        "atlas": "**both: the ATLAS memory**",
        "knn-fixed": "kNN-LM over the whole history, best fixed weight",
        "knn": "kNN-LM over the whole history, same gate",
    }
    python, english = found["python"]["results"], found["english"]["results"]
    cog.outl("| perplexity after token 4,096 | keeps | Python | English |")
    cog.outl("|---|---|---|---|")
    for kind, name in names.items():
        size = python[kind]["state_bytes"]
        kept = (
            "" if not size else f"{size / 1e6:.1f} MB" + (", and growing" if kind.startswith("knn") else "")
        )
        a, b = (scores[kind]["perplexity_after"] for scores in (python, english))
        cog.outl(f"| {name.format(**found['settings'])} | {kept} | {a:.2f} | {b:.2f} |")
    count, more = found["python"]["tokens"], found["english"]["tokens"]
    cog.outl("")
    cog.outl(
        f"The sample model with its own context of {found['python']['n_ctx']} tokens, on {count:,} tokens of Python "
        f"and {more:,} of English that it never saw; it was trained on Python."
    )
    cog.outl(
        f"`python tools/bench/quality.py` measures this; here on {found['machine']['date']} with "
        f"{found['machine']['cpus']} CPUs"
        + (f", kNN-LM on {found['earlier']['date']}." if "earlier" in found else ".")
    )
