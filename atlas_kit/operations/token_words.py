"""The words of a memory's tokens: from the metadata of its model, or from an engine that is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from atlas_kit.errors import WrongModelError
from atlas_kit.formats.opening import open_memory
from atlas_kit.storage.given import Given, name_of
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine


class Words(Protocol):
    """What turns tokens into text: ``Vocabulary``, or what an engine knows."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def piece(self, token: int) -> bytes:
        """Return a token's bytes."""


def words_of(model: str, memory: Given, *, force: bool = False, keys: Keys | None = None) -> Words:
    """Return the words of a model's tokens, from its metadata alone.

    Raises
    ------
    WrongModelError
        The memory is another model's, and ``force`` is not given.
    InvalidParamError
        The vocabulary is of a kind that only llama.cpp knows.
    """
    from atlas_kit.formats.gguf import GGUFFile, model_identity
    from atlas_kit.formats.gguf.vocabulary import Vocabulary

    with GGUFFile.open(model) as file:
        if not force:
            require_model(memory, model_identity(file), keys)
        return Vocabulary(file)


def require_model(memory: Given, identity: str, keys: Keys | None = None) -> None:
    """Raise ``WrongModelError`` for a memory that belongs to another model."""
    with open_memory(memory, Keys() if keys is None else keys) as file:
        if any(file.model_hash) and file.model_hash.hex() != identity:
            raise WrongModelError(
                file.model_hash, bytes.fromhex(identity), path=name_of(memory),
                hint="The words of its tokens are another model's.",
            )  # fmt: skip


class EngineWords:
    """The words of an engine that is open."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._engine.info.n_vocab

    def piece(self, token: int) -> bytes:
        """Return a token's bytes."""
        return self._engine.piece(token)
