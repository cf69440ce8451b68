"""Two models side by side: tensors with the error of each, metadata, tokens and template. Knows no picture.

`diff_files` says what differs; here every tensor has its row, whether it differs or not, with its layer and its role,
so that the error of a quantisation can be seen over the model. Tensors are compared one by one, in bounded memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, InvalidParamError, printable
from atlas_kit.formats.gguf.tensor_names import layer_and_role
from atlas_kit.operations.diff import Change, DiffOptions, diff_metadata
from atlas_kit.operations.gguf_values import plain_value
from atlas_kit.operations.inputs import open_given
from atlas_kit.operations.tensor_numbers import Difference, difference
from atlas_kit.storage.given import Given, Progress

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile, TensorInfo

TOKENS, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.chat_template"
#: Tokens that are told apart one by one; of more, their number.
MOST_TOKENS = 500


@dataclass(frozen=True)
class TensorPair:
    """A tensor of one model and its twin in the other; None where one of them has none.

    ``numbers`` is how far they are apart: None where they are the same to the bit, or cannot be compared.
    """

    name: str
    type_a: str | None
    type_b: str | None
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    bytes_a: int | None
    bytes_b: int | None
    same: bool = False
    numbers: Difference | None = None
    problem: str | None = None

    @property
    def layer(self) -> str:
        """The layer; empty for what belongs to none."""
        return layer_and_role(self.name)[0]

    @property
    def role(self) -> str:
        """What it does in its layer."""
        return layer_and_role(self.name)[1]

    @property
    def error(self) -> float | None:
        """The relative L2 error, 0 where both are the same, None where they cannot be compared."""
        if self.same:
            return 0.0
        return None if self.numbers is None else self.numbers.relative_l2

    @property
    def verdict(self) -> str:
        """How the two stand to each other, in a word or two."""
        if self.type_a is None:
            return "only in B"
        if self.type_b is None:
            return "only in A"
        if self.shape_a != self.shape_b:
            return "other shape"
        if self.same:
            return "same"
        return "differs" if self.numbers is not None else "not compared"


@dataclass
class ModelComparison:
    """What differs between two models.

    ``tokens`` are (id, A's, B's) where they differ, the first ``MOST_TOKENS``; ``template`` the lines of a text diff.
    """

    first: str
    second: str
    metadata: list[Change] = field(default_factory=list)
    tokens: list[tuple[int, str | None, str | None]] = field(default_factory=list)
    token_counts: tuple[int, int] = (0, 0)
    differing_tokens: int = 0
    template: list[str] = field(default_factory=list)
    tensors: list[TensorPair] = field(default_factory=list)
    total: int = 0

    @property
    def complete(self) -> bool:
        """Whether every tensor has been compared."""
        return len(self.tensors) == self.total

    @property
    def differs(self) -> bool:
        """Whether anything does, as far as has been compared."""
        return bool(self.metadata or self.differing_tokens or any(not pair.same for pair in self.tensors))

    def sentence(self) -> str:
        """Say in one sentence what differs."""
        differing = sum(not pair.same for pair in self.tensors)
        done = "" if self.complete else f" so far ({len(self.tensors):,} of {self.total:,} compared)"
        parts = [
            f"{differing:,} of {len(self.tensors):,} tensors {'differs' if differing == 1 else 'differ'}{done}",
            _count(len(self.metadata), "metadata value") if self.metadata else "all metadata are the same",
            _count(self.differing_tokens, "token") if self.differing_tokens else "the tokens are the same",
        ]
        if self.template:
            parts.append("the chat templates differ")
        return "; ".join(parts) + "."


class ModelPair:
    """Two models that are open to be compared, a tensor at a time; a context manager.

    Raises
    ------
    InvalidParamError
        One of them is no model.
    """

    def __init__(self, first: Given, second: Given, options: DiffOptions | None = None) -> None:
        self._options = options or DiffOptions()
        one = self._options.one_shard
        with contextlib.ExitStack() as stack:
            a, b = (stack.enter_context(open_given(given, None, one_shard=one)) for given in (first, second))
            for opened in (a, b):
                if opened.kind != "gguf":
                    raise InvalidParamError("this is no GGUF model", path=opened.name)
            self._a, self._b = a.gguf, b.gguf
            names = dict.fromkeys([*self._a.tensors, *self._b.tensors])
            self.found = ModelComparison(a.name, b.name, total=len(names))
            self._names = list(names)
            self._compare_heads()
            self._stack = stack.pop_all()

    def __enter__(self) -> ModelPair:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def close(self) -> None:
        """Let go of both files."""
        self._stack.close()

    def _templates(self) -> list[str]:
        """Return as a text diff what one line became, or the template that only one of the models has."""
        lines = []
        for sign, model in (("-", self._a), ("+", self._b)):
            row = model.metadata.get(TEMPLATE)
            if row is not None:
                lines += [sign + line for line in str(row.items).split("\n")]
        return lines

    def _compare_heads(self) -> None:
        changes, _ = diff_metadata(self._a, self._b, self._options)
        found = self.found
        found.metadata = changes
        found.template = next((c.lines or self._templates() for c in changes if c.name == TEMPLATE), [])
        before, after = _tokens(self._a), _tokens(self._b)
        found.token_counts = len(before), len(after)
        for number in range(max(len(before), len(after))):
            pair = [texts[number] if number < len(texts) else None for texts in (before, after)]
            if pair[0] != pair[1]:
                found.differing_tokens += 1
                if len(found.tokens) < MOST_TOKENS:
                    found.tokens.append((number, pair[0], pair[1]))

    def compare(self) -> Iterator[TensorPair]:
        """Compare what has not been compared yet, and give each pair as it is done."""
        while not self.found.complete:
            pair = self._pair(self._names[len(self.found.tensors)])
            self.found.tensors.append(pair)
            yield pair

    def _pair(self, name: str) -> TensorPair:
        a, b = self._a.tensors.get(name), self._b.tensors.get(name)
        facts = (_type(a), _type(b), _shape(a), _shape(b), _size(a), _size(b))
        if a is None or b is None or a.shape != b.shape:
            return TensorPair(name, *facts)
        try:
            if a.type_name == b.type_name and self._a.byte_order == self._b.byte_order and self._alike(a, b):
                return TensorPair(name, *facts, same=True)
            numbers = difference(*(
                (piece.reshape(-1) for piece in model.iter_dequantized(info))
                for model, info in ((self._a, a), (self._b, b))
            ))  # fmt: skip
        except AtlasError as error:  # a type without a way back to numbers, or data that are missing
            return TensorPair(name, *facts, problem=error.message)
        tolerance = self._options.tolerance
        same = numbers.within(tolerance) and (tolerance > 0 or a.type_name == b.type_name)
        return TensorPair(name, *facts, same=same, numbers=numbers)

    def _alike(self, a: TensorInfo, b: TensorInfo) -> bool:
        return all(x == y for x, y in zip(self._a.iter_raw(a), self._b.iter_raw(b), strict=True))


def compare_models(
    first: Given, second: Given, options: DiffOptions | None = None, progress: Progress | None = None
) -> ModelComparison:
    """Compare two models.

    Raises
    ------
    InvalidParamError
        One of them is no model.
    """
    with ModelPair(first, second, options) as pair:
        for number, _ in enumerate(pair.compare()):
            if progress:
                progress("comparing tensors", number + 1, pair.found.total)
        return pair.found


def _count(number: int, what: str) -> str:
    return f"1 {what} differs" if number == 1 else f"{number:,} {what}s differ"


def _tokens(model: GGUFFile) -> Sequence[str]:
    row = model.metadata.get(TOKENS)
    if row is None or not row.is_array:
        return ()
    return [printable(str(text)) for text in plain_value(row.items)]


def _type(info: TensorInfo | None) -> str | None:
    return None if info is None else info.type_name


def _shape(info: TensorInfo | None) -> tuple[int, ...] | None:
    return None if info is None else tuple(info.shape)


def _size(info: TensorInfo | None) -> int | None:
    return None if info is None else info.nbytes


def rows_of(found: ModelComparison) -> list[dict[str, Any]]:
    """Return the tensors as JSON-ready rows."""
    return [
        {
            "name": pair.name, "layer": pair.layer, "role": pair.role, "verdict": pair.verdict, "type_a": pair.type_a,
            "type_b": pair.type_b, "shape": list(pair.shape_a or pair.shape_b or ()), "bytes_a": pair.bytes_a,
            "bytes_b": pair.bytes_b, "error": pair.error,
            "largest": None if pair.numbers is None else pair.numbers.max_abs,
            "cosine": None if pair.numbers is None else pair.numbers.cosine, "problem": pair.problem,
        }
        for pair in found.tensors
    ]  # fmt: skip


__all__ = ["ModelComparison", "ModelPair", "TensorPair", "compare_models", "rows_of"]
