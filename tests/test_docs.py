"""The documents are true: generated parts are fresh, every command is described, every example runs."""

from __future__ import annotations

import html
import json
import posixpath
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atlas_kit import MemoryFile
from atlas_kit.cli._group import COMMANDS, group
from atlas_kit.episodes import Episodes, Kind
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.vocabulary import Vocabulary
from atlas_kit.persistence.episode_entries import put_episodes
from tests.conftest import SAMPLES
from tests.waiting import LONG, free_port
from tools import make_sample_data as maker
from tools import reference, site_hooks
from tools import sample_writers as writers

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
COMMAND_PAGE = REPOSITORY / "docs" / "commands.md"
GUIDE = sorted((REPOSITORY / "docs").rglob("*.md"))
PAGES = [README, REPOSITORY / "ARCHITECTURE.md", *sorted((REPOSITORY / "formats").glob("*.md")), *GUIDE]
MARKDOWN = sorted(
    {*PAGES, *REPOSITORY.glob("C*.md"), *REPOSITORY.glob("*/README.md"), *REPOSITORY.glob("tools/*/*.md")}
)


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.slow
def test_generated_parts_are_fresh():
    command = [sys.executable, "-m", "cogapp", "--check", "--verbosity=1", "-I", ".", *map(name_of, PAGES)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, f"run `make docs`:\n{ran.stdout}{ran.stderr}"


# --- help texts -------------------------------------------------------------------------------------------


def help_blocks(name: str) -> list[str]:
    """Return a command's own help as paragraphs."""
    command = group.get_command(None, name)
    assert command is not None
    assert command.help
    return [block.replace("\b", "").strip() for block in command.help.split("\n\n")]


def examples(name: str | None) -> list[str]:
    """Return the lines of the block ``Examples:`` of a help text."""
    command = group if name is None else group.get_command(None, name)
    blocks = [block.replace("\b", "").strip() for block in (command.help or "").split("\n\n")]
    found = [block for block in blocks if block.startswith("Example")]
    return [line.strip() for block in found for line in block.splitlines()[1:]]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_sentence_a_paragraph_and_an_example(name):
    blocks = help_blocks(name)
    assert re.fullmatch(r"[A-Z][^\n]{10,90}\.", blocks[0]), "the first line is one sentence"
    assert len(blocks[1]) > 60, "then a paragraph that explains it"
    assert examples(name), "then an example that runs"
    assert all(f"atlas-tool {name}" in line for line in examples(name))


#: Files that the examples name, and the sample that stands in for each.
STAND_INS = {
    "llama-7b_memory.atlas": "atlas/llama-7b_memory.atlas",
    "llama-7b_memory.atlas.bak": "atlas/llama-7b_memory.atlas",
    "llama-7b_memory_1795311908.atlas.bak": "atlas/llama-7b_memory.atlas",
    "backups/old.atlas": "atlas/chat.atlas",
    "before.atlas": "atlas/llama-7b_memory.atlas",
    "after.atlas": "atlas/all-types.atlas",
    "monday.atlas": "atlas/llama-7b_memory.atlas",
    "tuesday.atlas": "atlas/all-types.atlas",
    "broken.atlas": "broken/truncated.atlas",
    "broken.gguf": "broken/wrong-tensor-count.gguf",
    "models/model.gguf": "gguf/tiny.gguf",
    "pass.txt": "text/passphrase.txt",
    "new.txt": "text/prefs.json",
    "secret.atlas": "atlas/secret.atlas",
}
#: Examples that find something, as they should.
FINDS = {
    "atlas-tool diff before.atlas after.atlas",
    "atlas-tool diff model-f16.gguf model-q8_0.gguf --html compared.html",
    "atlas-tool repair broken.atlas --dry-run",
    "atlas-tool repair broken.atlas -o rescued.atlas",
    "atlas-tool repair broken.gguf -o mended.gguf",
}
#: Files that would be in the way of a command's examples: what they make, what their `*` must not find.
IN_THE_WAY = {
    "convert": ["memory.json", "secret.atlas"],
    "encrypt": ["secret.atlas"],
    "compress": ["model-q8_0.gguf"],
    "merge": ["broken.atlas", "secret.atlas"],
}


def make_model(kind: str) -> bytes:
    """Return the tiny model with a chat template, its output matrix as 16-bit floats or in q8_0."""
    template = ("tokenizer.chat_template", "str", "{{ messages }}")
    *others, last = maker.weights()
    encode, code = {"f16": (writers.f16, 1), "q8_0": (writers.q8_0, 8)}[kind]
    data = encode(struct.unpack(f"<{len(last.data) // 4}f", last.data))
    kv = [*maker.architecture("tiny"), *maker.vocabulary(), template]
    return writers.Gguf(kv, [*others, writers.Tensor(last.name, last.dims, code, data)]).build()


def make_talk(path, model):
    """Write what was read and said, in the tokens of a model: as many letters as possible in each."""
    with GGUFFile.open(model) as file:
        words = Vocabulary(file)
    numbers = {words.piece(token): token for token in reversed(range(len(words)))}
    episodes = Episodes(words.piece, len(words))
    for kind, source, text in (
        (Kind.DOCUMENT, "diary.txt", b"A day like others.\n"),
        (Kind.USER, "", b"The key lies under the blue stone.\n"),
        (Kind.ASSISTANT, "", b"I will remember that.\n"),
    ):
        episodes.begin(kind, source, 1_700_000_000_000)
        while text:
            size = next(size for size in range(len(text), 0, -1) if text[:size] in numbers)
            episodes.append([numbers[text[:size]]])
            text = text[size:]
    with MemoryFile.edit(path, create=True) as memory:
        put_episodes(memory, episodes.arrays())


TINY = "sample_data/models/tiny-python.gguf"
#: Commands whose examples run a model.
WITH_MODEL = {"run", "serve", "learn", "ask", "forget", "perplexity", "recall", "compress"}


@pytest.fixture(
    params=[
        None,
        *(pytest.param(c, marks=pytest.mark.model) if c in WITH_MODEL else c for c in COMMANDS),
    ],
    ids=str,
)
def name(request):
    """Return each command's name; ``None`` for the tool itself."""
    return request.param


@pytest.fixture
def playground(name, samples, tmp_path):
    """Return a folder with the files that the examples name, and an ``atlas-tool`` to put on the path."""
    folder = tmp_path / "playground"
    folder.mkdir()
    (folder / "sample_data").symlink_to(samples)
    for file, sample in STAND_INS.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples / sample, folder / file)
    for kind in ("f16", "q8_0"):
        (folder / f"model-{kind}.gguf").write_bytes(make_model(kind))
    shutil.copy(folder / "model-f16.gguf", folder / "model.gguf")
    json_text = maker.output_of("atlas-tool convert atlas/llama-7b_memory.atlas - --to json")
    (folder / "memory.json").write_text(json_text, encoding="utf-8")
    with MemoryFile.edit(folder / "notes.atlas", create=True) as memory:
        memory.update({"greeting": "hello", "draft-1": "To do", "embedding": np.arange(8.0)})
    make_talk(folder / "talk.atlas", samples / "models" / "tiny-python.gguf")
    said = [{"role": "user", "content": "Hello"}]
    (folder / "messages.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "talk.jsonl").write_text(json.dumps({"key": "talk", "messages": said}), encoding="utf-8")
    if name == "ask":
        learned = f"atlas-tool learn {TINY} sample_data/documents/statistics.py -m code.atlas --store-only"
        assert reference.run(learned, folder).returncode == 0
    if name == "join":
        split = "atlas-tool split model.gguf --max-tensors 4 -o shards/model"
        (folder / "shards").mkdir()
        assert reference.run(split, folder).returncode == 0
        (folder / "parts").mkdir()
        data = (folder / "model.gguf").read_bytes()
        for part, piece in (("aa", data[:3000]), ("ab", data[3000:])):
            (folder / "parts" / f"model.gguf.{part}").write_bytes(piece)
    for file in IN_THE_WAY.get(name, []):
        (folder / file).unlink()
    (folder / ".config" / "fish" / "completions").mkdir(parents=True)
    tool = folder / "bin" / "atlas-tool"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m atlas_kit "$@"\n')
    tool.chmod(0o755)
    return folder


def serve_for_a_moment(line, folder, env):
    """Start a server on a free port, and end it as soon as it listens."""
    line = "exec " + re.sub(r"--port \d+", "--port 0", line)
    with subprocess.Popen(
        ["bash", "-c", line], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            said = []
            for text in server.stderr:
                said.append(text)
                if "listening at" in text:
                    break
            server.terminate()
            rest = server.communicate(timeout=LONG)[1]
        finally:
            server.kill()
        assert server.returncode == 0, f"$ {line}\n{''.join(said)}{rest}"


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("bash") is None, reason="the examples are lines for a shell, and there is none"
)
def test_examples_run(name, playground):
    env = reference.environment(HOME=str(playground), ATLAS_PASSPHRASE="")
    env["PATH"] = f"{playground / 'bin'}:{env['PATH']}"
    for line in examples(name):
        # what `eval` would load into another shell is only printed here
        line = re.sub(r'eval "\$\((.*?)\)"', r"\1", line)
        if line.startswith("atlas-tool serve"):
            serve_for_a_moment(line, playground, env)
            continue
        ran = subprocess.run(
            ["bash", "-c", line],
            cwd=playground,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == (1 if line in FINDS else 0), f"$ {line}\n{ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    command = group.get_command(None, name)
    silent = [p.name for p in command.params if p.param_type_name == "option" and not getattr(p, "help", "")]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_on_the_page_of_commands(name):
    assert f"\n## atlas-tool {name}\n" in COMMAND_PAGE.read_text(encoding="utf-8")


# --- README and the pages of the site ------------------------------------------------------------------------


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


#: Pages whose examples talk to a server that they start themselves.
WITH_SERVER = [path for path in GUIDE if path.name == "serve-a-model.md"]
#: First words of lines that need more than a test has: a container runtime, a cluster, half an hour.
DEPLOYING = ("docker", "kubectl", "python")
WITH_PYTHON = [path for path in (README, *GUIDE) if code_blocks(path, "python") and path not in WITH_SERVER]
WITH_SHELL = [path for path in (README, *GUIDE) if code_blocks(path, "sh") and path not in WITH_SERVER]


@pytest.mark.model
@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_on_a_page_runs(path, samples, monkeypatch):
    monkeypatch.chdir(samples.parent)
    names: dict[str, object] = {"__name__": path.stem}
    for block in code_blocks(path, "python"):
        exec(compile(block, path.name, "exec"), names)


def test_python_is_found_on_the_pages():
    assert {README.name, "use-it-from-python.md", "compare-two-memories.md"} <= {p.name for p in WITH_PYTHON}


def shell_lines(path: Path) -> list[str]:
    """Return the lines of the blocks ``sh``, without remarks: what a reader is to type."""
    blocks = code_blocks(path, "sh")
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line]


def page_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which ``atlas-tool`` is this checkout's, below ``folder``."""
    tool = folder / "bin" / "atlas-tool"
    if not tool.exists():
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m atlas_kit "$@"\n')
        tool.chmod(0o755)
    env = reference.environment(HOME=str(folder))
    return {**env, "PATH": f"{tool.parent}:{env['PATH']}"}


@pytest.mark.model
@pytest.mark.parametrize("path", WITH_SHELL, ids=name_of)
def test_shell_lines_on_a_page_run(path, samples):
    """Lines for atlas-tool run one after the other; those that install something are for other tests."""
    folder = samples.parent
    shutil.copy(samples / "models" / "tiny-python.gguf", folder / "MODEL.gguf")
    shutil.copy(samples / "text" / "chat.txt", folder / "handbook.txt")
    for document in [folder / "handbook.txt", *(samples / "documents").glob("*.py")]:
        enough = document.read_text(encoding="utf-8")[:4_000]
        document.write_text(enough, encoding="utf-8")
    for line in shell_lines(path):
        first = line.split()[0]
        assert first in {"atlas-tool", "cp", "make", "pip", "sudo", *DEPLOYING}, line
        if line.startswith("atlas-tool serve"):
            serve_for_a_moment(f"{line} --port 1", folder, page_environment(folder))
        elif first in {"atlas-tool", "cp"}:
            ran = reference.run(line, folder)
            assert ran.returncode == 0, f"$ {line}\n{ran.stdout}"


class Reader:
    """Somebody who types what is on a page about the server, from its beginning to its end.

    A line that starts a server ends the one before it, as Ctrl-C would. All of them listen at a free port.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.env = folder, None, page_environment(folder)
        self.names: dict[str, object] = {"__name__": "page"}
        self.port = str(free_port())

    def read(self, language: str, block: str) -> None:
        block = block.replace("8080", self.port)
        if language == "python":
            exec(compile(block, block.splitlines()[0], "exec"), self.names)
        elif language == "toml":
            (self.folder / "server.toml").write_text(block, encoding="utf-8")
        elif "atlas-tool serve" in block:
            self.stop()
            self.start(block.strip())
        elif not block.startswith("make "):
            script = re.sub(r"^curl ", "curl --silent --show-error --fail ", block, flags=re.M)
            self.shell(f"set -e\n{script}")

    def shell(self, script: str) -> None:
        ran = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{script}\n{ran.stdout}{ran.stderr}"

    def start(self, line: str) -> None:
        assert "\n" not in line
        line = (
            re.sub(r"(?=atlas-tool)", "exec env ", line) if line.startswith("atlas") else f"exec env {line}"
        )
        self.server = subprocess.Popen(
            ["bash", "-c", f"{line} --port {self.port}"],
            cwd=self.folder, env=self.env, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = []
        for text in self.server.stderr:
            said.append(text)
            if "listening at" in text:
                return
        raise AssertionError(f"$ {line}\n{''.join(said)}")

    def stop(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            said = self.server.communicate(timeout=120)[1]
            assert self.server.returncode == 0, said


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(
    shutil.which("bash") is None, reason="the examples are lines for a shell, and there is none"
)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples ask with curl, and there is none")
@pytest.mark.parametrize("path", WITH_SERVER, ids=name_of)
def test_a_page_about_the_server_is_true(path, samples):
    pytest.importorskip("openai", reason="openai is not installed")
    reader = Reader(samples.parent)
    try:
        blocks = re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
        for language, block in blocks:
            assert language in {"sh", "python", "toml"}
            reader.read(language, block)
        reader.stop()
    finally:
        if reader.server is not None:
            reader.server.kill()
        client = reader.names.get("client")
        if client is not None:
            client.close()
    assert (samples.parent / "memories" / "tiny-python_memory.atlas").exists()


def test_readme_is_short():
    assert README.stat().st_size < 12_000


@pytest.mark.parametrize("path", [README, REPOSITORY / "ARCHITECTURE.md"], ids=name_of)
def test_the_tree_is_real(path):
    (tree,) = (block for block in code_blocks(path, "text") if block.startswith("atlas_kit/"))
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        named = REPOSITORY.joinpath(*folders)
        assert named.exists(), f"{named} is in the file tree of {path.name}"
        assert named.is_dir() == name.endswith("/")


def test_readme_names_every_top_level_folder():
    text = README.read_text(encoding="utf-8")
    for folder in ("atlas_kit", "docs", "notebooks", "tools", "formats", "tests", "sample_data"):
        assert re.search(rf"^{folder}/", text, re.M), folder


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts and the site name them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text) + re.findall(r'src="([^":]+)"', text)
    missing = []
    for target in targets:
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        if not page.exists() or (anchor and anchor not in anchors(page)):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_are_there(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+\.(?:py|js|md|sh|toml|yml))`", text))
    assert len(named) > 5
    folders = [
        REPOSITORY / name
        for name in ("atlas_kit", "formats", "tests", "tools", "notebooks", "docs", ".github")
    ]
    there = [f"/{name_of(path)}" for folder in folders for path in folder.rglob("*.*")]
    there += [f"/{name_of(path)}" for path in REPOSITORY.glob("*.*")]
    placeholder = {name for name in named if "NAME" in name or "NN" in name}
    missing = [n for n in named - placeholder if not any(path.endswith(f"/{n}") for path in there)]
    assert missing == []


def test_exit_codes_are_documented_once_and_true(run_tool, samples):
    assert "Exit codes" in COMMAND_PAGE.read_text(encoding="utf-8")
    assert run_tool("validate", "atlas/chat.atlas", cwd=samples).returncode == 0
    assert run_tool("validate", "broken/bit-flip.atlas", cwd=samples).returncode == 1
    assert run_tool("validate", "no-such-file.atlas", cwd=samples).returncode == 2
    assert run_tool("no-such-command", cwd=samples).returncode == 2


def test_picture_is_small():
    assert 2_000 < (SAMPLES / "expected" / "inspect.svg").stat().st_size < 120_000


# --- the site -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the built site; what mkdocs warns of is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = reference.environment(NO_MKDOCS_2_WARNING="1")
    ran = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def built_pages(site: Path) -> dict[str, str]:
    return {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")
    }


@pytest.mark.slow
def test_the_site_has_every_page(site):
    expected = {
        name.replace(".md", ".html") for name in site_hooks.site_paths().values() if name.endswith(".md")
    }
    assert set(built_pages(site)) == expected | {"404.html"}
    assert len(expected) > 25


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    for name, text in built_pages(site).items():
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", text)
        assert loaded, name
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == [], name
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(site):
    pages = built_pages(site)
    ids = {name: set(re.findall(r'\bid="?([^"\s>]+)', text)) for name, text in pages.items()}
    for name, text in pages.items():
        if name == "404.html":
            continue
        for address in re.findall(r'<a\b[^>]*?href="([^"]*)"', text):
            file, _, anchor = html.unescape(address).partition("#")
            if re.match(r"[a-z]+:", file):
                continue
            goal = posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            assert (site / goal).exists(), f"{address} in {name}"
            assert not anchor or anchor in ids.get(goal, {anchor}), f"{address} in {name}"


@pytest.mark.slow
def test_widgets_are_pages_to_look_around_in(site):
    pages = built_pages(site)
    for name, tabs in (("05_real_model", ("Curves", "Matrix")), ("06_comparing_memories", ("Behaviour",))):
        page = pages[f"notebooks/{name}.html"]
        assert 'class="ak"' in page or "class=ak" in page
        for tab in tabs:
            assert re.search(rf"<input type=\"?radio[^>]*>\s*{tab}|>{tab}</", page), tab


@pytest.mark.slow
def test_what_a_solution_gives_is_folded_once_and_in_the_ink_of_the_page(site):
    page = built_pages(site)["notebooks/05_real_model.html"]
    solution = page[page.index("Solution</summary>") :]
    assert "perplexity 10." in solution[: solution.index("</details>")]
    assert "What it gives" not in page
    ink = re.findall(r"\.output[^{}]*\{[^}]*", (site / "site.css").read_text(encoding="utf-8"))
    assert ink
    assert not [
        rule for rule in ink if re.search(r"#[0-9a-f]{3}", rule)
    ]  # one theme's colour is lost in the other


def test_empty_lines_in_what_a_cell_gives_neither_end_it_nor_are_lost():
    one = site_hooks._in_one_piece("<pre>a\n\n  \nb</pre>")
    assert "\n\n" not in one
    assert html.unescape(one) == "<pre>a\n\n  \nb</pre>"


@pytest.mark.slow
def test_equations_are_drawn(site):
    pages = built_pages(site)
    assert "<math" in pages["how-it-works.html"]
    assert "<math" in pages["notebooks/03_learning_at_test_time.html"]
    assert not [name for name, text in pages.items() if "arithmatex" in text]


def test_what_the_converter_of_equations_does_not_know_is_drawn():
    latex = r"\[\min_{\mathcal M} \lVert \mathcal{L}_t \rVert \tag{9}\]"
    drawn = site_hooks.with_mathml(f'<p>a</p><div class="arithmatex">{latex}</div>')
    assert drawn.startswith('<p>a</p><math xmlns="http://www.w3.org/1998/Math/MathML" display="block">')
    assert "<munder><mo>min</mo><mrow><mi>ℳ</mi></mrow></munder>" in drawn
    assert drawn.count('<mo stretchy="false">') == 2
    assert "<mi>ℒ</mi>" in drawn
    assert "(9)" in drawn


@pytest.mark.slow
def test_nothing_of_the_workshop_is_left_on_a_page(site):
    assert not [
        name for name, text in built_pages(site).items() if "[[[" in re.sub(r"<(pre|code).*?</\1>", "", text)
    ]


class TestLinksInTheSite:
    @pytest.mark.parametrize(
        ("home", "link", "becomes"),
        [
            ("docs/index.md", "[a](../formats/README.md)", "[a](formats/index.md)"),
            ("docs/how-to/rescue-a-file.md", "[a](../../formats/gguf.md#b)", "[a](../formats/gguf.md#b)"),
            (
                "docs/how-to/rescue-a-file.md",
                "![a](../../sample_data/expected/explorer.png)",
                "![a](../pictures/explorer.png)",
            ),
            ("notebooks/README.md", "[01](01_memory_file.ipynb)", "[01](01_memory_file.md)"),
            ("CONTRIBUTING.md", "[a](ARCHITECTURE.md#b)", "[a](architecture.md#b)"),
            ("ARCHITECTURE.md", "[a](formats)", "[a](formats/index.md)"),
            ("formats/README.md", "[a `b`](../atlas_kit/errors.py)", "a `b`"),
            ("formats/gguf.md", "[a](#b) [c](https://d.org)", "[a](#b) [c](https://d.org)"),
            ("formats/gguf.md", "[a](no-such-file.md)", "[a](no-such-file.md)"),
            ("formats/gguf.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
            ("docs/index.md", "<!-- [[[cog\nx()\n]]] -->\ny\n<!-- [[[end]]] -->\n", "y\n"),
        ],
    )
    def test_they_lead_to_its_pages(self, home, link, becomes):
        assert site_hooks.in_site(link, home) == becomes
