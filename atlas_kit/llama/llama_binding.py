"""llama-cpp-python's low-level module, without the package around it.

``import llama_cpp`` also imports that package's own sessions, caches and chats, and what those stand on: three times as
much as the functions and structures of llama.h, which are all that is used here. So the package is there, as everybody
who imports it expects, but its own code runs when somebody asks for more of it than the low-level module.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
import types
from pathlib import Path
from typing import Any

PACKAGE = "llama_cpp"
_VERSION = re.compile(r"""^__version__ = ["'](.*)["']""", re.M)
_lock = threading.RLock()


class _Package(types.ModuleType):
    """A package whose code has not run yet; it does when something is asked of it that is not there."""

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if name not in self.__dict__ and not self.__dict__.get("_has_run"):
                self.__dict__["_has_run"] = True
                assert self.__spec__ is not None
                assert self.__spec__.loader is not None
                self.__spec__.loader.exec_module(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}") from None


def low_level() -> Any:
    """Return the module with the functions and structures of llama.h.

    Raises
    ------
    ImportError
        llama-cpp-python is not installed, or cannot be loaded.
    """
    with _lock:
        if sys.modules.get(PACKAGE) is None:  # which says that there is none, where it is among them
            _begin()
        return importlib.import_module(f"{PACKAGE}.llama_cpp")


def _begin() -> None:
    """Put the package among the modules."""
    spec = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
    if spec is None or spec.loader is None:
        raise ImportError(f"No module named {PACKAGE!r}", name=PACKAGE)
    package = _Package(PACKAGE)
    made = importlib.util.module_from_spec(spec)
    package.__dict__.update({name: value for name, value in vars(made).items() if name.startswith("__")})
    sys.modules[PACKAGE] = package
    try:
        importlib.import_module(f"{PACKAGE}.llama_cpp")
    except BaseException:
        sys.modules.pop(PACKAGE, None)
        raise


def version() -> str:
    """Return the version of llama-cpp-python."""
    package = sys.modules[PACKAGE]
    if "__version__" not in package.__dict__ and package.__file__ is not None:
        found = _VERSION.search(Path(package.__file__).read_text(encoding="utf-8"))
        if found is not None:
            return found[1]
    return str(package.__version__)
