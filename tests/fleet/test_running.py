"""Many files at once: what is done before is left out, what is wrong with one stops no other, who dies is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.cli.main import run
from atlas_kit.errors import FileAccessError, InvalidParamError
from atlas_kit.fleet import Task, run_fleet
from atlas_kit.fleet.files import FleetFile, found, here, pairs, placed
from atlas_kit.fleet.pools import OwnProcess, Processes, spread
from atlas_kit.fleet.table import ResultTable
from tests.waiting import LONG

SAMPLES = Path(__file__).parents[2] / "sample_data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "models"
    (place / "deep").mkdir(parents=True)
    for number in range(6):
        shutil.copy(SAMPLES / "gguf" / "tiny.gguf", place / f"{number}.gguf")
        shutil.copy(SAMPLES / "atlas" / "all-types.atlas", place / "deep" / f"{number}.atlas")
    shutil.copy(SAMPLES / "broken" / "truncated.atlas", place / "bad.atlas")
    return place


def test_a_row_for_each_file_whatever_is_wrong_with_others(folder: Path) -> None:
    result = run_fleet(Task("validate"), found([str(folder), str(folder / "none.gguf")]))
    assert [row["path"] for row in result.rows][:1] == [str(folder / "0.gguf")]
    assert len(result.rows) == 14
    assert {Path(row["path"]).name for row in result.failed} == {"bad.atlas", "none.gguf"}
    assert result.exit_code == 2


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_what_is_in_the_table_is_not_done_again(folder: Path, tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="needs the cloud extra")
    table = str(tmp_path / name)
    task = Task("validate", {"data": True})
    first = run_fleet(task, found([str(folder)]), table=table)
    assert first.before == 0
    os.utime(folder / "0.gguf", ns=(1, 1))
    shutil.copy(SAMPLES / "gguf" / "micro.gguf", folder / "1.gguf")
    (folder / "2.gguf").unlink()
    told: list[str] = []
    again = run_fleet(task, found([str(folder)]), table=table, tell=lambda row: told.append(row["path"]))
    assert again.before == 10
    assert sorted(told) == [str(folder / "0.gguf"), str(folder / "1.gguf")]
    assert run_fleet(Task("validate"), found([str(folder)]), table=table).before == 0  # other options
    assert sorted(os.listdir(tmp_path)) == ["models", name]


def test_a_table_that_was_cut_off_goes_on(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    run_fleet(Task("validate"), found([str(folder)]), table=str(table))
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    assert run_fleet(Task("validate"), found([str(folder)]), table=str(table)).before == 5
    rows = [json.loads(line) for line in table.read_bytes().splitlines() if line.endswith(b"}")]
    assert len({row["path"] for row in rows}) == 13


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_table_keeps_the_rows_of_other_work(folder: Path, tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="needs the cloud extra")
    table = str(tmp_path / name)
    files = list(found([str(folder)]))
    run_fleet(Task("validate"), files, table=table)
    run_fleet(Task("hash"), files, table=table)
    kept = list(ResultTable(table, "any").rows())
    assert Counter(row["task"].partition("-")[0] for row in kept) == {"validate": 13, "hash": 13}
    assert run_fleet(Task("validate"), files, table=table).before == 13
    assert len(ResultTable(table, Task("hash").mark).done) == 12


def test_two_runs_at_one_parquet_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the cloud extra")
    table, path = str(tmp_path / "t.parquet"), "t.parquet"

    def row(name: str) -> dict[str, Any]:
        return {
            "path": name,
            "size": 1,
            "mark": "1",
            "task": "t",
            "ok": True,
            "exit_code": 0,
            "problem": None,
        }

    first, second = ResultTable(table, "t"), ResultTable(table, "t")
    first.add(row("a"))
    second.add(row("b"))
    first.close()
    assert sorted(os.listdir(tmp_path)) == [path, f"{path}.lines"]  # which the second still writes to
    assert [one["path"] for one in ResultTable(table, "t").done.values()] == ["a", "b"]
    second.add(row("c"))
    third = ResultTable(table, "t")
    second.close()
    assert os.listdir(tmp_path) == [path]
    third.add(row("d"))
    third.close()
    assert os.listdir(tmp_path) == [path]
    assert [one["path"] for one in ResultTable(table, "t").rows()] == ["a", "b", "c", "d"]


def test_what_is_no_place_for_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (str(tmp_path), os.devnull):
        with pytest.raises(InvalidParamError, match="the table of results is a file"):
            run_fleet(Task("validate"), [], table=place)
    assert run(["validate", str(tmp_path), "--table", "-"]) == 2
    assert "--json writes the rows" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0\n", b"plain text\n", b'{"a": 1}\n', b"\xff\xfe"])
def test_a_table_that_is_another_file_stays_as_it_is(folder: Path, tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "other"
    table.write_bytes(content)
    with pytest.raises(InvalidParamError, match="not a table of results"):
        run_fleet(Task("validate"), found([str(folder)]), table=str(table))
    assert table.read_bytes() == content


@pytest.mark.slow
def test_processes_give_the_same_rows(folder: Path) -> None:
    files = list(found([str(folder)]))
    alone, spread_out = (run_fleet(Task("hash"), files, workers=n).rows for n in (1, 2))
    kept = ("path", "ok", "result", "size", "mark")
    assert [[row[k] for k in kept] for row in alone] == [[row[k] for k in kept] for row in spread_out]
    assert {row["worker"] for row in alone}.isdisjoint({row["worker"] for row in spread_out})


def _work(items: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Do what each item says, in a process of its own."""
    for what, place in items:
        mark = Path(place)
        if what == "die" or (what == "die once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang once" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "raise":
            raise OSError("no")
    return [(what, "done") for what, _ in items]


def _spread(items: list[tuple[str, str]]) -> Counter[tuple[str, str]]:
    pool = Processes(2)
    try:
        return Counter(
            spread(pool, _work, items, lambda item: (item[0], "died"), lambda item, why: (item[0], "failed"))
        )
    finally:
        pool.close()


@pytest.mark.slow
def test_who_dies_is_replaced_and_who_kills_is_found(tmp_path: Path) -> None:
    items = [("well", "")] * 20 + [("die once", str(tmp_path / "a"))] + [("well", "")] * 20
    assert _spread(items) == {("well", "done"): 40, ("die once", "done"): 1}
    items = [("well", "")] * 10 + [("die", str(tmp_path / "b")), ("raise", "")] + [("well", "")] * 10
    assert _spread(items) == {("well", "done"): 20, ("die", "died"): 1, ("raise", "failed"): 1}


@pytest.mark.slow
def test_who_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.fleet import pools

    monkeypatch.setattr(pools, "_SLOW_SECONDS", 1.0)
    items = [("well", "")] * 10 + [("hang once", str(tmp_path / "a"))] + [("well", "")] * 10
    assert _spread(items) == {("well", "done"): 20, ("hang once", "done"): 1}


@pytest.mark.slow
def test_a_worker_that_is_killed_mid_way(folder: Path, tmp_path: Path) -> None:
    files = list(found([str(folder)])) * 40
    killed: list[int] = []

    def kill(row: dict[str, Any]) -> None:
        if len(killed) < 2 and row["worker"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(row["worker"].rpartition(":")[2]), signal.SIGKILL)
                killed.append(1)

    result = run_fleet(Task("validate"), files, workers=2, tell=kill)
    assert killed
    assert len(result.rows) == len(files)
    assert {Path(row["path"]).name for row in result.failed} == {"bad.atlas"}
    assert all(row["problem"] is None for row in result.rows)


@pytest.mark.slow
def test_workers_end_with_who_started_them(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(
        "import os, time\n"
        "from atlas_kit.fleet.pools import Processes\n"
        "if __name__ == '__main__':\n"
        "    pool = Processes(2)\n"
        "    given = [pool.submit(os.getpgid, 0), pool.submit(time.sleep, 1000)]\n"
        "    given[0].result()\n"
        "    print(*pool._pool._processes, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SAMPLES.parent)}
    with open(tmp_path / "pids", "w+") as pids:  # not a pipe, which orphans would hold open
        ended = subprocess.run([sys.executable, str(script)], stdout=pids, stderr=pids, env=environment)
        assert ended.returncode == -signal.SIGKILL
        pids.seek(0)
        workers = [int(pid) for pid in pids.readline().split()]
    assert workers
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers live on without anybody who gives them work"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_who_stops_waits_for_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.fleet import tasks

    release, begun = threading.Event(), []

    def work(task: Task, file: FleetFile) -> dict[str, Any]:
        begun.append(file)
        if file.name.endswith("0"):
            raise KeyboardInterrupt
        release.wait(LONG)
        return {}

    monkeypatch.setattr(tasks, "run_one", work)
    files = [FleetFile(f"http://127.0.0.1/m.gguf?{number}", "") for number in range(40)]
    try:
        with pytest.raises(KeyboardInterrupt):
            tasks.run_many(Task("hash"), files)
        assert not release.is_set()
        assert len(begun) < len(files)
    finally:
        release.set()


def test_own_process_needs_no_other() -> None:
    assert list(spread(OwnProcess(), lambda batch: [2 * n for n in batch], [1, 2], int, lambda n, _: n)) == [
        2,
        4,
    ]


def test_secrets_do_not_go_to_other_machines() -> None:
    with pytest.raises(InvalidParamError, match="not sent to other machines"):
        run_fleet(Task("validate", secret=(b"geheim", None)), [], scheduler="tcp://127.0.0.1:1")
    assert "geheim" not in repr(Task("validate", secret=(b"geheim", None)))
    signed = list(found(["https://user:geheim@host/a.gguf?signature=geheim"]))
    assert "geheim" not in repr(signed)  # a cluster's logs have the arguments of what failed


def test_folders_are_compared_by_names(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "1.gguf").unlink()
    shutil.copy(SAMPLES / "gguf" / "micro.gguf", other / "new.gguf")
    result = run_fleet(Task("diff"), pairs(str(folder), str(other)))
    by_name = {Path(row["path"]).name: row for row in result.rows}
    assert by_name["0.gguf"]["ok"]
    assert "only in the first folder" in by_name["1.gguf"]["problem"]
    assert "only in the second folder" in by_name["new.gguf"]["problem"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/b/c.gguf", "/a/b/d/e.gguf"], ["c.gguf", "d/e.gguf"]),
        (["c.gguf", "d/e.gguf"], ["c.gguf", "d/e.gguf"]),
        (["a/x.atlas", "b/x.atlas"], ["a/x.atlas", "b/x.atlas"]),
        (["/one/x.atlas", "/two/x.atlas"], ["one/x.atlas", "two/x.atlas"]),
        (["a/../b/x.atlas", "b/c/x.atlas"], ["x.atlas", "c/x.atlas"]),
        (["s3://b/k/x.atlas", "s3://b/k/l/x.atlas"], ["x.atlas", "l/x.atlas"]),
        (["s3://b/x.atlas", "s3://c/x.atlas"], ["b/x.atlas", "c/x.atlas"]),
        (["s3://b/../../x.atlas", "s3://b/x.atlas"], ["", "x.atlas"]),
        (["s3://b/x.atlas"], ["x.atlas"]),
        ([], []),
    ],
)
def test_where_results_of_many_files_go(paths: list[str], names: list[str]) -> None:
    files = [FleetFile(path, path) for path in paths]
    assert [file.other for file in placed(files, "out")] == names


def test_no_two_results_go_to_one_file() -> None:
    for paths in (["a/x.atlas", "./a/x.atlas"], ["s3://b/k//x.atlas", "s3://b/k/x.atlas"]):
        with pytest.raises(InvalidParamError, match="would be written to the same file"):
            placed([FleetFile(path, path) for path in paths], "out")
    placed([FleetFile(path, path) for path in ("s3://b/k//x.atlas", "s3://b/k/x.atlas")], "s3://b/out")


def test_files_of_one_name_are_all_kept(folder: Path, tmp_path: Path) -> None:
    small = SAMPLES / "atlas" / "llama-7b_memory.atlas"
    (folder / "other").mkdir()
    shutil.copy(small, folder / "other" / "1.atlas")
    files = [str(folder / "deep" / "1.atlas"), str(folder / "other" / "1.atlas")]
    assert run(["compress", *files, "-o", f"file://{tmp_path}/out", "--force"]) == 0
    assert (tmp_path / "out" / "deep" / "1.atlas").stat().st_size > 2 * small.stat().st_size
    assert (tmp_path / "out" / "other" / "1.atlas").exists()


def test_results_that_a_run_left_without_a_row(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "out", tmp_path / "t.jsonl"
    command = ["compress", str(folder / "deep"), "-o", str(out), "--table", str(table)]
    assert run(command) == 0
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    (out / "5.atlas").write_bytes(b"somebody else's")
    capsys.readouterr()
    assert run(command) == 2
    said = capsys.readouterr().out
    assert "6 files, 1 not well, 2 done before" in said
    assert "5.atlas: the file exists already" in said
    assert (out / "5.atlas").read_bytes() == b"somebody else's"


def test_encrypted_results_that_a_run_left_without_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes are never the same twice; what is in them is."""
    from atlas_kit import MemoryFile

    monkeypatch.setenv("ATLAS_PASSPHRASE", "geheim")
    for number in range(3):
        with MemoryFile(version=2) as memory:
            memory["text"] = f"secret {number} " * 300
            memory.encrypt_with(passphrase="geheim")
            memory.save(tmp_path / f"{number}.atlas", version=3)
    out, table = tmp_path / "out", tmp_path / "t.jsonl"
    files = [str(tmp_path / f"{number}.atlas") for number in range(3)]
    command = ["compress", *files, "-o", str(out), "--table", str(table)]
    assert run(command) == 0, capsys.readouterr()
    table.unlink()
    shutil.copy(out / "1.atlas", out / "2.atlas")  # somebody else's
    before = (out / "2.atlas").read_bytes()
    capsys.readouterr()
    assert run(command) == 2
    said = capsys.readouterr().out
    assert "3 files, 1 not well" in said
    assert "2.atlas: the file exists already" in said
    assert (out / "2.atlas").read_bytes() == before


def test_addresses_that_differ_in_what_is_not_shown_have_rows_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the cloud extra")
    names = [f"memory://x/y.gguf?id={number}&sig=geheim" for number in (1, 2)]
    files = [FleetFile(name, "memory://x/y.gguf") for name in names]
    table = str(tmp_path / "t.parquet")
    rows = run_fleet(Task("validate"), files, table=table).rows
    assert len({row["path"] for row in rows}) == 2
    assert all(row["path"].startswith("memory://x/y.gguf?...") for row in rows)
    kept = list(ResultTable(table, "").rows())
    assert {row["path"] for row in kept} == {row["path"] for row in rows}
    assert "geheim" not in str(kept)
    assert run_fleet(Task("validate"), files[:1]).rows[0]["path"] == "memory://x/y.gguf"


def test_stores_are_asked_for_several_states_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.fleet import files as module

    together = threading.Barrier(4, timeout=120)

    def slow(file: FleetFile) -> FleetFile:
        together.wait()
        return file

    monkeypatch.setattr(module, "current", slow)
    files = [FleetFile(f"memory://x/{number}.gguf", f"memory://x/{number}.gguf") for number in range(8)]
    assert module.all_current(files) == files


# --- the command line ------------------------------------------------------------------------------------------


def test_commands_with_a_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(tmp_path / "t.jsonl")
    assert run(["validate", str(folder), "--table", table]) == 1
    out = capsys.readouterr().out
    assert "bad.atlas: [entry-count]" in out
    assert "13 files, 1 not well; " in out
    assert run(["validate", str(folder), "--table", table]) == 1
    assert "13 files, 1 not well, 13 done before" in capsys.readouterr().out


def test_commands_on_several_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(folder / "0.gguf"), str(folder / "deep" / "1.atlas")]
    assert run(["inspect", *files]) == 0
    assert "2 files, all well" in capsys.readouterr().out
    assert run(["inspect", *files, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["result"]["format"] for row in rows] == ["gguf", "atlas"]
    out = tmp_path / "out"
    assert run(["compress", files[1], str(folder / "deep" / "2.atlas"), "-o", str(out)]) == 0
    assert sorted(os.listdir(out)) == ["1.atlas", "2.atlas"]
    capsys.readouterr()
    assert run(["hash", *files, "--table", str(tmp_path / "h.jsonl"), "--file-only", "-a", "md5"]) == 0
    assert files[0] in capsys.readouterr().out
    assert run(["diff", str(folder), str(folder), "--table", str(tmp_path / "d.jsonl")]) == 2
    assert "13 files, 1 not well" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "a", "b", "--hex"], "--hex is for one file at a time"),
        (["inspect", "a", "-"], "standard input is not one of many files"),
        (["hash", "a", "--workers", "2", "--manifest"], "--manifest is for one file at a time"),
        (["diff", "a", "b", "--workers", "2", "--html", "page.html"], "--html is for two files at a time"),
        (["validate", "a", "--workers", "2", "--scheduler", "tcp://x:1"], "--workers are processes"),
        (["compress", "a", "b", "-o", "-"], "standard output is none"),
    ],
)
def test_what_many_files_cannot_be_asked(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_scheduler_that_is_not_there() -> None:
    pytest.importorskip("distributed", reason="needs the cloud extra")
    with pytest.raises(FileAccessError, match="the scheduler does not answer"):
        run_fleet(Task("validate"), [here("a")], scheduler="tcp://127.0.0.1:1")
