"""Run llama.cpp's own server tests against ``atlas-tool serve``, and compare with what is expected.

    python tools/llama_server_tests.py                        # all of them: some 15 minutes
    python tools/llama_server_tests.py test_completion        # files whose names hold this
    python tools/llama_server_tests.py --control build/llama-server/0.3.36/llama-server
    python tools/llama_server_tests.py --update               # write what came out into the list

The tests come with the source of the installed release of llama-cpp-python (``vendor/llama.cpp/tools/server/tests``),
which pip fetches once. Beside what ``make test`` installs they need ``pip install requests``. They want models from
the network; here they get models with random weights and a tokenizer of the same kind, so a test that looks for words
in an answer fails with every server. The tests of embeddings get a decoder instead of their encoder, which is refused
here: a memory belongs to a model that generates. What llama-server itself passes with these models is the measure:
``--control`` runs it and writes down which tests those are.

The list is ``tests/server/llama_server_expected.txt``: a line for each test that llama-server passes here, ``pass`` or
``fail`` with the reason. Exit code 1: a test of the list does otherwise than it says.
"""

from __future__ import annotations

import argparse
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools import build_llama  # noqa: E402

EXPECTED = ROOT / "tests" / "server" / "llama_server_expected.txt"
#: Where the tests and the models are.
FOLDER = ROOT / "build" / "llama-server-tests"
#: What the tests ask for from the network -> the file that they get.
MODELS = {
    "ggml-org/test-model-stories260K": "stories.gguf",
    "ggml-org/models:tinyllamas": "stories.gguf",
    "ggml-org/test-model-stories260K-infill": "infill.gguf",
    "ggml-org/stories15M_MOE": "experts.gguf",
    "ggml-org/models:bert-bge-small": "stories.gguf",
    "ggml-org/models:jina-reranker-v1-tiny-en": "bert.gguf",
    "ggml-org/tinygemma3-GGUF": "stories.gguf",
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Stands in for the package that downloads: there is no network.
WGET = 'def download(url, out=None):\n    raise OSError("no network")\n'
#: llama.cpp's own loads all models first, among them some that only llama-server can load.
CONFTEST = """\
import os

import pytest
from utils import server_instances


@pytest.fixture(scope="session", autouse=True)
def configure_worker_port(request):
    worker = getattr(request.config, "workerinput", {}).get("workerid", "master")
    os.environ["PORT"] = str({port} + 10 * (0 if worker == "master" else int(worker[2:])))


@pytest.fixture(autouse=True)
def stop_server_after_each_test():
    yield
    for server in set(server_instances):
        server.stop()
"""
#: Takes the place of the binary: models by their files, no network; what follows is the server's own command line.
LAUNCHER = """\
#!{python}
import os, sys

MODELS, FOLDER, SERVER, ROUTES = {models!r}, {folder!r}, {server!r}, {routes!r}
given, found, repository, file = sys.argv[1:], [], None, ""
while given:
    word = given.pop(0)
    if word == "--hf-repo":
        repository = given.pop(0)
    elif word == "--hf-file":
        file = given.pop(0)
    elif word != "--offline":
        found.append(word)
if repository is not None:
    names = [repository.partition(":")[0], repository + ":" + file.partition("/")[0]]
    model = next((MODELS[name] for name in reversed(names) if name in MODELS), None)
    if model is None:
        sys.exit("no network: " + repository)
    found += ["--model", os.path.join(FOLDER, model)]
elif not ROUTES and "--model" not in found:  # llama-server would choose among several models
    found += ["--model", os.path.join(FOLDER, "stories.gguf")]
os.execv(SERVER[0], [*SERVER, *found])
"""


# --- models -------------------------------------------------------------------------------------------------------


def pieces(count: int) -> tuple[list[str], list[float], list[int]]:
    """Return the tokens, scores and types of a SentencePiece vocabulary: controls, bytes, letters, pairs, fillers."""
    tokens, types = ["<unk>", "<s>", "</s>"], [2, 3, 3]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [6] * 256
    letters = [chr(code) for code in range(33, 127)]
    normal = ["\u2581", *letters]
    words = ("the", "and", "to", "of", "is", "in", "it", "was", "he", "she")
    normal += ["\u2581" + letter for letter in "abcdefghijklmnopqrstuvwxyz"] + ["\u2581t", "th", "he"]
    normal += [part for word in words for part in (word[:2], "\u2581" + word)]
    tokens += list(dict.fromkeys(normal))
    tokens += [f"\u2581w{number}" for number in range(count - len(tokens))]
    types += [1] * (len(tokens) - len(types))
    scores = [0.0] * 259 + [-float(number) for number in range(len(tokens) - 259)]
    return tokens[:count], scores[:count], types[:count]


def make_models(folder: Path) -> None:
    """Write the models, once."""
    from atlas_kit.formats.gguf.edit import Delete, Set, edit_metadata
    from tools.make_random_model import make_model

    folder.mkdir(parents=True, exist_ok=True)
    tokens, scores, types = pieces(512)
    common = [
        Set("tokenizer.ggml.model", "llama"),
        Set("tokenizer.ggml.tokens", tokens),
        Set("tokenizer.ggml.scores", scores, element_type=6, type=9),
        Set("tokenizer.ggml.token_type", types),
        Set("tokenizer.ggml.bos_token_id", 1),
        Set("tokenizer.ggml.eos_token_id", 2),
        Set("tokenizer.chat_template", CHATML),
        Delete("tokenizer.ggml.eot_token_id"),
        Delete("tokenizer.ggml.pre"),
        Delete("tokenizer.ggml.merges"),
    ]
    gaps = [
        Set(f"tokenizer.ggml.fim_{name}_token_id", 500 + at, 4)
        for at, name in enumerate(("pre", "suf", "mid"))
    ]
    for name, arch, more in (
        ("stories", "llama", []),
        ("infill", "llama", gaps),
        ("experts", "qwen2moe", []),
    ):
        path = folder / f"{name}.gguf"
        if not path.exists():
            made = make_model(path.with_suffix(".new"), arch, context=4096)
            edit_metadata(made, [*common, *more])
            made.rename(path)
    if not (folder / "bert.gguf").exists():
        make_model(folder / "bert.gguf", "bert")


# --- running ------------------------------------------------------------------------------------------------------


def prepare(folder: Path, server: list[str], *, routes: bool, port: int) -> Path:
    """Return the folder with the tests, which start ``server``; ``routes``: also without a model."""
    version = build_llama.server_version()
    source = folder / version
    if not source.is_dir():
        with tempfile.TemporaryDirectory() as place:
            archive = build_llama.download(version, Path(place), dict(os.environ))
            unpacked = build_llama.unpack(archive, Path(place))
            source.parent.mkdir(parents=True, exist_ok=True)
            for part in ("tools/server/tests", "models/templates"):
                target = source / part
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(unpacked / part, target)  # the other one may be on another disk
    make_models(folder / "models")
    tests = source / "tools" / "server" / "tests"
    (tests / "conftest.py").write_text(CONFTEST.replace("{port}", str(port)), encoding="utf-8")
    (tests / "wget.py").write_text(WGET, encoding="utf-8")
    (tests / "tmp").mkdir(exist_ok=True)
    launcher = tests / f"launcher-{port}"
    launcher.write_text(
        LAUNCHER.format(
            python=sys.executable, models=MODELS, folder=str(folder / "models"), server=server, routes=routes
        ),
        encoding="utf-8",
    )
    launcher.chmod(0o755)
    return launcher


def run(launcher: Path, names: list[str], workers: int, more: list[str]) -> dict[str, str]:
    """Run tests; return each one's outcome: ``passed``, ``failed`` or ``skipped``."""
    tests = launcher.parent
    files = sorted(path for path in (tests / "unit").glob("test_*.py") if _wanted(path.stem, names))
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--junitxml", report,
            *(["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []), *more, *files,
        ]  # fmt: skip
        env = {
            **os.environ, "LLAMA_SERVER_BIN_PATH": str(launcher), "PYTHONPATH": str(ROOT), "LLAMA_CACHE": place,
            "HF_HUB_OFFLINE": "1", "ATLAS_DRAIN_SECONDS": "1",
        }  # fmt: skip
        with open(tests / "last.log", "wb") as log:
            subprocess.run(command, cwd=tests, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
        if not report.exists():
            raise SystemExit(f"pytest did not run: see {tests / 'last.log'}")
        return outcomes(report)


def _wanted(stem: str, names: list[str]) -> bool:
    return not names or any(name in stem for name in names)


def outcomes(report: Path) -> dict[str, str]:
    """Return the outcomes in a report in JUnit's form; a test that did well and then ended badly has failed."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('unit.')}::{case.get('name')}"
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        if found.get(name) != "failed":
            found[name] = outcome
    return found


# --- the list -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What a test is expected to do, and why it fails where it does."""

    passes: bool
    reason: str = ""


def read_list(path: Path = EXPECTED) -> dict[str, Expected]:
    """Return the list: the tests that llama-server passes with these models."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        word, _, rest = line.partition(" ")
        if word in ("pass", "fail"):
            name, _, reason = rest.strip().partition("  # ")
            found[name] = Expected(word == "pass", reason)
    return found


def write_list(tests: Mapping[str, Expected], path: Path = EXPECTED) -> None:
    """Write the list."""
    passed = sum(one.passes for one in tests.values())
    lines = [
        "# llama.cpp's own server tests that llama-server passes with random models; tools/llama_server_tests.py runs",
        f"# them against atlas-tool serve: {passed} of {len(tests)} pass. Behind the others stands why not.",
    ]
    for name, one in sorted(tests.items()):
        lines.append(f"pass {name}" if one.passes else f"fail {name}  # {one.reason}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def compare(tests: Mapping[str, Expected], found: Mapping[str, str]) -> list[str]:
    """Return a sentence for each test that did otherwise than expected."""
    said = []
    for name, outcome in sorted(found.items()):
        expected = tests.get(name)
        if expected is not None and expected.passes != (outcome == "passed"):
            said.append(f"{name} {'failed' if expected.passes else 'passes now'}")
    return said


def table(tests: Mapping[str, Expected], found: Mapping[str, str]) -> str:
    """Return the counts for each file: ours, and of those that llama-server passes."""
    files = collections.defaultdict(collections.Counter)
    for name, outcome in found.items():
        counter = files[name.partition("::")[0]]
        counter[outcome] += 1
        counter["measure"] += name in tests
        counter["reached"] += name in tests and outcome == "passed"
    rows = [f"{'file':32}{'passed':>8}{'failed':>8}{'skipped':>9}   of llama-server's"]
    total = sum(files.values(), collections.Counter())
    for name, counter in [*sorted(files.items()), ("all", total)]:
        rows.append(
            f"{name:32}{counter['passed']:8}{counter['failed']:8}{counter['skipped']:9}"
            f"{counter['reached']:8} / {counter['measure']}"
        )
    return "\n".join(rows)


def main() -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only files whose names hold one of these")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument(
        "--control", metavar="BINARY", help="run this llama-server, and write down what it passes"
    )
    parser.add_argument("--update", action="store_true", help="write what came out into the list")
    parser.add_argument("-n", type=int, default=2, dest="workers", help="tests at a time")
    parser.add_argument("--port", type=int, default=18200, help="the first of the ports")
    parser.add_argument("-k", help="only tests that match this expression, as in pytest")
    options = parser.parse_args()
    server = (
        [options.control]
        if options.control
        else [sys.executable, str(ROOT / "tools" / "atlas_tool.py"), "serve"]
    )
    launcher = prepare(options.folder, server, routes=bool(options.control), port=options.port)
    found = run(launcher, options.names, options.workers, ["-k", options.k] if options.k else [])
    tests = read_list()
    if options.control:
        passed = {name for name, outcome in found.items() if outcome == "passed"}
        kept = {name: one for name, one in tests.items() if name not in found or name in passed}
        write_list({**{name: Expected(False, "not tried yet") for name in passed}, **kept})
        print(table(read_list(), found))
        return 0
    print(table(tests, found))
    said = compare(tests, found)
    if options.update:
        changes = {
            name: Expected(found[name] == "passed", one.reason or "not looked into yet")
            for name, one in tests.items()
            if name in found
        }
        write_list({**tests, **changes})
        said = []
    print("\n".join(said))
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
