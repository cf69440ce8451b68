"""What training a model's own weights while reading gains beside a memory, through llama.cpp's ``llama_opt_*``.

    python tools/bench/depth.py [--model GGUF] [--text FILE] [--limit 6144] [--rate 2e-5 ...] [--span 512] [--every 256]

A trial, and no part of the product. The model is copied with float weights, which alone can be trained; every so many
tokens its blocks (or the last few) take one step of Adam on the last ``--span`` tokens, in a context of their own, and
the text goes on with the changed weights. The output matrix stays, so that a memory reads the same rows. Printed are
nats per token over the model alone, from ``--after`` on: of the memory, of training, of both; and what training takes.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.llama import AtlasSession, llama_library  # noqa: E402
from atlas_kit.llama.llama_engine import LlamaEngine  # noqa: E402
from atlas_kit.llama.session_states import new_memory  # noqa: E402
from atlas_kit.operations.perplexity import Rival  # noqa: E402
from atlas_kit.settings.recommend import recommend  # noqa: E402

MODEL = ROOT / "sample_data" / "models" / "tiny-python.gguf"
TEXT = ROOT / "sample_data" / "documents" / "statistics.py"
INT32 = 26  #: GGML_TYPE_I32
_P = ctypes.c_void_p
_FILTER = ctypes.CFUNCTYPE(ctypes.c_bool, _P, _P)


class _Rates(ctypes.Structure):
    """Parameters of ggml's optimisers: Adam's five, then those of plain descent."""

    _fields_ = [
        (name, ctypes.c_float) for name in ("alpha", "beta1", "beta2", "eps", "decay", "sgd", "sgd_decay")
    ]


class _Training(ctypes.Structure):
    """``llama_opt_params``, whole: llama-cpp-python leaves its last field out."""

    _fields_ = [
        ("n_ctx_train", ctypes.c_uint32), ("filter", _FILTER), ("filter_data", _P), ("rates", _P), ("rates_data", _P),
        ("optimizer", ctypes.c_int),
    ]  # fmt: skip


class Trainer:
    """Trains the blocks of an engine's model, one step at a time."""

    def __init__(self, engine: LlamaEngine, rate: float, span: int, blocks: int) -> None:
        self._api = api = llama_library.library().api
        folder = Path(api._lib._name).parent
        self._ggml = ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
        for name, result, arguments in (
            ("ggml_get_name", ctypes.c_char_p, [_P]), ("ggml_get_data", _P, [_P]),
            ("ggml_opt_dataset_init", _P, [ctypes.c_int] * 2 + [ctypes.c_int64] * 4),
            ("ggml_opt_dataset_data", _P, [_P]), ("ggml_opt_dataset_labels", _P, [_P]),
            ("ggml_opt_result_init", _P, []),
        ):  # fmt: skip
            function = getattr(ggml, name)
            function.restype, function.argtypes = result, arguments
        api._lib.llama_opt_init.argtypes = [_P, _P, _Training]
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.span = span
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = params.flash_attn_type = (
            0  # what has a way back: float keys, plain attention
        )
        self._context = api.llama_init_from_model(engine._model, params)
        first = engine.info.n_layer - blocks if blocks else 0
        self.names: list[str] = []

        def wanted(tensor: Any, _: Any) -> bool:
            name = ggml.ggml_get_name(tensor).decode()
            mine = name.startswith("blk.") and int(name.split(".")[1]) >= first
            self.names += [name] * mine
            return mine

        self._kept = _FILTER(wanted), _Rates(rate, 0.0, 0.99, 1e-8, 0.0, rate, 0.0)
        constant = ctypes.cast(ggml.ggml_opt_get_constant_optimizer_params, _P)
        training = _Training(span, self._kept[0], None, constant, ctypes.addressof(self._kept[1]), 0)
        api._lib.llama_opt_init(self._context, engine._model, training)
        self._result = ggml.ggml_opt_result_init()
        self._data = ggml.ggml_opt_dataset_init(INT32, INT32, span, span, 1, 1)
        self._given, self._came = map(self._view, (ggml.ggml_opt_dataset_data, ggml.ggml_opt_dataset_labels))
        self.steps, self.seconds = 0, 0.0

    def _view(self, of: Any) -> Any:
        place = ctypes.cast(self._ggml.ggml_get_data(of(self._data)), ctypes.POINTER(ctypes.c_int32))
        return np.ctypeslib.as_array(place, (self.span,))

    def step(self, tokens: list[int]) -> None:
        """Take a step on the last ``span`` of some tokens."""
        started = time.process_time()
        self._given[:], self._came[:] = tokens[-self.span - 1 : -1], tokens[-self.span :]
        self._api.llama_opt_epoch(self._context, self._data, self._result, None, 1, None, None)
        self.steps, self.seconds = self.steps + 1, self.seconds + time.process_time() - started

    def close(self) -> None:
        """Free the context."""
        self._api.llama_free(self._context)


def read(model: str, tokens: list[int], args: argparse.Namespace, rate: float) -> tuple[dict[str, Any], Any]:
    """Read a text, training with a rate (0: not at all).

    Returns
    -------
    The losses without and with a memory, and the trainer.
    """
    with LlamaEngine(model, n_ctx=args.n_ctx, n_threads=1, extra_buffers=False) as engine:
        rivals = [
            Rival("model", None),
            Rival("with memory", new_memory(engine, recommend(args.model).settings)),
        ]

        def listen(*outputs: Any) -> None:
            for rival in rivals:
                rival.listen(*outputs)

        trainer = Trainer(engine, rate, args.span, args.blocks) if rate else None
        tokens = [*engine.begin, *tokens]
        with AtlasSession(engine, None) as session:
            for at in range(0, len(tokens), args.every):
                session.run(session.reading(tokens[at : at + args.every], listen=listen))
                if trainer is not None and args.span < at + args.every < len(tokens):
                    trainer.step(tokens[: at + args.every])
        if trainer is not None:
            trainer.close()
    return {rival.kind: -np.log(np.maximum(rival.found[:, 3], 1e-300)) for rival in rivals}, trainer


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", default=str(TEXT))
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--limit", type=int, default=6144, help="tokens of the text")
    parser.add_argument("--after", type=int, default=3072, help="what counts are the tokens from here on")
    parser.add_argument("--rate", type=float, nargs="+", default=[2e-5, 6e-5], help="step sizes of Adam")
    parser.add_argument("--blocks", type=int, default=0, help="the last blocks that are trained; 0: all")
    parser.add_argument("--span", type=int, default=512, help="tokens of one step")
    parser.add_argument("--every", type=int, default=256, help="tokens between two steps")
    args = parser.parse_args()
    api = llama_library.library().api
    default = api.llama_model_default_params

    def in_main_memory() -> Any:
        params = default()
        params.load_mode = api.LLAMA_LOAD_MODE_NONE  # a file that is mapped cannot be written to
        return params

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "float.gguf")
        params = api.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = 0, True, 1
        if api.llama_model_quantize(args.model.encode(), path.encode(), ctypes.byref(params)):
            raise SystemExit("llama.cpp does not copy this model with float weights")
        api.llama_model_default_params = in_main_memory
        with LlamaEngine(args.model, n_ctx=512, n_threads=1) as engine:
            tokens = engine.tokenize(Path(args.text).read_text(encoding="utf-8"))[: args.limit]
        plain, _ = read(path, tokens, args, 0.0)
        alone = plain["model"]
        print(
            f"{Path(args.text).name}: {len(tokens):,} tokens, float weights {Path(path).stat().st_size / 1e6:.0f} MB"
        )
        print(f"  the model alone: perplexity {math.exp(alone[args.after :].mean()):.3f}")

        def gain(losses: Any) -> str:
            return f"{float((alone - losses)[args.after :].mean()):+.4f}"

        print(f"  memory {gain(plain['with memory'])}", flush=True)
        for rate in args.rate:
            found, trainer = read(path, tokens, args, rate)
            print(
                f"  rate {rate:g}, {len(trainer.names)} tensors, {trainer.steps} steps: "
                f"trained {gain(found['model'])}, with memory {gain(found['with memory'])}, "
                f"{1e6 * trainer.seconds / len(tokens):.0f} us a token",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
