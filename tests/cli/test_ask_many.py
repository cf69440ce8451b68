"""What many memories have read and heard, searched as one."""

from __future__ import annotations

import json
import shutil

import pytest

from atlas_kit.formats.atlas import MemoryFile

pytest_plugins = ["model_fixtures"]


@pytest.fixture
def ask(run_cli, fake, tmp_path):
    """Run the command on the fake model and a folder of memories, each of one document."""
    fake |= {"n_ctx": 512, "n_batch": 128}
    folder = tmp_path / "memories"
    (folder / "deep").mkdir(parents=True)
    texts = {
        "a": "The bridge was built in 1932 by Anna Rask.\n",
        "deep/b": "The lake is deep and has many fish.\n",
    }
    for name, text in texts.items():
        (tmp_path / "notes.txt").write_text(text)
        place = folder / f"{name}.atlas"
        learned = run_cli(
            "learn", tmp_path / "model.gguf", tmp_path / "notes.txt", "-m", place, "--store-only"
        )
        assert learned.exit_code == 0, learned.stderr

    def run(*arguments, file=folder):
        return run_cli(
            "ask", tmp_path / "model.gguf", *arguments, "-m", file, "--max-tokens", "4", "--recall", "always"
        )

    return run


def test_an_answer_names_the_file_and_the_place(ask, tmp_path):
    first = ask("Who built the bridge?")
    assert first.exit_code == 0, first.stderr
    assert f"from {tmp_path}/memories/a.atlas: {tmp_path}/notes.txt, line 1, 20" in first.stdout
    pieces = json.loads(
        ask("Has the lake many fish?", "--json", file=f"{tmp_path}/memories/**/*.atlas").stdout
    )
    assert pieces["answers"][0]["pieces"][0]["source"].startswith(f"{tmp_path}/memories/deep/b.atlas: ")


def test_what_is_left_out_is_said_and_stops_nothing(ask, tmp_path):
    folder = tmp_path / "memories"
    (folder / "broken.atlas").write_bytes(b"ATLS\2\0\0\0nothing")
    with MemoryFile.edit(folder / "plain.atlas", create=True) as memory:
        memory.set("key", b"value")
    shutil.copy(folder / "a.atlas", folder / "other.atlas")
    with MemoryFile.edit(folder / "other.atlas") as memory:
        memory.model_hash = bytes(range(32))
    result = ask("Who built the bridge?")
    assert result.exit_code == 0, result.stderr
    assert f"left out: {folder}/plain.atlas: it does not say whose it is" in result.stderr
    assert f"left out: {folder}/other.atlas: it is another model's" in result.stderr
    assert f"left out: {folder}/broken.atlas: " in result.stderr
    assert "left out" not in ask("Who built the bridge?", "-q").stderr


def test_nothing_to_ask_about(ask, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "the directory holds no file" in ask("Who?", file=empty).stderr
    with MemoryFile.edit(empty / "plain.atlas", create=True) as memory:
        memory.set("key", b"value")
    result = ask("Who?", file=empty)
    assert result.exit_code == 2
    assert "the file holds nothing that could be asked about" in result.stderr
    with MemoryFile.edit(empty / "other.atlas", create=True) as memory:
        memory.set("key", b"value")
    assert "none of the 2 files holds anything that could be asked about" in ask("Who?", file=empty).stderr


def test_memories_at_addresses(ask, tmp_path):
    pytest.importorskip("fsspec", reason="needs the cloud extra")
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/memories/deep/b.atlas", (tmp_path / "memories" / "deep" / "b.atlas").read_bytes())
    fs.pipe("/memories/a.atlas", (tmp_path / "memories" / "a.atlas").read_bytes())
    many = ask("Has the lake many fish?", file="memory://memories/**")
    assert many.exit_code == 0, many.stderr
    assert "from memory://memories/deep/b.atlas: " in many.stdout.replace("memory:///", "memory://")
    one = ask("Who built the bridge?", file="memory://memories/a.atlas")
    assert one.exit_code == 0, one.stderr
    assert "notes.txt, line 1" in one.stdout


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_INDEX_DIR", str(tmp_path / "cache"))


def test_indexes_are_made_once_and_change_no_answer(ask, run_cli, tmp_path):
    folder = tmp_path / "memories"

    def answers():
        found = json.loads(ask("Who built the bridge?", "--json").stdout)
        for answer in found["answers"]:
            for name in [name for name in answer if "seconds" in name]:
                answer.pop(name)
        return found

    before = answers()
    made = run_cli("ask", tmp_path / "model.gguf", "-m", folder, "--index")
    assert (made.exit_code, made.stdout) == (0, "")
    assert "2 indexes made, 0 stood already" in made.stderr
    assert sorted(path.name for path in folder.rglob("*.idx")) == ["a.atlas.idx", "b.atlas.idx"]
    assert before["answers"][0]["pieces"]
    assert answers() == before
    again = json.loads(run_cli("ask", tmp_path / "model.gguf", "-m", folder, "--index", "--json").stdout)
    assert (len(again["kept"]), again["made"]) == (2, [])


def test_without_a_model_pieces_are_shown(ask, run_cli, tmp_path):
    folder = tmp_path / "memories"
    none = run_cli("ask", folder, "Who built the bridge?")
    assert none.exit_code == 2
    assert "it has no index, and without its model none can be made" in none.stderr
    assert "--index" in none.stderr
    run_cli("ask", tmp_path / "model.gguf", "-m", folder, "--index")
    result = run_cli("ask", folder, "Who built the bridge?", "Many fish?")
    assert result.exit_code == 0, result.stderr
    assert f"  {folder}/a.atlas: {tmp_path}/notes.txt, line 1, 20" in result.stdout
    assert "    The bridge was built in 1932 by Anna Rask.\n" in result.stdout
    data = json.loads(run_cli("ask", f"{folder}/**/*.atlas", "fish", "--json", "--pieces", "1").stdout)
    assert data["files"] == 2
    (piece,) = data["questions"][0]["pieces"]
    assert piece["source"].startswith(f"{folder}/deep/b.atlas: ")
    one = run_cli("ask", folder / "a.atlas", "bridge")
    assert "Anna Rask" in one.stdout
    assert run_cli("ask", folder, "xyzzy").exit_code == 1


def test_without_a_model_an_encrypted_memory_is_not_promised_an_index(ask, run_cli, tmp_path):
    folder, secret = tmp_path / "memories", tmp_path / "secret.txt"
    secret.write_text("correct horse\n")
    locked = tmp_path / "locked.atlas"
    made = run_cli("encrypt", folder / "a.atlas", "-o", locked, "--passphrase-file", secret)
    assert made.exit_code == 0, made.stderr
    for keys in ((), ("--passphrase-file", secret)):
        result = run_cli("ask", locked, "Who built the bridge?", *keys)
        assert result.exit_code == 2
        assert "it is encrypted" in result.stderr
        assert "--index" not in result.stderr


def test_files_first_and_a_model_that_answers(ask, run_cli, tmp_path):
    folder, model = tmp_path / "memories", tmp_path / "model.gguf"
    options = ("--max-tokens", "4", "--recall", "always")
    result = run_cli("ask", folder, "Who built the bridge?", "--model", model, *options)
    assert result.exit_code == 0, result.stderr
    assert f"from {folder}/a.atlas: " in result.stdout
    for arguments, words in (
        (["--model", model, "-m", folder], "name the model once"),
        (["--index"], "--index needs a model"),
    ):
        wrong = run_cli("ask", folder, "Who?", *arguments)
        assert wrong.exit_code == 2
        assert words in wrong.stderr
    assert "name the memory to ask: -m F" in run_cli("ask", model, "Who?").stderr
