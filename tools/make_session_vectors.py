"""Build ``formats/vectors/atlas-session.json`` and ``formats/atlas-session.schema.json``.

The vectors are small sessions made of numbers that every type holds exactly, so that no processor changes a bit.

    python tools/make_session_vectors.py            # write both files again
    python tools/make_session_vectors.py --check    # exit 1 when that would change one
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.formats.atlas import MemoryFile  # noqa: E402
from atlas_kit.memory import Memory  # noqa: E402
from atlas_kit.persistence.entry_keys import CONTEXT, DESCRIPTION  # noqa: E402
from atlas_kit.persistence.session_file import packed, write_session_state  # noqa: E402
from atlas_kit.persistence.session_state import SessionState  # noqa: E402
from atlas_kit.persistence.tables import runtime_schema  # noqa: E402
from atlas_kit.settings.atlas_settings import AtlasSettings  # noqa: E402

VECTORS = ROOT / "formats" / "vectors" / "atlas-session.json"
SCHEMA = ROOT / "formats" / "atlas-session.schema.json"
NOW = 1_700_000_000
WIDTH, VOCABULARY = 4, 8
IDENTITY = bytes(range(32)).hex()

ABOUT = [
    "Each vector is a whole .atlas file as hex, and the session that a reader must find in it, or the error to report.",
    "memory, waiting, output: arrays by name as dtype, shape and values in C order; the numbers are exact.",
    "-inf among the values is written as null. context: llama.cpp's bytes as hex, null where there are none.",
    "built: a writer that is given these values at this time writes exactly these bytes.",
    "error: the C library's enum.",
]

HostArray = np.ndarray[Any, Any]


def exact(dtype: Any, shape: tuple[int, ...], first: int = 0) -> HostArray:
    """Return small numbers: eighths of whole ones, or whole ones below the vocabulary."""
    count = int(np.prod(shape, dtype=np.int64))
    numbers = (np.arange(count) + first) % VOCABULARY
    return (numbers if np.dtype(dtype).kind in "iu" else numbers / 8).astype(dtype).reshape(shape)


def session_state(waiting: int, context: bool) -> SessionState:
    """Return a session in which so many tokens wait for their step."""
    settings = AtlasSettings(
        window_size=4,
        memory_dim=2,
        omega_window=4,
        chunk_size=4,
        candidates=3,
        blend_ratio=0.5,
        features="polynomial",
        recall_gate=0.3,
    )
    memory = Memory(settings.memory_config(WIDTH, 1.0, None), "numpy")
    empty = memory.init()
    state = empty.map(lambda array: exact(array.dtype, array.shape, 1))
    state.window["valid"][...] = 1
    counts = {"seen": 8, "learned": 8, "filled": 7, "steps": 2}
    for name, counter in state.counters.items():
        counter[...] = counts.get(name, 0)
    kept: dict[str, HostArray] = {}
    if waiting:
        shapes = {
            "hidden": ("float32", (WIDTH,)), "lse": ("float64", ()), "token": ("int64", ()), "top": ("int64", (3,)),
            "features": ("float64", (5,)), "probabilities": ("float64", (3,)), "slope": ("float64", (4,)),
        }  # fmt: skip
        kept = {name: exact(dtype, (waiting, *shape), 2) for name, (dtype, shape) in shapes.items()}
    kept |= {"recent": exact("int32", (8,), 3), "log_eta": np.asarray(0.125)}
    logits = exact("float32", (1, VOCABULARY), 5)
    logits[0, 3] = -np.inf
    rest: dict[str, Any] = {
        "tokens": (1, 2, 3, 4, 5), "position": 5, "context": b"llama.cpp's own bytes",
        "output": {"logits": logits, "hidden": exact("float32", (1, WIDTH), 6)},
    }  # fmt: skip
    return SessionState(
        memory.config, state, settings.to_json(), kept, IDENTITY, "tiny", "llama", **(rest if context else {})
    )


def plain(arrays: Mapping[str, HostArray]) -> dict[str, Any]:
    """Write arrays the way the vectors do."""
    return {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "values": [None if value == -np.inf else value for value in np.ravel(array).tolist()],
        }
        for name, array in arrays.items()
    }


def meaning(state: SessionState) -> dict[str, Any]:
    """Say what a state is (used by the test as well)."""
    groups = state.memory.groups().items()
    return {
        "identity": state.identity,
        "model": state.model,
        "architecture": state.architecture,
        "settings": dict(state.settings),
        "memory": plain({f"{group}.{name}": a for group, arrays in groups for name, a in arrays.items()}),
        "waiting": plain(state.waiting),
        "tokens": list(state.tokens),
        "position": state.position,
        "output": plain(state.output),
        "context": None if state.context is None else state.context.hex(),
    }


def written(
    state: SessionState, change: Callable[[dict[str, Any]], object] | None = None, **options: Any
) -> str:
    """Return a file with a state as hex; ``change`` is applied to its ``runtime``."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", SOURCE_DATE_EPOCH=str(NOW)):
        path = Path(folder) / "m.atlas"
        write_session_state(path, state, **options)
        if change is not None:
            with MemoryFile.open(path) as file:
                document = copy.deepcopy(file[DESCRIPTION].json())
                change(document["metadata"]["runtime"])
                file.set(DESCRIPTION, document, type=file[DESCRIPTION].type)
                file.save(path)
        return path.read_bytes().hex()


HARMS: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "version": ("of a version that does not exist yet", lambda r: r.update(version=2), "VERSION_MISMATCH"),
    "no-settings": ("not made beside a language model", lambda r: r.pop("settings"), "INVALID_PARAM"),
    "base64": (
        "an array that is not base64",
        lambda r: r["waiting"]["lse"].update(data="***"),
        "FILE_CORRUPT",
    ),
    "lengths": (
        "arrays that wait are of different lengths",
        lambda r: r["waiting"].update(token=packed(np.ones(1, np.int64))),
        "FILE_CORRUPT",
    ),
    "missing": ("an array that waits is missing", lambda r: r["waiting"].pop("top"), "FILE_CORRUPT"),
    "nan": (
        "an array with NaN",
        lambda r: r["waiting"].update(log_eta=packed(np.asarray(np.nan))),
        "FILE_CORRUPT",
    ),
}  # fmt: skip


def vectors() -> str:
    """Return the vectors' text."""
    rows: list[dict[str, Any]] = []
    options: dict[str, Any]
    for name, what, state, options in (
        ("v2-context", "two tokens wait, and the context was kept", session_state(2, True), {}),
        ("v2-bare", "nothing waits, and the context was left out", session_state(0, False), {}),
        ("v1-context", "the same as v2-context in version 1", session_state(2, True), {"version": 1}),
    ):
        row = {"name": name, "what": what, "hex": written(state, **options), "valid": True, "built": True}
        rows.append({**row, **options, "time": NOW, **meaning(state)})
    state = session_state(2, False)
    for name, (what, change, error) in HARMS.items():
        rows.append(
            {"name": name, "what": what, "hex": written(state, change), "valid": False, "error": error}
        )
    document = {"format": "atlas-session", "about": ABOUT, "context_entry": CONTEXT, "vectors": rows}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace('{"name":', '\n{"name":').replace('"about":', '\n"about":') + "\n"


def main() -> int:
    """Write the files, or see that they are what would be written."""
    schema = json.dumps(runtime_schema(), indent=1, ensure_ascii=False) + "\n"
    stale = 0
    for path, text in ((VECTORS, vectors()), (SCHEMA, schema)):
        if "--check" in sys.argv:
            stale |= int(not path.exists() or path.read_text(encoding="utf-8") != text)
            continue
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text):,} characters")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
