"""Chats: out as Markdown, JSON lines and SQLite, in from JSON that people wrote; searched, gone on with, joined."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.operations import chats
from tests.conftest import SAMPLES

pytest_plugins = ["tests.cli.cli_fixtures"]

TALK = "User: Hello\nAssistant: Hi!\n- one\n- two\nUser: Bye"
MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!\n- one\n- two"},
            {"role": "user", "content": "Bye"}]  # fmt: skip
ODD = {
    "plain": TALK,
    "line at the end": TALK + "\n",
    "nobody first": "a title\n" + TALK,
    "nobody at all": "just a note\nof two lines\n",
    "empty": "",
    "other words": "Human: x\nAI : y\nSYSTEM: z",
    "windows": "User: a\r\nAssistant: b\r\n",
    "json": json.dumps(MESSAGES),
    "json compact": json.dumps(MESSAGES, separators=(",", ":")),
    "json object": json.dumps({"model": "m", "messages": MESSAGES}),
    "json of tools": json.dumps([{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]),
    "json odd": '[ {"role":"user","content":"x"} ]',
    "half of json": '[{"role": "user"',
    "emoji": "User: \U0001f600 \u202e \x1b[31m\nAssistant: \u00e4",
}


@pytest.fixture
def memory(tmp_path):
    """Return a file with histories of all kinds, a note, a tensor and bytes."""
    path = tmp_path / "m.atlas"
    made = MemoryFile(created=1_600_000_000)
    for number, (key, text) in enumerate(ODD.items()):
        made.set(f"chat/{key}", text.encode(), type=2, flags=number % 2, timestamp=1_700_000_000 + number)
    made.set("note", "garden and bread", type=1, timestamp=5)
    made.set("weights", np.zeros(4, np.float32), timestamp=6)
    made.set("blob", b"\xff\xfe garden", type=2, timestamp=7)
    made.save(path)
    return path


# --- out and in again -----------------------------------------------------------------------------------------


def test_json_lines_come_back_as_they_were(memory, tmp_path, run_cli):
    ran = run_cli("export", memory, "-o", tmp_path / "c.jsonl")
    assert ran.exit_code == 0, ran.stderr
    assert "left out blob: it is not text" in ran.stdout
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"chat/{key}" for key in ODD]
    assert lines[0]["messages"] == MESSAGES
    ran = run_cli("import", tmp_path / "back.atlas", tmp_path / "c.jsonl")
    assert ran.exit_code == 0, ran.stderr
    with MemoryFile.open(memory) as before, MemoryFile.open(tmp_path / "back.atlas") as after:
        for entry in after.entries():
            old = before[entry.key]
            assert (bytes(entry.data), entry.type, entry.flags, entry.timestamp) == (
                bytes(old.data), old.type, old.flags, old.timestamp
            ), entry.key  # fmt: skip
        assert len(after) == len(ODD)


def test_the_sample_comes_back(tmp_path, run_cli):
    sample = SAMPLES / "atlas" / "chat.atlas"
    assert run_cli("export", sample, "-o", tmp_path / "c.jsonl", "-q").stdout == ""
    assert run_cli("import", tmp_path / "c.atlas", tmp_path / "c.jsonl", "-q").stdout == ""
    out = run_cli("diff", sample, tmp_path / "c.atlas").stdout
    assert "1 removed, 24 the same" in out


def test_markdown_is_for_people(tmp_path, run_cli):
    ran = run_cli("export", SAMPLES / "atlas" / "llama-7b_memory.atlas")
    assert ran.stdout == (
        "# chat_history\n\n*2026-11-22 01:45:08 UTC*\n\n**User:**\n\nHello\n\n**Assistant:**\n\nHi! How can I help?\n"
    )


def test_sqlite_can_be_asked(memory, tmp_path, run_cli):
    assert run_cli("export", memory, "-o", tmp_path / "c.sqlite").exit_code == 0
    with closing(sqlite3.connect(tmp_path / "c.sqlite")) as database:
        rows = database.execute(
            "SELECT role, content FROM messages JOIN conversations ON id = conversation "
            "WHERE key = 'chat/plain' ORDER BY number"
        ).fetchall()
        assert rows == [(one["role"], one["content"]) for one in MESSAGES]
        assert database.execute("SELECT count(*) FROM conversations").fetchone() == (len(ODD),)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(("to", "suffix"), [("markdown", "md"), ("jsonl", "jsonl"), ("sqlite", "sqlite")])
def test_a_file_for_each(tmp_path, run_cli, to, suffix):
    made = MemoryFile()
    keys = ["a/b", "a_b", "A_B", "../../etc/passwd", "..", "", "k" * 600, "\x1b[31m", "b\udcff"]
    for key in filter(None, keys):
        made.set(key, TALK, type=2)
    made.save(tmp_path / "m.atlas")
    ran = run_cli("export", tmp_path / "m.atlas", "-o", tmp_path / "out", "--each", "--to", to)
    assert ran.exit_code == 0, ran.stderr
    names = sorted(one.name for one in (tmp_path / "out").iterdir())
    assert len(names) == len(keys) - 1
    assert len({name.casefold() for name in names}) == len(names)
    assert all(name.endswith(f".{suffix}") and len(name.encode()) < 200 for name in names)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.atlas", "out"]
    again = run_cli("export", tmp_path / "m.atlas", "-o", tmp_path / "out", "--each", "--to", to)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    forced = run_cli("export", tmp_path / "m.atlas", "-o", tmp_path / "out", "--each", "--to", to, "-f")
    assert forced.exit_code == 0


def test_keys_choose(memory, tmp_path, run_cli):
    assert "garden and bread" in run_cli("export", memory, "note").stdout
    ran = run_cli("export", memory, "no*such")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (1, "", "there is no conversation\n")
    ran = run_cli("export", memory, "weights", "--to", "jsonl")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "left out weights: it is not text" in ran.stderr
    assert run_cli("export", memory, "-o", tmp_path / "c.txt").exit_code == 2


# --- in ---------------------------------------------------------------------------------------------------------

GOOD = {
    "a list of messages": (MESSAGES, {"talk": TALK}),
    "an object": ({"messages": MESSAGES}, {"talk": TALK}),
    "with a key": ({"key": "k", "messages": MESSAGES}, {"k": TALK}),
    "a table": ({"a": MESSAGES, "b": TALK, "c": {"x": 1}, "d": {"messages": MESSAGES}},
                {"a": TALK, "b": TALK, "c": '{"x": 1}', "d": TALK}),
    "several": ([{"messages": MESSAGES}, {"key": "k", "text": "x"}], {"talk/1": TALK, "k": "x"}),
    "lists": ([MESSAGES, MESSAGES], {"talk/1": TALK, "talk/2": TALK}),
    "conversations": ({"conversations": [{"title": "t", "messages": MESSAGES}]}, {"t": TALK}),
    "entries": ({"entries": [{"key": "k", "text": "x"}]}, {"k": "x"}),
    "shared": ({"id": "s", "messages": [{"from": "human", "value": "Hello"}]}, {"s": "User: Hello"}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], {"talk": "User: Hi"}),
    "Claude's": ([{"uuid": "1", "name": "t", "created_at": "2026-01-02T03:04:05.6789Z", "chat_messages": [
        {"sender": "human", "text": "Hello"}, {"sender": "assistant", "content": [{"type": "text", "text": "Hi"}]}]}],
        {"t": "User: Hello\nAssistant: Hi"}),
    "ChatGPT's": ([{"title": "t", "create_time": 1700000000.5, "current_node": "c", "mapping": {
        "root": {"message": None, "parent": None},
        "a": {"parent": "root", "message": {"author": {"role": "user"}, "content": {"parts": ["Hello"]}}},
        "b": {"parent": "a", "message": {"author": {"role": "assistant"}, "content": {"parts": ["Left"]}}},
        "c": {"parent": "a", "message": {"author": {"role": "assistant"}, "content": {"parts": ["Hi"]}}}}}],
        {"t": "User: Hello\nAssistant: Hi"}),
    "a table of one": ({"greeting": "hello"}, {"greeting": "hello"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_what_people_write(tmp_path, run_cli, name):
    value, expected = GOOD[name]
    (tmp_path / "talk.json").write_text(json.dumps(value, indent=2), encoding="utf-8-sig")
    ran = run_cli("import", tmp_path / "m.atlas", tmp_path / "talk.json")
    assert ran.exit_code == 0, ran.stderr
    with MemoryFile.open(tmp_path / "m.atlas") as memory:
        assert {entry.key: entry.text for entry in memory.entries()} == expected
    if isinstance(value, list):
        (tmp_path / "talk.jsonl").write_text("\n\n".join(json.dumps(one) for one in value))
        assert run_cli("import", tmp_path / "l.atlas", tmp_path / "talk.jsonl").exit_code == 0
        with MemoryFile.open(tmp_path / "l.atlas") as memory:
            assert {entry.key: entry.text for entry in memory.entries()} == expected


def test_what_stands_beside(tmp_path, run_cli):
    lines = [
        {"key": "a", "text": "User: x", "time": "2023-11-14T22:13:20Z", "flags": 3},
        {"key": "b", "text": "x", "type": "context", "timestamp": 12},
        {"key": "c", "json": [1, 2], "type": 77},
        {"key": "d", "messages": MESSAGES, "time": "2023-11-14 22:13:20 UTC"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run_cli("import", tmp_path / "m.atlas", tmp_path / "x.jsonl", "--form", "json").exit_code == 0
    with MemoryFile.open(tmp_path / "m.atlas") as memory:
        found = {one.key: (one.type, one.flags, one.timestamp) for one in memory.entries() if one.key != "c"}
        assert found == {"a": (2, 3, 1_700_000_000), "b": (3, 0, 12), "d": (2, 0, 1_700_000_000)}
        assert (memory["c"].type, memory["c"].text) == (77, "[1, 2]")
        assert json.loads(memory["d"].text) == MESSAGES


def test_the_json_of_a_whole_memory_goes_in_as_well(memory, tmp_path, run_cli):
    """What ``convert`` wrote: numbers and bytes too."""
    assert run_cli("convert", memory, tmp_path / "m.json").exit_code == 0
    ran = run_cli("import", tmp_path / "back.atlas", tmp_path / "m.json")
    assert ran.exit_code == 0, ran.stderr
    assert run_cli("diff", memory, tmp_path / "back.atlas").exit_code == 0
    (tmp_path / "x.json").write_text('[{"key": "k", "base64": "?"}]')
    assert 'item 1: "base64" is not base64' in run_cli("import", memory, tmp_path / "x.json").stderr


BAD = {
    '[{"role": "user", "content": "x"}, {"role": "user"}]': 'item 2 has no "content"',
    '[{"role": "user", "content": "x"}, {"content": "y"}]': 'item 2 has no "role"',
    '[{"role": "user", "content": 3}]': 'the "content" of item 1 is not text',
    '[{"role": "user", "content": [{"image": 1}]}]': 'part 1 of the "content" of item 1 is not text',
    '[{"messages": [{"role": "user", "content": "x"}]}, 3]': "item 2 is not an object",
    '{"key": "k", "messages": [{"role": "user", "content": "x"}, "y"]}': "message 2 of the object is not an object",
    '{"key": "k", "messages": []}': "not a list with at least one message",
    '{"key": "k"}': 'has no "messages", "text" or "json"',
    '{"key": "k", "text": "x", "messages": []}': 'has "messages" and "text"',
    '{"key": 3, "text": "x"}': 'the "key" of the object is not text',
    '{"key": "k", "text": "x", "type": "chat"}': 'the "type" of the object is not one',
    '{"key": "k", "text": "x", "time": "yesterday"}': 'the "time" of the object is not a date',
    '{"key": "k", "text": "x", "timestamp": -1}': 'the "timestamp" of the object is not a whole number',
    '[{"key": "k", "text": "x"}, {"key": "k", "text": "y"}]': "item 2 has the key of item 1",
    '{"a": 1,}': "line 1, column 9",
    "[]": "nothing to import",
    '"text"': "neither a list nor an object",
    "NaN": "NaN",
    '[{"key": "k", "json": [NaN]}]': "NaN is not a JSON number",
    '[{"key": "k", "json": [1, -1e999]}]': "item 1: it holds a number that is too large for JSON",
    f'[{{"key": "k", "json": {"9" * 5000}}}]': "a number has thousands of digits",
    f'{{"key": "k", "text": "x"}}\n{{"key": "j", "json": {"9" * 5000}}}': "line 2 is not JSON that can be read: a num",
    '{"key": "", "text": "x"}': 'the "key" of the object is empty',
    '{"key": null, "text": "x"}': 'the "key" of the object is not text',
    '{"key": "a\\u0000", "text": "x"}': 'the "key" of the object holds a NUL',
    '{"": "x"}': 'the "key" of "" is empty',
    f'[{{"key": "{"k" * 70_000}", "text": "x"}}]': "item 1: ",
    '{"key": "k", "text": "x", "text": "y"}': 'an object has "text" twice',
    '{"a": "x", "a": "y"}': 'an object has "a" twice',
    '[{"key": "k", "json": {"d": [{"e": 1, "e": 1}]}}]': 'an object has "e" twice',
    '{"key": "k", "text": "x"}\n{"key": "j", "key": "l", "text": "x"}': "line 2 is not JSON that can be read: an obj",
    '{"key": "k", "text": "x \\ud83d y"}': "the object: \\ud83d is half a surrogate pair",
    '{"key": "k\\udc00", "text": "x"}': "half a surrogate pair",
    '{"k\\udc00": "x"}': "half a surrogate pair",
    '[{"role": "user", "content": "\\ude00\\ud83d"}]': "item 1: \\ude00 is half a",
    '[{"key": "k", "json": {"\\ud83d": 1}}]': "item 1: \\ud83d is half a surrogate pair",
    '{"key": "k", "text": "x"}\n{"key": "j", "messages": [{"role": "\\ud83d", "content": ""}]}': "line 2: \\ud83d is",
    "": "line 1, column 1",
    '{"key": "a", "text": "x"}\n{"key": "b", "text": }\n': "line 2 is not JSON (column 22)",
    '{"key": "a", "text": "x"}\n{"key": "b", "messages": [{"role": "user"}]}': 'message 1 of line 2 has no "content"',
    "[" * 5000: "nested too deeply",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:60])
def test_what_makes_no_sense_is_said_with_its_place(memory, tmp_path, run_cli, text):
    before = memory.read_bytes()
    (tmp_path / "talk.json").write_text(text)
    for target in (memory, tmp_path / "new.atlas"):
        ran = run_cli("import", target, tmp_path / "talk.json")
        assert ran.exit_code == 2
        assert BAD[text] in ran.stderr
        assert "talk.json" in ran.stderr
        assert "internal error" not in ran.stderr
    assert memory.read_bytes() == before
    assert not (tmp_path / "new.atlas").exists()


LINES = '{"key": "a", "text": "x \u00fc"}\n{"key": "b", "text": "line\\u0000\\ud83d\\ude00"}\n'
WRITTEN = {
    "plain": LINES.encode(),
    "BOM": b"\xef\xbb\xbf" + LINES.encode(),
    "a BOM each": b"\xef\xbb\xbf" + LINES.encode().replace(b"\n{", b"\n\xef\xbb\xbf{"),
    "Windows": LINES.replace("\n", "\r\n").encode(),
    "old Macintosh": LINES.replace("\n", "\r").encode(),
    "no end": LINES.rstrip().encode(),
    "empty lines": b"\n\r\n" + LINES.replace("\n", "\n\n \n").encode(),
    "UTF-16": LINES.encode("utf-16"),
    "UTF-16 of the other order": b"\xfe\xff" + LINES.encode("utf-16-be"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_lines_as_any_system_writes_them(name, tmp_path, run_cli):
    (tmp_path / "talk.jsonl").write_bytes(WRITTEN[name])
    ran = run_cli("import", tmp_path / "new.atlas", tmp_path / "talk.jsonl")
    assert ran.exit_code == 0, ran.stderr
    with MemoryFile.open(tmp_path / "new.atlas") as memory:
        assert bytes(memory["a"].data).decode() == "x \u00fc"
        assert bytes(memory["b"].data).decode() == "line\0\U0001f600"


def test_a_conversation_without_a_title_gets_a_key(tmp_path, run_cli):
    (tmp_path / "talk.json").write_text(
        json.dumps([{"title": None, "messages": MESSAGES}, {"title": "", "messages": MESSAGES}])
    )
    assert run_cli("import", tmp_path / "new.atlas", tmp_path / "talk.json").exit_code == 0
    assert run_cli("ls", tmp_path / "new.atlas").stdout.split() == ["talk/1", "talk/2"]


def test_a_document_of_a_memory_is_as_strict(tmp_path, run_cli):
    entry = '{"key": "k", "text": "x \\ud83d"}'
    for entries, words in (
        (entry, "\\ud83d is half a surrogate pair"),
        ('{"key": "k", "text": "x", "text": "y"}', 'an object has "text" twice'),
        ('{"key": "k", "json": 1e999}', "a number that is too large"),
    ):
        (tmp_path / "m.json").write_text(f'{{"entries": [{entries}]}}')
        ran = run_cli("convert", tmp_path / "m.json", tmp_path / "m.atlas")
        assert ran.exit_code == 2
        assert words in ran.stderr
        assert not (tmp_path / "m.atlas").exists()


def test_a_page_that_was_saved_as_a_memory_is_called_that(tmp_path, run_cli):
    path, talk = tmp_path / "page.atlas", tmp_path / "talk.json"
    path.write_text("<!doctype html><title>Hi</title>")
    talk.write_text(json.dumps(MESSAGES))
    refused = run_cli("import", path, talk)
    assert refused.exit_code == 2
    assert 'a web page ("Hi")' in refused.stderr
    assert "needs a name" not in refused.stderr


def test_a_key_that_is_there(memory, tmp_path, run_cli):
    longer = [*MESSAGES, {"role": "assistant", "content": "See you"}]
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"key": "new", "text": "x"}) + "\n" + json.dumps({"key": "chat/plain", "messages": longer})
    )
    before = memory.read_bytes()
    ran = run_cli("import", memory, tmp_path / "t.jsonl")
    assert ran.exit_code == 2
    assert "line 2: there is an entry of this key already" in ran.stderr
    assert "Use --replace, or --append" in ran.stderr
    assert memory.read_bytes() == before
    assert (
        "would continue chat/plain"
        in run_cli("import", memory, tmp_path / "t.jsonl", "--append", "-n").stdout
    )
    assert memory.read_bytes() == before
    assert run_cli("import", memory, tmp_path / "t.jsonl", "--append").exit_code == 0
    assert run_cli("get", memory, "chat/plain").stdout == f"{TALK}\nAssistant: See you"
    (tmp_path / "t.json").write_text(json.dumps({"key": "weights", "text": "x"}))
    assert "only histories" in run_cli("import", memory, tmp_path / "t.json", "--append").stderr
    assert run_cli("import", memory, tmp_path / "t.json", "--replace").exit_code == 0
    assert run_cli("get", memory, "weights").stdout == "x"


# --- grep -------------------------------------------------------------------------------------------------------


def test_grep(memory, run_cli, parse_json, quiet):
    assert run_cli("grep", "garden", memory).stdout == "note:1: garden and bread\n"
    assert run_cli("grep", "GARDEN", memory).exit_code == 1
    assert run_cli("grep", "-i", "GARDEN", memory, "-l").stdout == "note\n"
    assert "chat/plain:2: Assistant: Hi!" in run_cli("grep", "^Ass.*!$", memory).stdout
    assert run_cli("grep", "-F", "[31m", memory).exit_code == 0
    assert quiet(run_cli("grep", "-F", "[31m", memory).stdout)
    bad = run_cli("grep", "[31m", memory)
    assert bad.exit_code == 2
    assert "not a regular expression" in bad.stderr
    assert run_cli("grep", "^note$", memory, "--in-keys").stdout == "note:key: note\n"
    assert run_cli("grep", "Hello", memory, "-c", "--key", "chat/plain").stdout == "chat/plain:1\n"
    (row,) = parse_json(run_cli("grep", "garden", memory, "--json").stdout)
    assert row["matches"] == [{"key": "note", "line": 1, "text": "garden and bread", "spans": [[0, 6]]}]
    several = run_cli("grep", "garden", memory, SAMPLES / "atlas" / "chat.atlas", "-l")
    assert several.stdout == f"{memory}:note\n"
    assert several.exit_code == 0


def test_grep_in_a_model_and_in_a_long_line(tmp_path, run_cli):
    model = SAMPLES / "gguf" / "tiny.gguf"
    with GGUFFile.open(model) as opened:
        tokens = list(opened.metadata["tokenizer.ggml.tokens"].items)
    ran = run_cli("grep", "^llama$", model, "--key", "general.*")
    assert ran.stdout == "general.architecture:1: llama\n"
    found = run_cli("grep", "-F", tokens[3], model, "--key", "tokenizer.ggml.tokens").stdout
    assert f"tokenizer.ggml.tokens:4: {tokens[3]}" in found
    assert "token_embd.weight:key" in run_cli("grep", "token_embd", model, "--in-keys").stdout
    made = MemoryFile()
    made.set("long", "x" * 100_000 + "needle" + "y" * 100_000)
    made.save(tmp_path / "m.atlas")
    shown = run_cli("grep", "needle", tmp_path / "m.atlas").stdout
    assert "needle" in shown
    assert len(shown) < 500


# --- several, rename, append --------------------------------------------------------------------------------------


def test_get_of_several(memory, tmp_path, run_cli, parse_json):
    ran = run_cli("get", memory, "note", "chat/plain")
    assert ran.stdout == f"==> note <==\ngarden and bread\n==> chat/plain <==\n{TALK}"
    ran = run_cli("get", memory, "note", "nothing")
    assert (ran.exit_code, ran.stdout) == (2, "")
    rows = parse_json(run_cli("get", memory, "note", "blob", "--json").stdout)
    assert [row["key"] for row in rows] == ["note", "blob"]
    assert run_cli("get", memory, "note", "blob", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "blob").read_bytes() == b"\xff\xfe garden"
    assert (tmp_path / "out" / "note").read_text() == "garden and bread"
    assert run_cli("get", memory, "note", "blob", "-o", memory).exit_code == 2


def test_rename_keeps_everything_else(memory, tmp_path, run_cli):
    with MemoryFile.open(memory) as opened:
        before = opened["chat/line at the end"]
        facts = before.type, before.flags, before.timestamp, bytes(before.data)
    assert run_cli("rename", memory, "chat/line at the end", "new \u00e4").exit_code == 0
    with MemoryFile.open(memory) as opened:
        after = opened["new \u00e4"]
        assert (after.type, after.flags, after.timestamp, bytes(after.data)) == facts
        assert "chat/line at the end" not in opened
    kept = memory.read_bytes()
    for key, new in (("note", "blob"), ("no", "x"), ("note", "")):
        ran = run_cli("rename", memory, key, new)
        assert ran.exit_code == 2, (key, new)
    assert "Similar: note" in run_cli("rename", memory, "notee", "x").stderr
    assert memory.read_bytes() == kept


def test_rename_in_a_model(samples, run_cli):
    model = samples / "gguf" / "tiny.gguf"
    assert run_cli("rename", model, "general.name", "general.basename").exit_code == 0
    assert run_cli("rename", model, "general.basename", "general.architecture").exit_code == 2
    assert run_cli("get", model, "general.basename").exit_code == 0


def test_append_adds_lines_and_messages(memory, run_cli):
    for value, text in (("one", "one"), ("two\n", "one\ntwo\n"), ("-3", "one\ntwo\n-3")):
        assert run_cli("append", memory, "log", value).exit_code == 0
        assert run_cli("get", memory, "log").stdout == text
    assert run_cli("append", memory, "log", "!", "--exact").exit_code == 0
    assert run_cli("get", memory, "log").stdout.endswith("-3!")
    for key in ("plain", "line at the end", "json", "json compact", "json object", "empty"):
        with MemoryFile.open(memory) as opened:
            kind = opened[f"chat/{key}"].type
        assert run_cli("append", memory, f"chat/{key}", "And now?", "--role", "Human").exit_code == 0
        with MemoryFile.open(memory) as opened:
            entry = opened[f"chat/{key}"]
            chat = chats.chat_of(bytes(entry.data))
            assert entry.type == kind
        assert chat.messages[-1] == chats.Message("user", "And now?")
        assert len(chat.messages) == (1 if key == "empty" else 4)
        assert chat.form == ("text" if "json" not in key else "object" if "object" in key else "list")
    for key in ("weights", "blob", "note"):
        assert run_cli("append", memory, key, "x", "--role", "user").exit_code == 2
    before = memory.read_bytes()
    for key in ("json", "json compact", "json object"):  # a line below JSON makes it no JSON
        refused = run_cli("append", memory, f"chat/{key}", "a line")
        assert refused.exit_code == 2
        assert "history in JSON" in refused.stderr
        assert "--role" in refused.stderr
    assert memory.read_bytes() == before
    assert run_cli("append", memory, "chat/json", " ", "--exact").exit_code == 0
    assert run_cli("append", memory, "weights", "x").exit_code == 2
    assert run_cli("append", memory.with_name("typo"), "k", "x").exit_code == 2


# --- merge --------------------------------------------------------------------------------------------------------


def history(path, **entries):
    made = MemoryFile()
    for key, (value, kind, time) in entries.items():
        made.set(key, value, type=kind, timestamp=time)
    made.save(path)
    return path


def test_merge_both(tmp_path, run_cli, parse_json):
    start = "User: a\nAssistant: b\n"
    one = history(
        tmp_path / "1.atlas", chat=(f"{start}User: later", 2, 20), longer=(start, 2, 1), notes=("x\ny", 1, 1),
        same=("s", 1, 1), data=(b"\0\1", 0, 1), mixed=("a note", 1, 1), json=(json.dumps(MESSAGES), 2, 1),
    )  # fmt: skip
    two = history(
        tmp_path / "2.atlas", chat=(f"{start}User: first\nAssistant: c", 2, 10), longer=(f"{start}User: more", 2, 2),
        notes=("x\nz\n", 1, 2), same=("s", 1, 2), data=(b"\0\2", 0, 2), mixed=("User: x", 1, 2),
        json=(f"{TALK}\nUser: x", 2, 2),
    )  # fmt: skip
    ran = run_cli("merge", one, two, "-o", tmp_path / "m.atlas", "--prefer", "both", "--json")
    assert ran.exit_code == 0, ran.stderr
    with MemoryFile.open(tmp_path / "m.atlas") as made:
        values = {entry.key: bytes(entry.data).decode() for entry in made.entries()}
        assert made["chat"].timestamp == 20
    assert values == {
        "chat": f"{start}User: first\nAssistant: c\nUser: later",
        "longer": f"{start}User: more",
        "notes": "x\ny\nz\n",
        "same": "s",
        "data": "\0\1", "data (2)": "\0\2",
        "mixed": "a note", "mixed (2)": "User: x",
        "json": json.dumps([*MESSAGES, {"role": "user", "content": "x"}]),
    }  # fmt: skip
    conflicts = {row["key"]: row for row in parse_json(ran.stdout)["conflicts"]}
    assert set(conflicts) == {"chat", "longer", "notes", "data", "mixed", "json"}
    assert conflicts["data"]["others"] == [{"key": "data (2)"}]
    again = run_cli("merge", tmp_path / "m.atlas", one, two, "-o", tmp_path / "n.atlas", "--prefer", "both")
    assert "conflict: chat, joined" in again.stdout


def test_what_was_said_beside_a_model(tmp_path):
    from atlas_kit.episodes import Episodes, Kind
    from atlas_kit.llama import FakeEngine
    from atlas_kit.operations.export import export_chats
    from atlas_kit.operations.token_words import EngineWords
    from atlas_kit.persistence.episode_entries import put_episodes

    episodes = Episodes(FakeEngine().piece, 257)
    for kind, text in ((Kind.DOCUMENT, "read"), (Kind.USER, "Where?\n"), (Kind.ASSISTANT, "Here.")):
        episodes.begin(kind, "", 1_700_000_000_000)
        episodes.append(list(text.encode()))
    memory = MemoryFile()
    memory.set("chat", TALK, type=2)
    put_episodes(memory, episodes.arrays())
    memory.save(tmp_path / "m.atlas")
    words = EngineWords(FakeEngine())
    result = export_chats(str(tmp_path / "m.atlas"), str(tmp_path / "c.jsonl"), words=words)
    assert result.keys == ["chat", "episodes"]
    said = json.loads((tmp_path / "c.jsonl").read_text().splitlines()[1])
    assert said["messages"] == [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here."},
    ]
    assert said["time"] == "2023-11-14 22:13:20 UTC"


def test_a_line_makes_nothing_unreadable(tmp_path, run_cli):
    path = tmp_path / "m.atlas"
    memory = MemoryFile()
    held = {
        "bytes": b"\x00\xff\x01",
        "settings": b'{"theme": "dark"}',
        "lines": b'{"a": 1}',
        "note": b"[draft] x",
    }
    for key, value in held.items():
        memory.set(key, value)
    memory.save(path)
    for key, words in (("bytes", "the entry is not text"), ("settings", "the entry is JSON")):
        ran = run_cli("append", path, key, "more")
        assert ran.exit_code == 2
        assert words in ran.stderr
        assert "Use --exact" in ran.stderr
        assert run_cli("append", path, key, "more", "--exact").exit_code == 0
    assert run_cli("append", path, "lines", '{"a": 2}').exit_code == 0
    assert run_cli("append", path, "note", "more").exit_code == 0
    with MemoryFile.open(path) as memory:
        assert bytes(memory["bytes"].data) == b"\x00\xff\x01more"
        assert bytes(memory["lines"].data) == b'{"a": 1}\n{"a": 2}'
        assert bytes(memory["note"].data) == b"[draft] x\nmore"
