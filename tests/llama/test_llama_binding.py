"""llama-cpp-python without what its package brings along."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def said(code: str) -> list[str]:
    """Return what a new interpreter prints, line by line."""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return run.stdout.splitlines()


def test_the_packages_own_code_does_not_run():
    found = said(
        "import sys; from atlas_kit.llama import llama_binding as b; api = b.low_level(); "
        "print(api.__name__, 'llama_cpp.llama' in sys.modules, 'jinja2' in sys.modules, 'numpy' in sys.modules); "
        "print(b.version()); import llama_cpp; print(llama_cpp.__version__)"
    )
    assert found[0] == "llama_cpp.llama_cpp False False False"
    assert found[1] == found[2]


def test_whoever_wants_the_package_has_it_whole():
    found = said(
        "from atlas_kit.llama import llama_binding as b; api = b.low_level(); import llama_cpp; "
        "from llama_cpp import Llama; import llama_cpp.llama_cpp as low; "
        "print(Llama.__module__, llama_cpp.llama_decode is api.llama_decode, low is api, b.low_level() is api); "
        "print(hasattr(llama_cpp, 'no_such_name'), llama_cpp.llama_cpp is api)"
    )
    assert found == ["llama_cpp.llama True True True", "False True"]


def test_a_package_that_is_there_already_is_taken():
    assert said(
        "import llama_cpp; from atlas_kit.llama import llama_binding as b; "
        "print(b.low_level() is llama_cpp.llama_cpp, b.version() == llama_cpp.__version__)"
    ) == ["True True"]


def test_a_schema_needs_no_more_of_the_package_and_leaves_no_file_open():
    code = (
        "import sys; from atlas_kit.llama.schema_grammar import schema_rules; schema_rules({'type': 'string'}); "
        "print(sorted(name for name in sys.modules if name.startswith('llama_cpp.')))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    wanted = ["_ctypes_extensions", "llama_cpp", "llama_grammar"]
    assert run.stdout.strip() == str([f"llama_cpp.{name}" for name in wanted])
    assert run.stderr == ""


def test_grammars_of_schemas_find_their_module():
    assert said(
        "from atlas_kit.llama import llama_binding as b; b.low_level(); "
        "from atlas_kit.llama.schema_grammar import schema_rules; print('root' in schema_rules({'type': 'object'}))"
    ) == ["True"]


def test_no_package(monkeypatch):
    from atlas_kit.llama import llama_binding

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ImportError):
        llama_binding.low_level()


@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_library_that_cannot_be_loaded_is_told_of(tmp_path, content):
    for name in ("libllama.so", "libllama.dylib", "llama.dll"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
    code = (
        "from atlas_kit.errors import ModelError\nfrom atlas_kit.llama.llama_library import library\n"
        "try:\n    library()\nexcept ModelError as error:\n    print(error.message)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path)},
    )  # fmt: skip
    assert run.stdout.startswith("llama.cpp's library cannot be loaded: "), run.stderr
