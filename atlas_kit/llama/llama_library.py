"""llama.cpp itself, and a model that it has loaded: the one module that imports it, when a model is loaded.

Needs no NumPy, so that a model can be loaded while that is imported.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import os
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from atlas_kit.errors import AtlasError, InvalidParamError, MissingExtraError, ModelError
from atlas_kit.llama import llama_binding, waiting
from atlas_kit.llama.model_file import ModelFile
from atlas_kit.settings.model_facts import require_family
from atlas_kit.storage.urls import require_here

T = TypeVar("T")
_WARN, _ERROR, _CONT = 3, 4, 5
#: The version of llama-cpp-python that was tried, and names of its functions.
_TRIED = (0, 3, 36)
_MIDDLE_STATES = (
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
)
_PRODUCTS = {
    "Q4_0": "dequantize_row_q4_0",
    "Q5_0": "dequantize_row_q5_0",
    "Q6_K": "dequantize_row_q6_K",
    "Q8_0": "dequantize_row_q8_0",
}
_AMX_NOTE = (
    "this CPU has AMX, with which llama.cpp builds of many compilers crash, so its special buffers are off; "
    "extra_buffers=True (or ATLAS_KIT_EXTRA_BUFFERS=1) switches them on"
)


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers that compare.

    >>> _numbers("0.3.36"), _numbers("0.3.4+cu124"), _numbers("")
    ((0, 3, 36), (0, 3, 4), ())
    """
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


class _Library:
    """The loaded library: imported once, its log kept instead of printed."""

    def __init__(self) -> None:
        try:
            with waiting.brief_waiting() as late:
                self.api = api = llama_binding.low_level()
        except ImportError as error:
            raise MissingExtraError("running a model", "llama") from error
        except (OSError, RuntimeError) as error:  # the library itself, or one that it needs, such as CUDA's
            raise ModelError(
                f"llama.cpp's library cannot be loaded: {error}",
                hint="Install a build of llama-cpp-python that is made for this machine; LLAMA_CPP_LIB_PATH names "
                "another library.",
            ) from error
        self.version = llama_binding.version()
        self.log: collections.deque[str] = collections.deque(maxlen=20)
        self._level = 0
        self._callback = api.llama_log_callback(self._logged)  # kept alive: C holds only its address
        # a function of llama.cpp that does nothing, whatever it is given
        silent = ctypes.cast(api.llama_supports_mmap, ctypes.c_void_p).value
        self._silent = api.llama_log_callback(silent)
        self._hearing = threading.Lock()
        api.llama_log_set(self._callback, ctypes.c_void_p(0))
        api.llama_backend_init()
        info = api.llama_print_system_info().decode("ascii", "replace")
        self.has_amx = "AMX_INT8 = 1" in info
        self.notes = waiting.notes(late, info)

    @property
    def middle_states(self) -> tuple[Any, Any] | None:
        """Functions that switch states at a layer's input on, and give them; None: this build has none.

        llama.cpp has them for its own draft models, and in no header: they go by the names that C++ makes.
        Versions before the one that was tried may end the process where a graph lacks such states.
        """
        if _numbers(self.version) < _TRIED:
            return None
        try:
            show, give = (self.api._lib[name] for name in _MIDDLE_STATES)
        except AttributeError:
            return None
        show.argtypes, show.restype = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool], None
        give.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        give.restype = ctypes.POINTER(ctypes.c_float)
        return show, give

    @functools.cached_property
    def native(self) -> dict[str, Callable[[int, int, int], None]]:
        """Functions that turn weights into numbers, by the names of types, as far as this build gives them out.

        Of types whose numbers are products alone: a sum behind a product is rounded once or twice, as a build likes.
        """
        found = {}
        for name, function in _PRODUCTS.items():
            with contextlib.suppress(AttributeError):
                native = self.api._lib[function]
                native.argtypes, native.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
                found[name] = native
        return found

    def _logged(self, level: int, text: bytes, _: Any) -> None:
        self._level = self._level if level == _CONT else level
        if self._level in (_WARN, _ERROR) and text.strip():
            self.log.append(text.decode("utf-8", "replace").strip())

    def heard(self, call: Callable[[], T]) -> T:
        """Return what a call returns; where that is nothing, call once more, and keep what llama.cpp says meanwhile.

        It says hundreds of lines while it loads a model, and for each it would wait for the interpreter, which other
        threads keep busy.
        """
        if not self._hearing.locked():
            self.api.llama_log_set(self._silent, ctypes.c_void_p(0))
        try:
            found = call()
        finally:
            self.api.llama_log_set(self._callback, ctypes.c_void_p(0))
        if not found:
            with self._hearing:
                self.log.clear()
                found = call()
        return found

    def last_error(self) -> str:
        """The most telling of the last lines that llama.cpp logged."""
        lines = [line.split(": ", 1)[-1] for line in self.log if "rror" in line] or list(self.log)
        return lines[0] if lines else "no reason given"


_library: _Library | None = None


def library() -> _Library:
    """Return llama.cpp, loaded on the first call.

    Raises
    ------
    MissingExtraError
        When llama-cpp-python is not installed.
    """
    global _library  # the backend is initialised once per process
    if _library is None:
        _library = _Library()
    return _library


def _safe_buffers(has_amx: bool, wanted: bool | None) -> bool:
    """Decide about llama.cpp's special CPU buffers: what the caller says, else the environment, else what is safe."""
    if wanted is None and (text := os.environ.get("ATLAS_KIT_EXTRA_BUFFERS")) in ("0", "1"):
        wanted = text == "1"
    return not has_amx if wanted is None else wanted


class LoadedModel:
    """A model that llama.cpp has loaded, and its file.

    Parameters
    ----------
    path, n_gpu_layers, extra_buffers, check_later
        See ``LlamaEngine``.
    file
        The file, where it is open already.

    Raises
    ------
    MissingExtraError, ModelError, InvalidParamError, FileCorruptError
        llama-cpp-python is missing; llama.cpp refuses the model, or it does not generate text; an option is out of
        range; the file is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = 0,
        extra_buffers: bool | None = None,
        check_later: bool = False,
        file: ModelFile | None = None,
    ) -> None:
        self.model: Any = None
        #: A context that was made ahead (llama_context.py): what was wanted, what it is, and its pointer.
        self.prepared: tuple[Any, Any, Any] | None = None
        self._words: Any = None  # a model of nothing but the vocabulary, which stays while the other sleeps
        path = os.fspath(path)
        require_here(path, "llama.cpp runs models from files on this machine only")
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.file = ModelFile(path) if file is None else file
            # the other shards of a model could be replaced meanwhile
            self.checks_later = check_later and "-of-" not in os.path.basename(path)
            if not self.checks_later:
                self.file.check()  # llama.cpp would say so less clearly, or crash
            self.library = library()
            self.file.native = self.library.native
            self.notes: list[str] = [*self.library.notes]
            safe = _safe_buffers(self.library.has_amx, extra_buffers)
            if self.library.has_amx and not safe and extra_buffers is None:
                self.notes.append(_AMX_NOTE)
            self._asked = path, n_gpu_layers, safe
            self.on_gpu = n_gpu_layers != 0
            self._load(*self._asked)
            undo.pop_all()

    def _load(self, path: str, n_gpu_layers: int, extra_buffers: bool) -> None:
        api = self.library.api
        require_range("n_gpu_layers", n_gpu_layers, -1, 10_000)
        params = api.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers if n_gpu_layers >= 0 else 10_000
        params.use_extra_bufts = extra_buffers
        self.model = self.library.heard(lambda: api.llama_model_load_from_file(os.fsencode(path), params))
        if not self.model:
            self.file.check()  # which says more clearly what is wrong
            raise ModelError(f"llama.cpp does not load this model: {self.library.last_error()}", path=path)
        self.vocab = api.llama_model_get_vocab(self.model)
        if api.llama_model_is_diffusion(self.model) or not api.llama_model_has_decoder(self.model):
            raise _encoder_only(path, "this model")
        architecture = self.metadata("general.architecture")
        causal = self.metadata(f"{architecture}.attention.causal") != "false"
        require_family(path, architecture, kind=self.metadata("general.type"), causal=causal)

    def metadata(self, key: str) -> str | None:
        """Return a value of the file as text; None where there is none, or a list of values."""
        room = 256
        while True:
            text = ctypes.create_string_buffer(room)
            model = self._words or self.model  # the words stay, also while another thread frees the weights
            size = self.library.api.llama_model_meta_val_str(model, key.encode(), text, room)
            if size < room:
                return text.value.decode("utf-8", "surrogateescape") if size >= 0 else None
            room = size + 1

    # --- sleeping ------------------------------------------------------------------------------------------

    @property
    def keeps_words(self) -> bool:
        """Whether the vocabulary stays while the model sleeps."""
        return bool(self._words)

    def keep_words(self) -> Any:
        """Return the vocabulary of a model of its own, which stays while this one sleeps."""
        api, path = self.library.api, self._asked[0]
        self.file.identity()  # as long as it is the file that was loaded
        params = api.llama_model_default_params()
        params.vocab_only = True
        self._words = self.library.heard(lambda: api.llama_model_load_from_file(os.fsencode(path), params))
        if not self._words:
            raise ModelError(f"llama.cpp does not load this model: {self.library.last_error()}", path=path)
        self.vocab = api.llama_model_get_vocab(self._words)
        return self.vocab

    @property
    def path(self) -> str:
        """Where the model is."""
        return self._asked[0]

    def free_prepared(self) -> None:
        """Free a context that nobody has taken over."""
        if self.prepared is not None:
            self.library.api.llama_free(self.prepared[2])
            self.prepared = None

    def sleep(self) -> None:
        """Free the weights, until it wakes up."""
        self.free_prepared()
        if self.model:
            self.library.api.llama_model_free(self.model)
            self.model = None

    def wake(self) -> None:
        """Load the weights again.

        Raises
        ------
        ModelError
            llama.cpp does not load them any more, or the file is another one's by now.
        """
        path, vocab = self._asked[0], self.vocab
        file = ModelFile(path)
        try:
            file.check()
            same = file.identity() == self.file.identity()
        finally:
            file.close()
        if not same:
            raise ModelError("the model's file was replaced while it was not in use", path=path)
        try:
            self._load(*self._asked)
        finally:
            self.vocab = vocab

    def close(self) -> None:
        """Free it; closing twice is fine."""
        self.sleep()
        if self._words:
            self.library.api.llama_model_free(self._words)
            self._words = None
        if hasattr(self, "file"):
            self.file.close()


def require_range(name: str, value: int, least: int, most: int) -> None:
    """Raise ``InvalidParamError`` unless an option is a whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidParamError(f"{name} is {value!r}", key=name, hint=f"Choose {least} to {most}.")


def _encoder_only(path: str, what: str) -> AtlasError:
    return ModelError(
        f"{what} does not generate text from left to right", path=path, hint="Use a decoder model."
    )
