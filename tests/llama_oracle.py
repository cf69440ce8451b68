"""Ask a real llama.cpp whether it loads a file, and what it says when it does not.

llama.cpp may abort the process on a hostile file, so the question goes to a child process that answers one
line a file and is started again when it dies. The library is the one inside the ``xllamacpp`` wheel, called
through its C API. ``load`` only loads: nothing is computed and no CPU feature matters. ``decode`` goes on with two
tokens, of which llama.cpp dies where a model's numbers or types are not what its operations take.

    with LlamaOracle() as oracle:
        verdict = oracle.load("model.gguf")       # Verdict(ok=False, reason="key 3 is empty", ...)
        verdict = oracle.decode("model.gguf")     # Verdict(ok=False, reason="GGML_ASSERT(eps >= 0.0f) ...", ...)
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import math
import os
import re
import selectors
import struct
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
    re.compile(r"^llama_model_load\w*: (?!loaded meta data)(.*)$", re.M),
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
    #: Of ``decode``: whether all logits are numbers.
    finite: bool = True


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
        if vocab_only is None:
            vocab_only = _tensor_count(path) == 0
        return self._ask(path, vocab_only, 0)

    def decode(self, path: str | os.PathLike[str], tokens: int = 2) -> Verdict:
        """Load one file and decode so many tokens, one after the other."""
        return self._ask(path, False, tokens)

    def _ask(self, path: str | os.PathLike[str], vocab_only: bool, tokens: int) -> Verdict:
        if self._child is None:
            self._start()
        assert self._child is not None
        assert self._child.stdin is not None
        self._log.seek(0)
        self._log.truncate()
        self._child.stdin.write(json.dumps([os.fspath(path), vocab_only, tokens]) + "\n")
        self._child.stdin.flush()
        answer = self._answer()
        self._log.seek(0)
        log = self._log.read().decode("utf-8", "replace")
        wanted = tuple(re.findall(r"create_tensor: loading tensor (\S+)", log))
        if answer:
            ok, finite = json.loads(answer)
            return Verdict(ok, "" if ok else _reason(log), log, wanted=wanted, finite=finite)
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
    """``llama_model_params`` or ``llama_context_params``, which begins with n_ctx, n_batch and n_ubatch."""

    _fields_ = (("raw", ctypes.c_ubyte * _PARAMS_SIZE),)


class _Batch(ctypes.Structure):
    """``llama_batch``: n_tokens, and six pointers."""

    _fields_ = (("n_tokens", ctypes.c_int32), *((f"pointer{n}", ctypes.c_void_p) for n in range(6)))


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
    library.llama_context_default_params.restype = _Params
    library.llama_init_from_model.restype = ctypes.c_void_p
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, _Params]
    library.llama_free.argtypes = [ctypes.c_void_p]
    library.llama_batch_get_one.restype = _Batch
    library.llama_batch_get_one.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_decode.restype = ctypes.c_int32
    library.llama_decode.argtypes = [ctypes.c_void_p, _Batch]
    library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_get_logits.argtypes = [ctypes.c_void_p]
    library.llama_model_get_vocab.restype = ctypes.c_void_p
    library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    library.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    library.llama_backend_init()
    return library


def _load(library: ctypes.CDLL, path: str, vocab_only: bool, tokens: int = 0) -> tuple[bool, bool]:
    """Return whether the file loads (and decodes), and whether all logits are finite."""
    params = library.llama_model_default_params()
    params.raw[_VOCAB_ONLY_AT] = vocab_only
    model = library.llama_model_load_from_file(os.fsencode(path), params)
    answer = bool(model), True
    if model and tokens:
        answer = _decode(library, model, tokens)
    if model:
        library.llama_model_free(model)
    return answer


def _decode(library: ctypes.CDLL, model: int, tokens: int) -> tuple[bool, bool]:
    params = library.llama_context_default_params()
    params.raw[0:12] = struct.pack("<3I", 64, 64, 64)
    context = library.llama_init_from_model(model, params)
    if not context:
        return False, True
    ok, finite = True, True
    size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    for number in range(tokens):
        token = (ctypes.c_int32 * 1)((5 + 2 * number) % max(1, size))
        ok = ok and library.llama_decode(context, library.llama_batch_get_one(token, 1)) == 0
        if ok:
            logits = library.llama_get_logits(context)
            finite = finite and all(map(math.isfinite, logits[0:size]))
    library.llama_free(context)
    return ok, finite


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
        if not _load(library, file.name, True)[0] or _load(library, file.name, False)[0]:
            raise SystemExit("its llama_model_params has another layout than this oracle knows")


def _serve() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = _library()
    _prove(library)
    print("ready", flush=True)
    for line in sys.stdin:
        path, vocab_only, tokens = json.loads(line)
        os.lseek(2, 0, os.SEEK_SET)  # the parent has emptied the log that both share
        print(json.dumps(_load(library, path, vocab_only, tokens)), flush=True)


if __name__ == "__main__" and sys.argv[1:] == ["--serve"]:
    _serve()
