"""A Dask cluster of several processes: the same rows as here, also where a worker is killed; a table from a bucket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="needs the cloud extra")
pytest.importorskip("pandas", reason="needs the cloud extra")

from atlas_kit.errors import FileAccessError, NoSuchFileError
from atlas_kit.fleet import Task, run_fleet, scan
from atlas_kit.fleet.files import found, here

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "sample_data"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and three workers, each a process with ports of its own; the address of the scheduler."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "DASK_DISTRIBUTED__ADMIN__LOG_FORMAT": "%(message)s",
    }
    quiet = {"env": environment, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    here_only = ["--host", "127.0.0.1", "--scheduler-file", str(file)]
    start = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        *here_only,
        "--port",
        "0",
        "--no-dashboard",
    ]
    processes = [subprocess.Popen(start, **quiet)]  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 300
        while not file.exists() or not file.stat().st_size:
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.05)
        worker = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            *here_only,
            "--nthreads",
            "1",
            "--no-nanny",
        ]
        worker += ["--no-dashboard", "--local-directory", str(folder)]
        processes += [subprocess.Popen(worker, **quiet) for _ in range(3)]  # type: ignore[call-overload]
        import json

        address = json.loads(file.read_text())["address"]
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(3, timeout=300)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for number in range(150):
        shutil.copy(SAMPLES / "gguf" / "micro.gguf", tmp_path / f"{number:03}.gguf")
    shutil.copy(SAMPLES / "broken" / "truncated.atlas", tmp_path / "bad.atlas")
    return [str(tmp_path)]


def test_a_worker_that_is_killed_mid_way(cluster: str, files: list[str], tmp_path: Path) -> None:
    seen: set[str] = set()

    def kill(row: dict[str, Any]) -> None:
        if not seen:
            os.kill(int(row["worker"].rpartition(":")[2]), signal.SIGKILL)
        seen.add(row["worker"])

    table = str(tmp_path / "t.parquet")
    result = run_fleet(Task("hash"), found(files), scheduler=cluster, table=table, tell=kill)
    assert [row["path"] for row in result.rows] == [file.path for file in found(files)]
    assert {Path(row["path"]).name for row in result.failed} == {"bad.atlas"}
    assert len(seen) > 1
    own = run_fleet(Task("hash"), found(files))
    assert [row["result"] for row in result.rows] == [row["result"] for row in own.rows]
    assert run_fleet(Task("hash"), found(files), scheduler=cluster, table=table).before == 150


def test_a_scheduler_that_is_not_there() -> None:
    with pytest.raises(FileAccessError, match="the scheduler does not answer"):
        run_fleet(Task("validate"), [here("a")], scheduler="tcp://127.0.0.1:1")
    with pytest.raises(FileAccessError, match="the scheduler is not an address"):
        run_fleet(Task("validate"), [here("a")], scheduler="nonsense://x")


def test_who_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.fleet import pools

    monkeypatch.setattr(pools, "CONNECT_SECONDS", 1)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(FileAccessError, match="the scheduler does not answer"):
        pools.DaskCluster(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    for address in (
        "",
        "tcp://",
        "nonsense",
        "http://127.0.0.1:1/",
        "tcp://user:geheim@127.0.0.1:1",
        "tcp://[::1",
    ):
        with pytest.raises(FileAccessError, match="the scheduler is not an address") as caught:
            pools.DaskCluster(address)
        assert "geheim" not in str(caught.value)


def test_a_worker_is_no_scheduler_and_none_is_missed(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    from atlas_kit.fleet import pools

    with Client(cluster, set_as_default=False) as client:
        worker = next(iter(client.scheduler_info()["workers"]))
    with pytest.raises(FileAccessError, match="what answers there is not a Dask scheduler"):
        pools.DaskCluster(worker)
    pool = pools.DaskCluster(cluster)
    try:
        monkeypatch.setattr(pools, "WITHOUT_WORKERS", -1)
        monkeypatch.setattr(pool, "_count", lambda: 0)
        with pytest.raises(FileAccessError, match="the scheduler has had no workers for"):
            pool.wait(set(), 0.01)
    finally:
        pool.close()


def test_a_table_of_metadata(files: list[str]) -> None:
    table = scan(files[0])
    assert len(table) == 151
    row = table.set_index("path").loc[str(Path(files[0]) / "000.gguf")]
    assert row["format"] == "gguf"
    assert row["size"] == (SAMPLES / "gguf" / "micro.gguf").stat().st_size
    assert table["problem"].notna().sum() == 1
    with pytest.raises(NoSuchFileError):
        scan("none/*.gguf")


def test_a_table_of_metadata_of_a_bucket(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("s3fs", reason="needs the cloud extra")
    pytest.importorskip("moto", reason="needs the cloud extra, and moto")
    import s3fs

    from atlas_kit.cli.main import run
    from tests.storage.s3_server import s3_serving

    with s3_serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        for name in ("a.gguf", "deep/b.gguf", "deep/er/c.gguf"):
            server.put(name, (SAMPLES / "gguf" / "tiny.gguf").read_bytes())
        server.put("deep/d.atlas", (SAMPLES / "atlas" / "all-types.atlas").read_bytes())
        server.put("deep/readme.txt", b"no model")
        server.forget()
        table = scan("s3://bucket/**/*.gguf")
        assert list(table["path"]) == [
            f"s3://bucket/{name}" for name in ("a.gguf", "deep/b.gguf", "deep/er/c.gguf")
        ]
        assert set(table["parameters"]) == {27808}
        assert len([one for one in server.asked if one[0] == "GET" and one[1].endswith(".gguf")]) == 3
        assert len(server.asked) <= 6
        assert run(["validate", "s3://bucket/deep/", "--workers", "2"]) == 0
        assert "3 files, all well" in capsys.readouterr().out
        assert run(["inspect", "s3://bucket/*.gguf"]) == 0
        assert "s3://bucket/a.gguf" in capsys.readouterr().out
        with pytest.raises(NoSuchFileError, match="the pattern matches no file"):
            scan("s3://bucket/*.none")
