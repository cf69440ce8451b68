"""Ask a real llama.cpp whether it loads a file, and what it says when it does not.

llama.cpp may abort the process on a hostile file, so the question goes to a child process that answers one
line a file and is started again when it dies. The library is the one inside the ``xllamacpp`` wheel, called
through its C API: only ``llama_model_load_from_file``, so nothing is computed and no CPU feature matters.

    with LlamaOracle() as oracle:
        verdict = oracle.load("model.gguf")       # Verdict(ok=False, reason="key 3 is empty", ...)
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

#: Larger than ``llama_model_params`` can be. The C calling conventions pass a structure of this size by
#: (a copy on) the stack, so a callee that knows a smaller one reads its own part and ignores the rest.
_PARAMS_SIZE = 512
#: Offset of the first of the trailing booleans of ``llama_model_params``; the child proves it before use.
_VOCAB_ONLY_AT = 72

_REASONS = (
    re.compile(r"^gguf_\w+: (.*)$", re.M),
    re.compile(r"error loading model(?: \w+)?: (?:error loading model \w+: )?(.*)$", re.M),
    re.compile(r"^(.*GGML_ASSERT.*)$", re.M),
    re.compile(r"^llama_model_load\w*: (.*)$", re.M),
)


@dataclass(frozen=True)
class Verdict:
    """What llama.cpp did with one file."""

    ok: bool
    reason: str
    log: str
    crashed: bool = False
    #: Names that llama.cpp asked for, in its order, found or not.
    wanted: tuple[str, ...] = ()


class OracleUnavailableError(RuntimeError):
    """No llama.cpp to ask: the message says why."""


class LlamaOracle:
    """A child process with llama.cpp in it, restarted whenever a file kills it."""

    def __init__(self, timeout: float = 60.0) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise OracleUnavailableError('no llama.cpp to compare with: pip install "xllamacpp>=2026.10"')
        self._timeout = timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._child: subprocess.Popen[str] | None = None
        self._start()

    def load(self, path: str | os.PathLike[str], *, vocab_only: bool | None = None) -> Verdict:
        """Load one file; ``vocab_only=None`` means: if it holds no tensors, as llama.cpp's own tests do."""
        if self._child is None:
            self._start()
        assert self._child is not None
        assert self._child.stdin is not None
        if vocab_only is None:
            vocab_only = _tensor_count(path) == 0
        self._log.seek(0)
        self._log.truncate()
        self._child.stdin.write(json.dumps([os.fspath(path), vocab_only]) + "\n")
        self._child.stdin.flush()
        answer = self._answer()
        self._log.seek(0)
        log = self._log.read().decode("utf-8", "replace")
        wanted = tuple(re.findall(r"create_tensor: loading tensor (\S+)", log))
        if answer:
            ok = json.loads(answer)
            return Verdict(ok, "" if ok else _reason(log), log, wanted=wanted)
        code = self._bury()
        return Verdict(False, _reason(log) or f"died with status {code}", log, True, wanted)

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        if self._answer().strip() != "ready":
            self._log.seek(0)
            last = self._log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            self.close()
            raise OracleUnavailableError(f"the installed xllamacpp cannot be asked: {''.join(last)}")

    def _answer(self) -> str:
        assert self._child is not None
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._child.stdout, selectors.EVENT_READ)
            if not ready.select(self._timeout):
                self._child.kill()
        return self._child.stdout.readline()

    def close(self) -> None:
        """End the child."""
        self._bury()
        self._log.close()

    def _bury(self) -> int | None:
        """Let go of the child; return its exit status."""
        child, self._child = self._child, None
        if child is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            child.communicate()  # closes its input, which ends it, and the pipes
        return child.wait()

    def __enter__(self) -> LlamaOracle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _tensor_count(path: str | os.PathLike[str]) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(file.read(16)[8:], "little")


def _reason(log: str) -> str:
    for pattern in _REASONS:
        found = pattern.search(log)
        if found:
            return found.group(1).strip()
    return ""


# --- the child -------------------------------------------------------------------------------------------


class _Params(ctypes.Structure):
    _fields_ = (("raw", ctypes.c_ubyte * _PARAMS_SIZE),)


def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    found = [
        *Path(spec.origin).parent.glob("xllamacpp*.so"),
        *Path(spec.origin).parent.glob("xllamacpp*.pyd"),
    ]
    library = ctypes.CDLL(str(found[0]))
    library.llama_model_default_params.restype = _Params
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
    library.llama_model_free.argtypes = [ctypes.c_void_p]
    library.llama_backend_init()
    return library


def _load(library: ctypes.CDLL, path: str, vocab_only: bool) -> bool:
    params = library.llama_model_default_params()
    params.raw[_VOCAB_ONLY_AT] = vocab_only
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    if model:
        library.llama_model_free(model)
    return bool(model)


def _prove(library: ctypes.CDLL) -> None:
    """Load the smallest vocabulary: it loads with ``vocab_only`` and only with it."""

    def text(data: str) -> bytes:
        return len(data).to_bytes(8, "little") + data.encode()

    def string(key: str, value: str) -> bytes:
        return text(key) + (8).to_bytes(4, "little") + text(value)

    def number(key: str, value: int) -> bytes:
        return text(key) + (4).to_bytes(4, "little") + value.to_bytes(4, "little")

    pairs = [
        string("general.architecture", "llama"),
        string("tokenizer.ggml.model", "none"),
        number("llama.vocab_size", 4),
    ]
    data = b"GGUF" + b"".join(n.to_bytes(s, "little") for n, s in ((3, 4), (0, 8), (len(pairs), 8)))
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data + b"".join(pairs))
        file.flush()
        if not _load(library, file.name, True) or _load(library, file.name, False):
            raise SystemExit("its llama_model_params has another layout than this oracle knows")


def _serve() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = _library()
    _prove(library)
    print("ready", flush=True)
    for line in sys.stdin:
        path, vocab_only = json.loads(line)
        os.lseek(2, 0, os.SEEK_SET)  # the parent has emptied the log that both share
        print(json.dumps(_load(library, path, vocab_only)), flush=True)


if __name__ == "__main__" and sys.argv[1:] == ["--serve"]:
    _serve()
