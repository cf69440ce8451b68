"""The documents are true: generated parts are fresh, every command is described, every example runs."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atlas_kit import MemoryFile
from atlas_kit.cli._group import COMMANDS, group
from tests.conftest import SAMPLES
from tools import make_sample_data as maker
from tools import reference
from tools import sample_writers as writers

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "ARCHITECTURE.md", *sorted((REPOSITORY / "formats").glob("*.md"))]
MARKDOWN = sorted({*PAGES, *REPOSITORY.glob("C*.md"), *REPOSITORY.glob("*/README.md")})


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


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
}
#: Examples that find something, as they should.
FINDS = {
    "atlas-tool diff before.atlas after.atlas",
    "atlas-tool repair broken.atlas --dry-run",
    "atlas-tool repair broken.atlas -o rescued.atlas",
}
#: Files that would be in the way of a command's examples: what they make, what their `*` must not find.
IN_THE_WAY = {"convert": ["memory.json"], "compress": ["model-q8_0.gguf"], "merge": ["broken.atlas"]}


def make_model(kind: str) -> bytes:
    """Return the tiny model with a chat template, its output matrix as 16-bit floats or in q8_0."""
    template = ("tokenizer.chat_template", "str", "{{ messages }}")
    *others, last = maker.weights()
    encode, code = {"f16": (writers.f16, 1), "q8_0": (writers.q8_0, 8)}[kind]
    data = encode(struct.unpack(f"<{len(last.data) // 4}f", last.data))
    kv = [*maker.architecture("tiny"), *maker.vocabulary(), template]
    return writers.Gguf(kv, [*others, writers.Tensor(last.name, last.dims, code, data)]).build()


#: Commands whose examples run a model.
WITH_MODEL = {"run", "learn", "perplexity", "recall"}


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
    for file in IN_THE_WAY.get(name, []):
        (folder / file).unlink()
    (folder / ".config" / "fish" / "completions").mkdir(parents=True)
    tool = folder / "bin" / "atlas-tool"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m atlas_kit "$@"\n')
    tool.chmod(0o755)
    return folder


@pytest.mark.skipif(
    shutil.which("bash") is None, reason="the examples are lines for a shell, and there is none"
)
def test_examples_run(name, playground):
    env = reference.environment(HOME=str(playground), ATLAS_PASSPHRASE="")
    env["PATH"] = f"{playground / 'bin'}:{env['PATH']}"
    for line in examples(name):
        # what `eval` would load into another shell is only printed here
        line = re.sub(r'eval "\$\((.*?)\)"', r"\1", line)
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
def test_every_command_is_in_the_readme(name):
    assert f"<code>atlas-tool {name}</code>" in README.read_text(encoding="utf-8")


# --- README -----------------------------------------------------------------------------------------------


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.model
def test_readme_python_runs(samples, monkeypatch):
    monkeypatch.chdir(samples.parent)
    blocks = code_blocks(README, "python")
    assert blocks
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_readme_tree_is_real():
    (tree,) = (block for block in code_blocks(README, "text") if block.startswith("atlas_kit/"))
    folders: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        path = REPOSITORY.joinpath(*folders)
        assert path.exists(), f"{path} is in README's file tree"
        assert path.is_dir() == name.endswith("/")


def test_readme_names_every_top_level_folder():
    text = README.read_text(encoding="utf-8")
    for folder in ("atlas_kit", "notebooks", "tools", "formats", "tests", "sample_data"):
        assert re.search(rf"^{folder}/", text, re.M), folder


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text) + re.findall(r'src="([^":]+)"', text)
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_exit_codes_are_documented_once_and_true(run_tool, samples):
    assert "Exit codes" in README.read_text(encoding="utf-8")
    assert run_tool("validate", "atlas/chat.atlas", cwd=samples).returncode == 0
    assert run_tool("validate", "broken/bit-flip.atlas", cwd=samples).returncode == 1
    assert run_tool("validate", "no-such-file.atlas", cwd=samples).returncode == 2
    assert run_tool("no-such-command", cwd=samples).returncode == 2


def test_picture_is_small():
    assert 2_000 < (SAMPLES / "expected" / "inspect.svg").stat().st_size < 120_000
