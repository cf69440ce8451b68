"""Files that belong beside a model: LoRA adapters, projectors, importance matrices. What each is, and what it fits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.tensors import TensorInfo

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.imatrix import Imatrix

_A, _B = ".lora_a", ".lora_b"


def companion_facts(model: GGUFFile) -> dict[str, Any] | None:
    """Return what a companion is, as JSON-ready data; ``None`` for a model of its own.

    Every kind has ``kind``, ``summary`` (one line each, label and text) and ``base``: what it says of its model.
    """
    kind = model.get("general.type")
    if kind == "adapter":
        return _lora(model)
    if kind == "mmproj" or model.architecture == "clip":
        return _projector(model)
    if kind == "imatrix":
        from atlas_kit.formats.imatrix import of_gguf

        found = of_gguf(model)
        return None if found is None else imatrix_facts(found)
    return None


def _base(model: GGUFFile) -> str | None:
    """Return what the file says of the model that it was made for."""
    parts = [
        model.get(f"general.base_model.0.{name}") for name in ("organization", "name", "version", "repo_url")
    ]
    words = [str(part) for part in parts if isinstance(part, str) and part]
    return " ".join(words) or None


# --- LoRA ------------------------------------------------------------------------------------------------


def pairs_of(model: GGUFFile) -> dict[str, tuple[TensorInfo | None, TensorInfo | None]]:
    """Return the two halves of each tensor that an adapter changes, by that tensor's name."""
    stems = dict.fromkeys(
        name.removesuffix(_A).removesuffix(_B) for name in model.tensors if name.endswith((_A, _B))
    )
    return {stem: (model.tensors.get(stem + _A), model.tensors.get(stem + _B)) for stem in stems}


def _lora(model: GGUFFile) -> dict[str, Any]:
    pairs = pairs_of(model)
    ranks = Counter(a.dims[-1] for a, _ in pairs.values() if a is not None and a.dims)
    layers = {
        int(name.split(".")[1])
        for name in pairs
        if name.startswith("blk.") and name.split(".")[1].isdecimal()
    }
    parts = Counter(".".join(name.split(".")[2:]) if name.startswith("blk.") else name for name in pairs)
    alpha = model.get("adapter.lora.alpha")
    rank = ", ".join(str(rank) for rank, _ in ranks.most_common())
    changes = ", ".join(name.removesuffix(".weight") for name, _ in parts.most_common(12))
    width = _width(pairs)
    fits = f"a {model.architecture or 'model of unknown family'} model"
    if width:
        fits += f" of width {width}"
    if layers:
        fits += f" with {_count(max(layers) + 1, 'layer')} or more"
    return {
        "kind": "adapter",
        "base": _base(model),
        "rank": [rank for rank, _ in ranks.most_common()],
        "alpha": alpha,
        "tensors": len(pairs),
        "layers": len(layers),
        "summary": [
            [
                "kind",
                f"LoRA adapter ({model.get('adapter.type') or 'lora'}), rank {rank or 'unknown'}, alpha {alpha}",
            ],
            ["changes", f"{_count(len(pairs), 'tensor')} in {_count(len(layers), 'layer')}: {changes}"],
            ["made for", _base(model) or "not said"],
            ["fits", fits],
        ],
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _width(pairs: dict[str, tuple[TensorInfo | None, TensorInfo | None]]) -> int | None:
    """Return the width of the model: the inputs of what reads its states."""
    for name, (a, _) in pairs.items():
        if (
            a is not None
            and a.dims
            and name.split(".")[-2] in ("attn_q", "attn_k", "attn_v", "ffn_up", "ffn_gate")
        ):
            return a.dims[0]
    return None


def _misfits_lora(adapter: GGUFFile, model: GGUFFile) -> list[str]:
    found = []
    if adapter.architecture != model.architecture:
        found.append(f"the adapter is for {adapter.architecture}, and the model is {model.architecture}")
    for name, (a, b) in pairs_of(adapter).items():
        base = model.tensors.get(name)
        if a is None or b is None:
            found.append(f"{name}: one half of the pair is missing")
        elif base is None:
            found.append(f"{name}: the model has no such tensor")
        elif name == "token_embd.weight":
            if (base.dims[0], base.dims[-1]) != (b.dims[-1], a.dims[-1]):
                found.append(f"{name}: the shapes differ")
        elif (a.dims[0], b.dims[-1]) != (base.dims[0], base.dims[1] if len(base.dims) > 1 else 1):
            wanted = " x ".join(map(str, base.dims))
            found.append(f"{name}: the adapter is for {a.dims[0]} x {b.dims[-1]}, and the model has {wanted}")
    return found


# --- projectors ------------------------------------------------------------------------------------------


def _projector(model: GGUFFile) -> dict[str, Any]:
    sees = [name for name in ("vision", "audio") if model.get(f"clip.has_{name}_encoder")]
    types = [model.get(key) for key in
             ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")]  # fmt: skip
    kinds = ", ".join(dict.fromkeys(str(kind) for kind in types if isinstance(kind, str)))
    widths = _projected(model)
    size = model.get("clip.vision.image_size")
    image = f", images of {size} x {size}" if isinstance(size, int) else ""
    return {
        "kind": "mmproj",
        "base": _base(model),
        "encoders": sees,
        "projector": kinds or None,
        "projection_dim": widths,
        "summary": [
            [
                "kind",
                f"projector for {' and '.join(sees) or 'an unknown sense'} ({kinds or 'type not said'}){image}",
            ],
            ["made for", _base(model) or "not said"],
            ["fits", f"a model of width {' or '.join(map(str, widths))}" if widths else "not said"],
        ],
    }


def _projected(model: GGUFFile) -> list[int]:
    found = [model.get(f"clip.{name}.projection_dim") for name in ("vision", "audio")]
    return list(dict.fromkeys(width for width in found if isinstance(width, int) and width))


def _misfits_projector(projector: GGUFFile, model: GGUFFile) -> list[str]:
    width = model.get(f"{model.architecture}.embedding_length")
    widths = _projected(projector)
    if not widths or width in widths:
        return []
    return [f"it projects to a width of {' or '.join(map(str, widths))}, and the model's is {width}"]


# --- importance matrices ---------------------------------------------------------------------------------


def imatrix_facts(found: Imatrix) -> dict[str, Any]:
    """Return what an importance matrix of either format holds."""
    counts = [entry.counts for entry in found.entries]
    least, most = (min(low for low, _ in counts), max(high for _, high in counts)) if counts else (0, 0)
    of = f" of {found.chunk_size} tokens" if found.chunk_size else ""
    number = "unknown" if found.chunks is None else str(found.chunks)
    rows = [
        ["kind", f"importance matrix of {len(found.entries)} matrices"],
        ["text", f"{number} chunks{of}: {', '.join(found.datasets) or 'not said'}"],
        ["counts", f"{least:,} to {most:,}"],
    ]
    if found.unused:
        names = ", ".join(found.unused[:3]) + (" ..." if len(found.unused) > 3 else "")
        rows.append(["never called", f"{len(found.unused)}, in part or whole: {names}"])
    return {
        "kind": "imatrix",
        "base": None,
        "chunks": found.chunks,
        "chunk_size": found.chunk_size,
        "datasets": found.datasets,
        "entries": [entry.to_json() for entry in found.entries],
        "summary": rows,
    }


def _misfits_imatrix(found: Imatrix, model: GGUFFile) -> list[str]:
    out = []
    for entry in found.entries:
        base = model.tensors.get(entry.name)
        if base is None:
            out.append(f"{entry.name}: the model has no such tensor")
        elif entry.columns not in (
            base.row_length,
            base.row_length * (base.dims[2] if len(base.dims) > 2 else 1),
        ):
            out.append(
                f"{entry.name}: it has {entry.columns} inputs here, and {base.row_length} in the model"
            )
    return out


# --- beside a model --------------------------------------------------------------------------------------


def misfits(companion: GGUFFile | Imatrix, model: GGUFFile) -> list[str]:
    """Return why a companion does not fit a model; an empty list if it does.

    Raises
    ------
    InvalidParamError
        It is no companion, but a model of its own.
    """
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.imatrix import of_gguf

    if not isinstance(companion, GGUFFile):
        return _misfits_imatrix(companion, model)
    kind = companion.get("general.type")
    if kind == "adapter":
        return _misfits_lora(companion, model)
    if kind == "mmproj" or companion.architecture == "clip":
        return _misfits_projector(companion, model)
    found = of_gguf(companion)
    if found is None:
        raise InvalidParamError(
            "this is a model of its own: only adapters, projectors and importance matrices fit others",
            path=companion.path,
        )
    return _misfits_imatrix(found, model)
