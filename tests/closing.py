"""What a run says at its end: how long each layer took, and in plain words what was not tested here. Knows no test.

Above pytest's own closing line, with and without xdist. ``tests/test_closing.py`` holds every reason for which a test
here is skipped against ``NEEDS``, so that no reason stays without words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import pytest

#: What tests need: what stands in a reason, what the tests are of, and what is missing here.
NEEDS: tuple[tuple[str, str, str], ...] = (
    ("Chromium", "of the browser", "no Chromium"),
    ("other people's clients", "with other people's clients", "they could not be installed; `make clients` says why"),
    ("shared/fixtures", "with vocabularies of llama.cpp", "../shared/fixtures is not here"),
    ("shared/models", "with the trained model in eight bits", "../shared/models is not here"),
    ("CuPy", "of the GPU", "no CuPy with a CUDA device"),
    ("xllamacpp", "against stock llama.cpp", "xllamacpp is not installed"),
    ("libgomp", "of how llama.cpp's threads wait", "no libgomp here"),
    ("outnumber the processors", "of how llama.cpp's threads wait", "one processor only"),
    ("threadpoolctl", "of NumPy's BLAS", "threadpoolctl is not installed"),
    ("NumPy's BLAS has|cannot run the kernels", "of NumPy's BLAS", "this processor has not every kernel"),
    ("no recipe for", "of architectures", "random models are not made of them"),
    ("own server tests", "of llama.cpp's own, against our server", "tools/llama_server_tests.py has not fetched them"),
    ("llama", "of llama.cpp", "llama-cpp-python is not installed"),
    ("packages of the server|openai|anthropic|pydantic", "of the server", "its packages or clients are not installed"),
    ("starlette", "of the server", "its packages are not installed"),
    ("cryptography", "of encrypted files", "cryptography is not installed"),
    ("matplotlib", "of figures", "matplotlib is not installed"),
    ("marimo", "in marimo", "it could not be installed"),
    ("latex2mathml", "of formulas", "latex2mathml is not installed"),
    ("deno", "of the types of the scripts", "deno is not installed"),
    ("jinja2", "of chat templates", "jinja2 is not installed"),
    ("gguf", "against the package gguf", "gguf is not installed"),
    ("ipywidgets|ipykernel|jupytext|nbclient|IPython", "of widgets and notebooks", "not all of Jupyter is installed"),
    ("tomllib|TOML reader", "that read TOML", "Python 3.10 has no reader for it"),
    ("sparse files|no holes", "with files larger than the disk", "no sparse files in this file system"),
    ("root may", "of files that may not be read or written", "root may read and write everything"),
    ("mounting needs root|be mounted here", "of a disk that is really full", "only root may mount one"),
    ("pseudo-terminals", "of questions on a terminal", "this system has no pseudo-terminals"),
    ("/proc|/dev/full|signals|fork", "of processes and devices", "this system has other ones"),
    ("content is compared instead", "of the samples' bytes", "other compressors; the content was compared"),
    ("magic number is a rest", "of what `repair` refuses", "from a magic number alone it makes an empty file"),
    ("os.replace", "of a kill while a memory is put into place", "it is put into place in another way"),
    ("was not built", "of damaged models", "sample_data/ is not whole"),
    ("copy of the root directory", "of the image's steps", "only root may make a copy of the root directory"),
    ("the image is made of", "of the image's steps", "no package index can be reached"),
    ("package index", "of the wheel", "no package index can be reached"),
    ("hadolint|kubernetes-validate|pyyaml", "of deployment", "no hadolint, kubernetes-validate or pyyaml"),
    ("cloud extra", "of remote files and fleets", "the packages of atlas-kit[cloud] are not all installed"),
    ("systemd-analyze", "of the unit for systemd", "no systemd-analyze, or an old one"),
    ("takes memory back", "of how memory is given back in parts", "this system takes it back as a whole"),
    ("cannot move data", "of room made inside large models", "this file system cannot move data inside a file"),
    ("links here", "of links to files", "this file system has none"),
    ("glibc|heaps", "of how much of the heap threads keep", "another C library"),
    ("FTS5", "against SQLite's search", "this Python's SQLite has no FTS5"),
    ("coreutils", "against sha256sum and its kin", "coreutils are not installed"),
    ("the examples ask with curl", "of the examples of the server", "no curl"),
    ("the examples are lines for a shell", "of the examples in help texts", "no bash"),
)  # fmt: skip
_DESELECTED, _NOT_COLLECTED = "atlas_deselected", "atlas_not_collected"


def in_words(reason: str) -> tuple[str, str]:
    """Return what tests with this reason are of, and what is missing; ``("", reason)`` for a reason without words."""
    for pattern, tests, missing in NEEDS:
        if re.search(pattern, reason):
            return tests, missing
    return "", reason


def layer_of(node: str) -> str:
    """Return the folder below ``tests`` that a test lies in; ``repository`` for what looks at the whole."""
    parts = node.partition("::")[0].split("/")[:-1]
    return (parts[1:] or ["repository"])[0] if parts[:1] == ["tests"] else (parts or ["repository"])[0]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def not_tested(
    skipped: Iterable[str], modules: Mapping[str, str], deselected: int, expression: str
) -> list[str]:
    """Word what a run left out.

    Parameters
    ----------
    skipped : iterable of str
        The reason of each skipped test.
    modules : mapping
        Files that were skipped as a whole, with their reasons: nobody knows how many tests are in them.
    deselected : int
        How many tests the command line left out.
    expression : str
        What it said.

    Returns
    -------
    list of str
        One line each, the largest number first; empty when nothing was left out.
    """
    counted = Counter(
        map(in_words, skipped)
    ).items()  # equal numbers in one order, whichever worker was first
    lines = [
        f"{_count(number, 'test')} {tests} ({missing})".replace("  ", " ")
        for (tests, missing), number in sorted(counted, key=lambda item: (-item[1], not item[0][0], item[0]))
    ]
    lines += [f"all tests of {path} ({in_words(reason)[1]})" for path, reason in sorted(modules.items())]
    if deselected:
        lines.append(
            f"{_count(deselected, 'test')} left out by choice{f' ({expression})' if expression else ''}"
        )
    return lines


def _reason(report: Any) -> str:
    """Return why a test was skipped, as it was given."""
    _, _, reason = report.longrepr
    return str(reason).removeprefix("Skipped: ")


class Closing:
    """Counts in every process; the one that the user sees hears of the workers when they end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.seconds: dict[str, float] = defaultdict(float)
        self.tests: dict[str, set[str]] = defaultdict(set)
        self.skipped: list[str] = []
        self.modules: dict[str, str] = {}
        self.deselected = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        layer = layer_of(report.nodeid)
        self.seconds[layer] += report.duration
        self.tests[layer].add(report.nodeid)
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.append(_reason(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.modules[report.nodeid] = _reason(report)

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected += len(items)

    def pytest_sessionfinish(self) -> None:
        if hasattr(
            self.config, "workeroutput"
        ):  # this is a worker of xdist, whose controller collects nothing
            self.config.workeroutput[_DESELECTED] = self.deselected
            self.config.workeroutput[_NOT_COLLECTED] = self.modules

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        told = getattr(node, "workeroutput", {})  # a worker that crashed tells nothing
        self.deselected = max(self.deselected, told.get(_DESELECTED, 0))  # each worker collects everything
        self.modules.update(told.get(_NOT_COLLECTED, {}))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> Generator[None, None, None]:
        yield  # after everything else that is said, so that it stands in the last lines
        if not self.seconds:
            return
        say = terminalreporter
        say.section("time per layer, setting up included")
        for layer, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            say.line(f"{seconds:8.1f} s  {layer} ({_count(len(self.tests[layer]), 'test')})")
        expression = self.config.getoption("markexpr") or self.config.getoption("keyword")
        lines = not_tested(self.skipped, self.modules, self.deselected, expression)
        if lines:
            say.section("not tested here")
            for line in lines:
                say.line(line, yellow=True)
        else:
            say.line("Nothing was left out.")


def pytest_configure(config: pytest.Config) -> None:
    """Start counting."""
    config.pluginmanager.register(Closing(config), "atlas-closing")
