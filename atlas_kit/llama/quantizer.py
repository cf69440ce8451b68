"""llama.cpp's own quantiser, in a process of its own: what it aborts on ends that process, and Ctrl-C ends it at once.

``TYPES`` are the ways that it knows and that need no importance matrix. Which tensors become which type is llama.cpp's
choice: mixtures such as Q4_K_M keep some tensors wider. Knows no command and no report.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from atlas_kit.errors import MissingExtraError, ModelError

#: How a model is quantised, by the name that people use: llama.cpp's ``llama_ftype``.
TYPES: dict[str, int] = {
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q8_0": 7,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
    "tq1_0": 36,
    "tq2_0": 37,
    "mxfp4": 38,
}
_STEP = re.compile(rb"^\[\s*(\d+)/\s*(\d+)\]")
_MARK = "\0step "


@dataclass(frozen=True)
class Job:
    """One model to quantise: ``pure`` gives every matrix the same type, ``requantize`` takes quantised ones, too."""

    source: str
    kind: str
    requantize: bool = False
    pure: bool = False
    threads: int = 0


def quantize(job: Job, out: IO[bytes], progress: Callable[[int, int], None] | None = None) -> None:
    """Quantise a model (of a split one all shards, from the path of the first) into an open, empty file.

    ``progress`` is told the number of the tensor and how many there are.

    Raises
    ------
    MissingExtraError
        llama-cpp-python is not installed.
    ModelError
        llama.cpp refuses the model, or crashes on it: in its words.
    OSError
        The disk is full, or the file may not grow so large.
    """
    fd = out.fileno()
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    given = json.dumps([os.fsencode(job.source).hex(), fd, job.kind, job.requantize, job.pure, job.threads])
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        pass_fds=(fd,), env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    lines: list[str] = []
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(given.encode())
        child.stdin.close()
        for raw in child.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            if line.startswith(_MARK):
                if progress is not None:
                    done, count = map(int, line[len(_MARK) :].split())
                    progress(done, count)
            elif line.strip():
                lines = [*lines[-19:], line.strip()]
        code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close() if child.stdout else None
    if code == _MISSING:
        raise MissingExtraError("quantising to this type", "llama")
    if code and os.fstatvfs(fd).f_bavail == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code:
        reason = _reason(lines, code)
        if "iostream error" in reason:  # what C++ says of a failed write; writing on tells why
            os.pwrite(fd, b"\0", os.fstat(fd).st_size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        raise ModelError(f"llama.cpp does not quantise this model: {reason}", path=job.source)


_REFUSED, _MISSING = 3, 4
#: What says why, the most telling first.
_WHY = (re.compile(r"failed to quantize:\s*(.*)"), re.compile(r"(GGML_ASSERT.*)"), re.compile(r"(.*rror.*)"))


def _reason(lines: list[str], code: int) -> str:
    """Return the most telling of the last lines of llama.cpp's log."""
    for why in _WHY:
        for line in reversed(lines):
            match = why.search(line)
            if match and match[1].strip():
                return match[1].strip()
    return lines[-1] if lines else f"it ended with {code}"


# --- the child process -------------------------------------------------------------------------------------


def _main() -> int:
    """Read a job from standard input and do it; what llama.cpp says goes to standard output, line by line."""
    source, fd, kind, requantize, pure, threads = json.loads(sys.stdin.read())
    from atlas_kit.llama import llama_binding

    try:
        api = llama_binding.low_level()
    except ImportError:
        return _MISSING
    said = bytearray()

    def log(_level: int, text: bytes, _: Any) -> None:
        said.extend(text)
        *whole, rest = bytes(said).split(b"\n")
        said[:] = rest
        for line in whole:
            _say(line)
        step = _STEP.match(rest)
        if step:
            _say(rest)
            said.clear()

    callback = api.llama_log_callback(log)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    api.llama_backend_init()
    params = api.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.pure = TYPES[kind], requantize, pure
    params.nthread = threads or len(os.sched_getaffinity(0))
    failed = api.llama_model_quantize(bytes.fromhex(source), f"/dev/fd/{fd}".encode(), ctypes.byref(params))
    if said:
        _say(bytes(said))
    return _REFUSED if failed else 0


def _say(line: bytes) -> None:
    step = _STEP.match(line)
    text = f"{_MARK}{int(step[1])} {int(step[2])}" if step else line.decode("utf-8", "replace")
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:  # whoever asked for it was killed
        os._exit(_REFUSED)


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)
