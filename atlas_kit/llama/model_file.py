"""A model's file beside llama.cpp, which reads it by itself: what it is, which model it is, its output matrix.

Reading it here takes as long as llama.cpp takes for a small model, so it can wait until somebody asks. The file is
opened at once all the same: what is read later is of the file that was loaded, whatever has its name by then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError, ClosedError, ModelError
from atlas_kit.formats.gguf.journal import check_journal
from atlas_kit.storage.given import open_source

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.dequantize import Native
    from atlas_kit.llama.output_matrix import OutputRows
    from atlas_kit.settings.model_facts import ModelFacts


class ModelFile:
    """A model's file, opened.

    Parameters
    ----------
    path
        The model; of a split one, the first shard.

    Raises
    ------
    NoSuchFileError, FileAccessError, ConflictError
        There is no such file, it cannot be read, or it was left in the middle of a change.
    """

    def __init__(self, path: str) -> None:
        check_journal(path)
        self.path = path
        self._source = open_source(path)
        self._file: GGUFFile | None = None
        self._facts: ModelFacts | None = None
        self._identity: str | None = None
        self._rows: OutputRows | None = None
        self._problem: AtlasError | None = None
        self._closed = False
        #: llama.cpp's own functions that turn weights into numbers; None: it is not there.
        self.native: Native | None = None
        self._lock = threading.RLock()

    def check(self) -> ModelFacts:
        """Return what its metadata say, once all of it is there that they speak of.

        Raises
        ------
        ModelError, FileCorruptError, MagicMismatchError, VersionMismatchError
            It does not generate text, is a shard that is not the first, or is damaged.
        """
        with self._lock:
            if self._facts is None:
                from atlas_kit.settings.model_facts import model_facts

                file = self._opened()
                _require_first(file, self.path)
                facts = model_facts(file)
                file.require_data()
                self._facts = facts
            return self._facts

    def identity(self) -> str:
        """Return which model it is: 64 hexadecimal digits."""
        with self._lock:
            if self._identity is None:
                from atlas_kit.formats.gguf.digest import model_identity

                self.check()
                self._identity = model_identity(self._opened())
            return self._identity

    def rows(self, is_control: Callable[[int], bool], plain: tuple[int, int] | None = None) -> OutputRows:
        """Return the rows of its output matrix.

        ``plain``: the matrix is so large (n_vocab, n_embd), and the logits are neither scaled nor capped, as llama.cpp
        says that has loaded it; then the file is looked into when the first row is asked for.

        Raises
        ------
        AtlasError
            As for ``check``, or the matrix cannot be read; also where that was found out since it was asked for.
        """
        with self._lock:
            if self._problem is not None:
                raise self._problem
            if self._rows is None and plain is not None:
                from atlas_kit.llama.output_matrix import rows_found_later

                self._rows = rows_found_later(
                    lambda: self._found_rows(is_control), *plain, is_control=is_control
                )
            elif self._rows is None:
                self._rows = self._found_rows(is_control)
            return self._rows

    def _found_rows(self, is_control: Callable[[int], bool]) -> OutputRows:
        from atlas_kit.llama.output_matrix import logit_scale, rows_of_model

        with self._lock:
            try:
                facts = self.check()
                return rows_of_model(
                    self._opened(), scale=logit_scale(facts.architecture, facts.logit_scale),
                    softcap=facts.softcap, is_control=is_control, native=self.native,
                )  # fmt: skip
            except AtlasError as error:
                self._problem = None if self._closed else error
                raise

    def let_go(self) -> None:
        """Free what of it is in main memory, and can be read again."""
        with self._lock:
            if self._rows is not None:
                self._rows.let_go()

    def _opened(self) -> GGUFFile:
        if self._closed:
            raise ClosedError("the model is closed", path=self.path)
        if self._file is None:
            from atlas_kit.formats.gguf.file import GGUFFile

            self._file = GGUFFile.open(self._source)
        return self._file

    def close(self) -> None:
        """Close it; closing twice is fine."""
        with self._lock:
            self._closed, self._rows, self._problem = True, None, None
            if self._file is not None:
                self._file.close()
            self._source.close()


def _require_first(file: GGUFFile, path: str) -> None:
    """Refuse a shard that is not the first: llama.cpp loads a model by that one and finds the others beside it."""
    shards = [os.path.basename(shard.path or "") for shard in file.shards]
    name = os.path.basename(path)
    if len(shards) < 2 or name not in shards[1:]:
        return
    raise ModelError(
        f"this is shard {shards.index(name) + 1} of {len(shards)}, and a model is loaded by its first",
        path=path,
        hint=f"Give {os.path.join(os.path.dirname(path), shards[0])}: the others are found beside it.",
    )
