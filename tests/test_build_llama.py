"""What ``make`` does to install llama.cpp, without compiling anything."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

from tools import build_llama


@pytest.fixture
def builder(monkeypatch):
    """Return the module with nothing installed, compilers there and a build that works; ``built`` lists the builds."""
    monkeypatch.setattr(build_llama, "built", [], raising=False)
    monkeypatch.setattr(build_llama, "is_installed", lambda: False)
    monkeypatch.setattr(build_llama, "runs", lambda: True)
    monkeypatch.setattr(build_llama, "compilers", lambda: ("cc", "c++"))
    monkeypatch.setattr(build_llama, "accepts", lambda compiler, flags: True)

    def pip(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        build_llama.built.append((arguments, env))
        return subprocess.CompletedProcess(arguments, 0, "")

    monkeypatch.setattr(build_llama, "pip", pip)
    return build_llama


def test_it_installs_what_the_extra_asks_for():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    project = tomllib.loads((build_llama.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert build_llama.requirements() == project["optional-dependencies"]["llama"]


def test_nothing_is_built_twice(builder, monkeypatch):
    monkeypatch.setattr(builder, "is_installed", lambda: True)
    builder.main()
    assert builder.built == []


def test_one_build_is_enough_when_it_runs(builder, capsys):
    builder.main()
    ((arguments, _),) = builder.built
    assert list(arguments) == builder.requirements()
    assert "minutes" in capsys.readouterr().out


def test_a_kept_build_from_another_processor_is_made_again(builder, monkeypatch, capsys):
    answers = iter([False, True])
    monkeypatch.setattr(builder, "runs", lambda: next(answers))
    builder.main()
    (_, (again, _)) = builder.built
    assert "--no-cache-dir" in again
    assert "does not run on this processor" in capsys.readouterr().out


def test_a_build_that_never_runs_is_an_error(builder, monkeypatch):
    monkeypatch.setattr(builder, "runs", lambda: False)
    with pytest.raises(SystemExit, match="does not run here"):
        builder.main()


def test_a_failed_build_shows_why(builder, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "one\ntwo: no such header\n")
    monkeypatch.setattr(builder, "pip", lambda *_, env=None: failed)
    with pytest.raises(SystemExit, match="could not be built"):
        builder.main()
    assert "two: no such header" in capsys.readouterr().err


def test_a_missing_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setattr(build_llama, "is_installed", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler.*apt-get install g\+\+"):
        build_llama.main()


def test_amx_is_left_out_where_the_compiler_knows_it(builder, monkeypatch):
    monkeypatch.setenv("CFLAGS", "-g")
    env = builder.build_environment("cc", "c++")
    assert env["CFLAGS"].split() == [*builder.NO_AMX, "-g"]
    monkeypatch.setattr(builder, "accepts", lambda compiler, flags: False)
    assert builder.build_environment("cc", "c++")["CFLAGS"] == "-g"


def test_what_the_user_asks_for_comes_last(builder, monkeypatch):
    monkeypatch.setenv("CMAKE_ARGS", "-DLLAVA_BUILD=ON")
    monkeypatch.setenv("CMAKE_BUILD_PARALLEL_LEVEL", "7")
    env = builder.build_environment("cc", "c++")
    assert shlex.split(env["CMAKE_ARGS"])[-1] == "-DLLAVA_BUILD=ON"
    assert env["CMAKE_BUILD_PARALLEL_LEVEL"] == "7"


def test_a_compiler_is_asked(tmp_path):
    for answer in (0, 1):
        compiler = tmp_path / f"cc{answer}"
        compiler.write_text(f"#!/bin/sh\nexit {answer}\n")
        compiler.chmod(0o755)
        assert build_llama.accepts(str(compiler), ["-mno-amx-tile"]) is (answer == 0)


def test_the_included_file_is_there(builder):
    arguments = shlex.split(builder.build_environment("cc", "c++")["CMAKE_ARGS"])
    (included,) = (text.partition("=")[2] for text in arguments if "_INCLUDE=" in text)
    assert os.path.isfile(included)


@pytest.mark.model
def test_the_installed_llama_cpp_runs():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    assert build_llama.runs()


# --- llama.cpp's own server ------------------------------------------------------------------------------


@pytest.fixture
def server_builder(builder, monkeypatch, tmp_path):
    """Return the module with an archive to fetch and steps that compile nothing; ``steps`` lists them."""
    monkeypatch.setattr(builder, "steps", [], raising=False)
    monkeypatch.setattr(builder, "SERVERS", tmp_path / "servers")
    monkeypatch.setattr(builder, "server_version", lambda: "1.2.3")
    monkeypatch.setattr(builder, "cmake", lambda: "cmake")
    source = tmp_path / "llama_cpp_python-1.2.3"
    (source / "vendor" / "llama.cpp" / "tools" / "server").mkdir(parents=True)

    def step(command, env, failure):
        command = [str(part) for part in command]
        builder.steps.append((command, env))
        if "download" in command:
            folder = command[command.index("--dest") + 1]
            with tarfile.open(os.path.join(folder, f"{source.name}.tar.gz"), "w:gz") as file:
                file.add(source, source.name)
        elif "--build" in command:
            made = Path(command[command.index("--build") + 1]) / "bin" / "llama-server"
            made.parent.mkdir(parents=True)
            made.write_text("#!/bin/sh\nexit 0\n")
            made.chmod(0o755)

    monkeypatch.setattr(builder, "step", step)
    return builder


def test_the_server_is_that_of_the_installed_release(server_builder, capsys):
    server = server_builder.build_server()
    assert server == server_builder.server_path("1.2.3")
    assert os.access(server, os.X_OK)
    fetched, configured, built = (command for command, _ in server_builder.steps)
    assert fetched[-1] == "llama-cpp-python==1.2.3"
    assert configured[configured.index("-S") + 1].endswith("llama_cpp_python-1.2.3/vendor/llama.cpp")
    assert built[-2:] == ["--target", "llama-server"]
    assert "1.2.3" in capsys.readouterr().out


def test_the_server_is_compiled_as_the_package_is(server_builder, monkeypatch):
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    server_builder.build_server()
    _, (configured, env), _ = server_builder.steps
    assert {"-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_UI=OFF"} <= set(configured)
    assert configured[-1] == "-DGGML_CUDA=on"
    assert not [option for option in configured if option.startswith("-DGGML_") and "CUDA" not in option]
    assert env["CXXFLAGS"].split() == list(server_builder.NO_AMX)


def test_the_server_is_not_built_twice(server_builder, capsys):
    server_builder.main(["--server"])
    count = len(server_builder.steps)
    server_builder.main(["--server"])
    assert len(server_builder.steps) == count
    assert "is there" in capsys.readouterr().out.splitlines()[-1]
    assert server_builder.built == []


@pytest.mark.parametrize(
    ("name", "sentence"), [("compilers", r"no C\+\+ compiler"), ("cmake", "compiled with CMake")]
)
def test_what_the_server_needs_is_one_sentence(server_builder, monkeypatch, name, sentence):
    monkeypatch.setattr(server_builder, name, lambda: None)
    with pytest.raises(SystemExit, match=sentence):
        server_builder.build_server()
    assert server_builder.steps == []


def test_a_server_that_does_not_run_is_an_error(server_builder, monkeypatch):
    monkeypatch.setattr(server_builder, "starts", lambda server: False)
    with pytest.raises(SystemExit, match="does not run here"):
        server_builder.build_server()


def test_a_source_without_a_server_is_an_error(tmp_path):
    archive = tmp_path / "llama_cpp_python-0.tar.gz"
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(SystemExit, match="has no source of llama-server"):
        build_llama.unpack(archive, tmp_path)


def test_a_failed_step_shows_why(capsys):
    with pytest.raises(SystemExit, match="could not be made: the reason is above"):
        build_llama.step(
            ["sh", "-c", "echo no such header; exit 1"], dict(os.environ), "it could not be made"
        )
    assert "no such header" in capsys.readouterr().err
