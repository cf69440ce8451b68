"""What commands that run a model share: options, opening it, and stopping between two tokens."""

from __future__ import annotations

import contextlib
import signal
import threading
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from atlas_kit.cli import _render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.persistence.place import Place

F = TypeVar("F", bound="Callable[..., Any]")

MODEL = click.Path()
force_option = click.option("--force", is_flag=True, help="Accept the memory of another model.")
memory_file_help = "Keep the memory in F: continue with the one that is there, or start one."


def model_options(function: F) -> F:
    """Add how a model is run; the command receives ``engine_options`` and ``device``."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        names = ("n_ctx", "n_gpu_layers", "n_threads")
        found = {name: kwargs.pop(name) for name in names}
        given = {name: value for name, value in found.items() if value is not None}
        return function(*args, engine_options=given, **kwargs)

    options = (
        click.option(
            "--n-ctx", type=int, metavar="N", help="Tokens of context.  [default: as trained, at most 4096]"
        ),
        click.option(
            "--threads", "n_threads", type=int, metavar="N", help="Threads.  [default: one per CPU]"
        ),
        click.option(
            "--n-gpu-layers", type=int, metavar="N", help="Layers that llama.cpp puts on a GPU; -1 for all."
        ),
        click.option(
            "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where the memory computes."
        ),
    )
    decorated: Any = wrapper
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


@contextlib.contextmanager
def open_model(path: str, options: dict[str, Any], *, quiet: bool = False) -> Iterator[Engine]:
    """Load a model and say what it wants said; closed afterwards."""
    from atlas_kit.llama.loading import open_engine

    engine = open_engine(path, **options)
    try:
        if not quiet:
            for note in engine.notes:
                _render.note(f"note: {note}")
        yield engine
    finally:
        engine.close()


def save_session(place: Place, session: AtlasSession, *, context: bool, **options: Any) -> None:
    """Save a session's memory, and say so if somebody else's was in its place, or text that another model read."""
    if options.get("force") and place.holds_text_of_another(session.engine.info.identity):
        options["backup"] = True
        _render.note(
            f"what was read and said beside another model is left out; it is kept as {place.file}.bak"
        )
    if place.save(session.state(context=context), **options):
        _render.note(
            f"{place.file} was written by somebody else in the meantime; their memory is kept as {place.file}.bak"
        )


class Abandoned(KeyboardInterrupt):
    """Somebody does not want to wait for the end of a step: nothing that is half done may be saved."""


class Stopping:
    """Ctrl-C as a question that is asked between two tokens: an exception within a step would leave it half done.

    Called, it tells whether to stop. The third time is ``Abandoned`` at once. A hang-up and SIGTERM count as Ctrl-C.
    """

    _SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

    def __init__(self) -> None:
        self.count = 0
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.count > 0

    def _asked(self, number: int, _: Any) -> None:
        self.count += 1
        if self._waiting:
            raise KeyboardInterrupt
        if self.count > 2:
            raise Abandoned

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, nothing is half done, and Ctrl-C is an exception as usual."""
        self.count, self._waiting = 0, True
        try:
            yield
        finally:
            self._waiting = False

    def raise_if_asked(self) -> None:
        """Raise ``KeyboardInterrupt``, where everything is in order, if somebody asked to stop."""
        if self.count:
            raise KeyboardInterrupt

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for name in self._SIGNALS:
                if (number := getattr(signal, name, None)) is not None:
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
