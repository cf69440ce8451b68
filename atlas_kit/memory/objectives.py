"""Inner objectives: what the memory's answer y = M(phi(k)) to one token should have been, and dl/dy.

L2 is the Omega rule's own loss (equation 9); the dot product makes it Hebbian (linear attention);
cross-entropy lets y correct a language model's last hidden state and asks for the next token, over the
vocabulary or over candidates. An objective knows one token's loss and nothing of windows and their weights.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_number
from atlas_kit.memory.backend import Array, namespace

#: For each name in a target mapping: the shape that one token has, and "float" or "int".
Fields = dict[str, tuple[tuple[int, ...], str]]


class Evaluator(Protocol):
    """Something that computes loss and error itself, for example inside the model's own runtime."""

    def evaluate(self, y: Array, targets: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss (..., n) and dl/dy (..., n, d_v) of the answers y (..., n, d_v)."""


class Objective(Protocol):
    """What every objective offers."""

    kind: ClassVar[str]

    def fields(self, d_v: int) -> Fields:
        """Return what one token's target consists of."""

    def evaluate(
        self, y: Array, targets: Mapping[str, Array], readout: Readout | Evaluator | None = None
    ) -> tuple[Array, Array]:
        """Return the loss (..., n) and dl/dy (..., n, d_v) of the answers y (..., n, d_v)."""


@dataclass(frozen=True, eq=False)
class Readout:
    """The read-out matrix of a language model, or the rows of it that are candidates at present.

    Parameters
    ----------
    rows
        (U, d_v): one row per candidate token, U >= 1.
    ids
        (U,) ascending token numbers of the rows; None when the rows are the whole vocabulary in order.
    centre
        (d_v,): subtracted from the rows where they meet the memory's correction, usually their mean. Without
        it, the easiest thing to learn is to shift all candidates against the other tokens.
    bias
        (U,): what the model adds to the logits of these rows, or None.

    Raises
    ------
    InvalidParamError
        When the shapes disagree, or ``ids`` is not strictly ascending.
    """

    rows: Array
    ids: Array | None = None
    centre: Array | None = None
    bias: Array | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "ids", "centre", "bias"):
            array = getattr(self, name)
            if not hasattr(array, "dtype") and not (array is None and name != "rows"):
                raise InvalidParamError(
                    f"{name} of class {type(array).__name__} is not an array",
                    key=name,
                    hint="Try numpy.asarray.",
                )
        if self.rows.ndim != 2 or self.rows.shape[0] == 0:
            raise InvalidParamError(f"rows of shape {self.rows.shape} are not (U, d_v), U >= 1", key="rows")
        if self.centre is not None:
            _check_shape("centre", self.centre, self.rows.shape[1:])
        if self.bias is not None:
            _check_shape("bias", self.bias, self.rows.shape[:1])
        if self.ids is not None:
            _check_shape("ids", self.ids, self.rows.shape[:1])
            _check_whole("ids", self.ids)
            if not bool((self.ids[1:] > self.ids[:-1]).all()):
                raise InvalidParamError(
                    "the ids do not ascend", key="ids", hint="Sort ids and rows together."
                )

    def find(self, token: Array) -> tuple[Array, Array | None]:
        """Return each token's row, and a bool array that says where there is one (None: everywhere).

        Raises
        ------
        InvalidParamError
            For a token outside the vocabulary, when the rows are the whole vocabulary.
        """
        last = self.rows.shape[0] - 1
        if self.ids is None:
            if bool(((token < 0) | (token > last)).any()):
                raise InvalidParamError(f"a token lies outside the {last + 1} rows", key="token")
            return token, None
        xp = namespace(token)
        index = xp.minimum(xp.searchsorted(self.ids, token), last)
        return index, self.ids[index] == token


class _Comparison(abc.ABC):
    """What objectives that compare the answer with a value have in common; they say what it comes to in ``_of``."""

    kind: ClassVar[str]

    def fields(self, d_v: int) -> Fields:
        """Return what one token's target consists of: its value."""
        return {"value": ((d_v,), "float")}

    def evaluate(
        self, y: Array, targets: Mapping[str, Array], readout: Readout | Evaluator | None = None
    ) -> tuple[Array, Array]:
        """Return the loss (..., n) and dl/dy (..., n, d_v) of the answers y (..., n, d_v).

        Raises
        ------
        InvalidParamError
            When ``value`` is missing or not shaped like y, or a readout is given.
        """
        if readout is not None:
            raise InvalidParamError(
                f"the objective {self.kind} compares with a value and has no use for a readout", key="readout"
            )
        return self._of(y, _target(targets, "value", y.shape).astype(y.dtype, copy=False))

    @abc.abstractmethod
    def _of(self, y: Array, value: Array) -> tuple[Array, Array]:
        """Return loss and dl/dy for a value (..., n, d_v) in the type of y."""


@dataclass(frozen=True)
class L2(_Comparison):
    """``l = ||y - v||^2 / 2`` and ``dl/dy = y - v`` (equation 9 with the factor 1/2).

    Examples
    --------
    >>> import numpy as np
    >>> loss, dy = L2().evaluate(np.array([[3.0, 1.0]]), {"value": np.array([[0.0, 5.0]])})
    >>> loss.tolist(), dy.tolist()  # (9 + 16) / 2
    ([12.5], [[3.0, -4.0]])
    """

    kind: ClassVar[str] = "l2"

    def _of(self, y: Array, value: Array) -> tuple[Array, Array]:
        dy = y - value
        loss = namespace(y).einsum("...i,...i->...", dy, dy)
        loss *= 0.5
        return loss, dy


@dataclass(frozen=True)
class DotProduct(_Comparison):
    """``l = -<y, v>`` and ``dl/dy = -v``: without an error term, so the rule is Hebbian (linear attention).

    Examples
    --------
    >>> import numpy as np
    >>> loss, dy = DotProduct().evaluate(np.array([[3.0, 1.0]]), {"value": np.array([[2.0, 5.0]])})
    >>> loss.tolist(), dy.tolist()  # -(6 + 5)
    ([-11.0], [[-2.0, -5.0]])
    """

    kind: ClassVar[str] = "dot-product"

    def _of(self, y: Array, value: Array) -> tuple[Array, Array]:
        dy = -value
        return namespace(y).einsum("...i,...i->...", y, dy), dy


@dataclass(frozen=True)
class CrossEntropy:
    """Next-token cross-entropy of a model whose last hidden state h is corrected by the memory's m = y.

    Candidate logits are ``z = scale (R (h + m) - mu . m + b)`` with the readout's rows R, centre mu and bias b,
    then ``cap tanh(z / cap)`` if there is a softcap. All other tokens keep the logits that the model gave them:
    with lse the model's own log-sum-exp over its whole vocabulary, their mass
    ``rest = exp(lse) - sum exp(z at m = 0)``, never below zero, stays in the normaliser
    ``Z = sum exp(z) + rest``. For target j,

        l = log Z - z_j        dl/dz = exp(z) / Z - onehot(j)
        l = log Z - log rest   dl/dz = exp(z) / Z             for a target that is not a candidate:

    its own share of the rest is unknown but does not depend on m, so this loss lacks a constant and its
    gradient is exact. Such a target lies in the rest, which is then at least the dtype's epsilon of
    ``exp(lse)``.

    Parameters
    ----------
    scale
        Factor on the logits, as some models have it.
    softcap
        Bound on the logits' size, or None.

    Raises
    ------
    InvalidParamError
        When either is not a positive number.

    Examples
    --------
    Two tokens with rows 1 and -1 are equally likely at h = m = 0; for token 0 the loss is log 2 and dl/dm is
    (1/2 - 1) * 1 + 1/2 * -1 = -1, and for token 1 it is +1:

    >>> import numpy as np
    >>> targets = {"token": np.array([0, 1]), "hidden": np.zeros((2, 1))}
    >>> loss, dy = CrossEntropy().evaluate(np.zeros((2, 1)), targets, Readout(np.array([[1.0], [-1.0]])))
    >>> loss.round(6).tolist(), dy.tolist()
    ([0.693147, 0.693147], [[-1.0], [1.0]])

    With token 0 as the only candidate, and lse = log 2, the other token's mass 1 stays in Z = 1 + 1:

    >>> readout = Readout(np.array([[1.0]]), ids=np.array([0]))
    >>> loss, dy = CrossEntropy().evaluate(np.zeros((2, 1)), {**targets, "lse": np.log([2.0, 2.0])}, readout)
    >>> loss.round(6).tolist(), dy.round(12).tolist()
    ([0.693147, 0.693147], [[-0.5], [0.5]])
    """

    kind: ClassVar[str] = "cross-entropy"

    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        for key in ("scale", "softcap"):
            value = getattr(self, key)
            if value is None and key == "softcap":
                continue
            if not is_number(value) or value <= 0:
                raise InvalidParamError(f"{key} is {value!r}, not a positive number", key=key)
            # A NumPy scalar is a float too, but would turn float32 arrays into float64.
            object.__setattr__(self, key, float(value))

    def fields(self, d_v: int) -> Fields:
        """Return what one token's target consists of: next token, hidden state, the model's log-sum-exp."""
        return {"token": ((), "int"), "hidden": ((d_v,), "float"), "lse": ((), "float")}

    def evaluate(
        self, y: Array, targets: Mapping[str, Array], readout: Readout | Evaluator | None = None
    ) -> tuple[Array, Array]:
        """Return the loss (..., n) in nats and dl/dy (..., n, d_v) of the corrections y (..., n, d_v).

        Parameters
        ----------
        y
            (..., n, d_v).
        targets
            ``token`` (..., n) whole numbers, ``hidden`` (..., n, d_v), ``lse`` (..., n) in nats, which may be
            missing when the readout is the whole vocabulary.
        readout
            A ``Readout``, or an object that evaluates corrections and targets itself.

        Raises
        ------
        InvalidParamError
            When the readout or a target is missing, or a shape disagrees.
        """
        if readout is None:
            raise InvalidParamError(
                "cross-entropy has no read-out matrix",
                key="readout",
                hint="Pass a Readout, or an object with an evaluate method.",
            )
        if not isinstance(readout, Readout):
            return _delegate(readout, y, targets)
        if readout.rows.shape[1] != y.shape[-1]:
            raise InvalidParamError(
                f"rows of shape {readout.rows.shape} do not fit answers of width {y.shape[-1]}", key="rows"
            )
        token = _target(targets, "token", y.shape[:-1])
        _check_whole("token", token)
        hidden = _target(targets, "hidden", y.shape).astype(y.dtype, copy=False)
        rows = readout.rows.astype(y.dtype, copy=False)
        centre = None if readout.centre is None else readout.centre.astype(y.dtype, copy=False)
        bias = None if readout.bias is None else readout.bias.astype(y.dtype, copy=False)
        index, known = readout.find(token)
        log_rest = None
        shift = None if centre is None else y @ centre
        if readout.ids is not None:
            lse = _target(targets, "lse", y.shape[:-1]).astype(y.dtype, copy=False)
            log_rest = _log_rest(self._logits(rows, hidden, None, bias), lse, known)
        z = self._logits(rows, hidden + y, shift, bias)
        slope = None if self.softcap is None else self._slope(z)
        loss, dz = _softmax_loss(z, index, known, log_rest)
        if slope is not None:
            dz *= slope
        dy = dz @ rows
        if centre is not None:
            dy -= dz.sum(axis=-1, keepdims=True) * centre
        if self.scale != 1:
            dy *= self.scale
        return loss, dy

    def _logits(self, rows: Array, state: Array, shift: Array | None, bias: Array | None) -> Array:
        """Return (..., n, U): scale (R state - shift + bias), capped."""
        z = state @ rows.T  # a product per session: its bits do not depend on what else is in the batch
        if shift is not None:
            z -= shift[..., None]
        if bias is not None:
            z += bias
        if self.scale != 1:
            z *= self.scale
        if self.softcap is not None:
            z /= self.softcap
            namespace(z).tanh(z, out=z)
            z *= self.softcap
        return z

    def _slope(self, z: Array) -> Array:
        """Return the softcap's derivative 1 - tanh^2, from the capped logits."""
        slope = z / self.softcap
        slope *= slope
        namespace(z).subtract(1.0, slope, out=slope)
        return slope


OBJECTIVES: dict[str, type] = {objective.kind: objective for objective in (L2, DotProduct, CrossEntropy)}


def _log_rest(z: Array, lse: Array, known: Array) -> Array:
    """Return log(exp(lse) - sum exp(z)) (..., n), -inf for nothing left; z, (..., n, U), is overwritten."""
    xp = namespace(z)
    top = z.max(axis=-1, keepdims=True)
    z -= top
    xp.exp(z, out=z)
    taken = xp.log(z.sum(axis=-1)) + top[..., 0]
    # expm1 keeps the digits of a small share, where 1 - exp would cancel them.
    share = -xp.expm1(xp.minimum(taken - lse, 0.0))
    share = xp.where(known, share, xp.maximum(share, float(xp.finfo(z.dtype).eps)))
    # log(0) would warn, and a NaN must pass: "nothing" is replaced before the logarithm and again after it.
    nothing = share <= 0.0
    return xp.where(nothing, -math.inf, lse + xp.log(xp.where(nothing, 1.0, share)))


def _softmax_loss(z: Array, index: Array, known: Array | None, log_rest: Array | None) -> tuple[Array, Array]:
    """Return the loss (..., n) and dl/dz (..., n, U), which overwrites z."""
    xp = namespace(z)
    top = z.max(axis=-1, keepdims=True)
    if log_rest is not None:
        top = xp.maximum(top, log_rest[..., None])
    z -= top
    aim = xp.take_along_axis(z, index[..., None], axis=-1)[..., 0]
    xp.exp(z, out=z)
    total = z.sum(axis=-1, keepdims=True)
    if log_rest is not None:
        rest = log_rest - top[..., 0]
        aim = xp.where(known, aim, rest)
        total += xp.exp(rest)[..., None]
    z /= total
    flat, places = z.reshape(-1, z.shape[-1]), index.reshape(-1)  # a view: z was made contiguous
    flat[xp.arange(places.shape[0]), places] -= 1.0 if known is None else known.reshape(-1).astype(z.dtype)
    return xp.log(total[..., 0]) - aim, z


def _delegate(evaluator: Evaluator, y: Array, targets: Mapping[str, Array]) -> tuple[Array, Array]:
    """Ask the evaluator, and check what it says."""
    if not hasattr(evaluator, "evaluate"):
        raise InvalidParamError(
            f"a readout cannot be of class {type(evaluator).__name__}",
            key="readout",
            hint="Pass a Readout, or an object with an evaluate method.",
        )
    loss, dy = evaluator.evaluate(y, targets)
    if loss.shape != y.shape[:-1] or dy.shape != y.shape:
        raise InvalidParamError(
            f"the readout returned a loss of shape {loss.shape} and a gradient of shape {dy.shape} "
            f"for answers of shape {y.shape}",
            key="readout",
        )
    return loss.astype(y.dtype, copy=False), dy.astype(y.dtype, copy=False)


def _target(targets: Mapping[str, Array], key: str, shape: tuple[int, ...]) -> Any:
    if key not in targets:
        raise InvalidParamError(f"the targets have no {key!r}", key=key)
    _check_shape(key, targets[key], shape)
    return targets[key]


def _check_shape(key: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InvalidParamError(f"{key!r} has shape {array.shape}, not {shape}", key=key)


def _check_whole(key: str, array: Array) -> None:
    if array.dtype.kind not in "iu":
        raise InvalidParamError(f"{key!r} holds {array.dtype}, not whole numbers", key=key)
