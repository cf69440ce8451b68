"""Memory modules M: a matrix, the MLP ``M(x) = x + W1 s(W2 x)``, and the gated one of Atlas++ (equation 43).

A module holds settings and no arrays. Its parameters are a flat mapping of named matrices, stored for row
vectors: ``y = x @ W`` with W of shape (rows, columns) = (inputs, outputs), so the paper's W1 is ``W_out``
here, its W2 ``W_in`` and its W3 ``W_gate``, each transposed. A gradient is never formed token by token:
``factors`` gives two arrays per matrix, which ``gradient`` contracts over the tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_whole
from atlas_kit.memory.backend import Array, namespace, random_normal

#: A (..., n, rows) and B (..., n, columns) of one parameter: token t's gradient is ``outer(A[t], B[t])``.
Factors = tuple[Array, Array]

MAX_DEPTH = 64
#: Hidden units of a module whose ``width`` is 0: four per input as in a transformer's MLP, but at most this.
MAX_DEFAULT_WIDTH = 1024


class Module(Protocol):
    """What every memory module offers; arrays may have any leading axes ``...``, the same for all of them."""

    kind: ClassVar[str]

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, without leading axes."""

    def init(self, d_in: int, d_out: int, seed: int) -> dict[str, Array]:
        """Return start values: float64 on the host, without leading axes, with the output matrix zero."""

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, tuple[Any, ...]]:
        """Read x (..., n, d_in) as y (..., n, d_out); the cache is what ``factors`` needs."""

    def factors(self, params: Mapping[str, Array], cache: tuple[Any, ...], dy: Array) -> dict[str, Factors]:
        """Propagate dy (..., n, d_out), each token's dl/dy, to the factors of every parameter's gradient."""


def gradient(factors: Mapping[str, Factors], weights: Array | None = None) -> dict[str, Array]:
    """Return the gradient of ``sum_t w_t l_t`` (equation 9) for every parameter: ``A^T diag(w) B``.

    Parameters
    ----------
    factors
        From ``Module.factors``: A (..., n, rows) and B (..., n, columns).
    weights
        None for ones; (..., n), one weighting; or (..., s, n), s weightings of the same tokens, for example
        the Omega windows that end at each of s tokens.

    Returns
    -------
    dict
        By parameter, (..., rows, columns), or (..., s, rows, columns) for s weightings.

    Raises
    ------
    InvalidParamError
        When ``weights`` has another number of axes or of tokens.

    Examples
    --------
    Two tokens, x = (1, 2) with dl/dy = 3 and x = (0, 1) with dl/dy = -1, give (1, 2) * 3 + (0, 1) * -1:

    >>> import numpy as np
    >>> pair = {"W": (np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[3.0], [-1.0]]))}
    >>> gradient(pair)["W"].tolist()
    [[3.0], [5.0]]
    >>> gradient(pair, np.array([[1.0, 0.0], [0.5, 2.0]]))["W"].tolist()
    [[[3.0], [6.0]], [[1.5], [1.0]]]
    """
    return {name: _contract(a, b, weights) for name, (a, b) in factors.items()}


def _contract(a: Array, b: Array, weights: Array | None) -> Array:
    if weights is None:
        return _transposed(a) @ b
    if weights.ndim not in (a.ndim - 1, a.ndim) or weights.shape[-1] != a.shape[-2]:
        raise InvalidParamError(
            f"weights of shape {weights.shape} do not fit factors of shape {a.shape}",
            key="weights",
            hint="Give (..., tokens), or (..., s, tokens) for s weightings.",
        )
    if weights.ndim == a.ndim:
        a, b = a[..., None, :, :], b[..., None, :, :]
    # The weights go into the narrower factor: that is the smaller copy.
    if b.shape[-1] <= a.shape[-1]:
        b = b * weights[..., None]
    else:
        a = a * weights[..., None]
    return _transposed(a) @ b


def parameter_count(module: Module, d_in: int, d_out: int) -> int:
    """Return how many numbers the module's parameters hold, for inputs of width d_in and outputs of d_out."""
    return sum(math.prod(shape) for shape in module.shapes(d_in, d_out).values())


class Activation(NamedTuple):
    """An element-wise function: ``value(z) -> (s(z), memo)`` and ``backward(g, z, memo) -> g * s'(z)``."""

    value: Callable[[Array], tuple[Array, Array]]
    backward: Callable[[Array, Array, Array], Array]


# GELU (tanh form) and SiLU are the same thing: s(z) = z p(z) with p = sigmoid(q), where q = z for SiLU and
# q = 2 sqrt(2/pi) (z + 0.044715 z^3) for GELU; so s' = p + z p (1 - p) q'. The sigmoid is taken as
# (1 + tanh(q/2)) / 2, which cannot overflow, and p is kept for the way back.
_GELU_LINEAR = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715
#: Beyond this |z|, tanh is exactly +-1 in float64, so cutting z there changes nothing but keeps z^3 finite.
_GELU_CUT = 10.0


def _sigmoid_of_double(half: Array) -> Array:
    """Return sigmoid(2 half), written over ``half``."""
    namespace(half).tanh(half, out=half)
    half += 1.0
    half *= 0.5
    return half


def _gelu(z: Array) -> tuple[Array, Array]:
    cut = namespace(z).clip(z, -_GELU_CUT, _GELU_CUT)
    half = cut * cut
    half *= _GELU_LINEAR * _GELU_CUBIC
    half += _GELU_LINEAR
    half *= cut
    p = _sigmoid_of_double(half)
    return z * p, p


def _gelu_backward(g: Array, z: Array, p: Array) -> Array:
    dq = namespace(z).clip(z, -_GELU_CUT, _GELU_CUT)
    dq *= dq
    dq *= 6.0 * _GELU_LINEAR * _GELU_CUBIC
    dq += 2.0 * _GELU_LINEAR
    return _self_gated_backward(g, z, p, dq)


def _silu(z: Array) -> tuple[Array, Array]:
    p = _sigmoid_of_double(z * 0.5)
    return z * p, p


def _silu_backward(g: Array, z: Array, p: Array) -> Array:
    return _self_gated_backward(g, z, p, None)


def _self_gated_backward(g: Array, z: Array, p: Array, dq: Array | None) -> Array:
    slope = 1.0 - p
    slope *= p
    if dq is not None:
        slope *= dq
    slope *= z
    slope += p
    slope *= g
    return slope


def _relu(z: Array) -> tuple[Array, Array]:
    value = namespace(z).maximum(z, 0.0)
    return value, value


def _relu_backward(g: Array, z: Array, value: Array) -> Array:
    return g * (z > 0)


def _tanh(z: Array) -> tuple[Array, Array]:
    value = namespace(z).tanh(z)
    return value, value


def _tanh_backward(g: Array, z: Array, value: Array) -> Array:
    slope = value * value
    namespace(z).subtract(1.0, slope, out=slope)
    slope *= g
    return slope


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(_gelu, _gelu_backward),
    "silu": Activation(_silu, _silu_backward),
    "relu": Activation(_relu, _relu_backward),
    "tanh": Activation(_tanh, _tanh_backward),
}


@dataclass(frozen=True)
class Matrix:
    """The linear memory ``M(x) = x W``: parameter ``W`` (d_in, d_out), zero at the start.

    Examples
    --------
    >>> import numpy as np
    >>> module, W = Matrix(), np.array([[1.0, 0.0], [2.0, -1.0]])
    >>> y, cache = module.forward({"W": W}, np.array([[1.0, 3.0]]))
    >>> y.tolist()  # (1 + 6, 0 - 3)
    [[7.0, -3.0]]
    >>> dy = np.array([[1.0, 2.0]])
    >>> gradient(module.factors({"W": W}, cache, dy))["W"].tolist()  # (1, 3) outer (1, 2)
    [[1.0, 2.0], [3.0, 6.0]]
    """

    kind: ClassVar[str] = "matrix"

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, without leading axes."""
        return {"W": (d_in, d_out)}

    def init(self, d_in: int, d_out: int, seed: int) -> dict[str, Array]:
        """Return zeros, float64 on the host: an empty memory reads as zero."""
        return _start_values(self.shapes(d_in, d_out), seed, output="W")

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, tuple[Any, ...]]:
        """Read x (..., n, d_in) as y (..., n, d_out); the cache is what ``factors`` needs."""
        return x @ params["W"], (x,)

    def factors(self, params: Mapping[str, Array], cache: tuple[Any, ...], dy: Array) -> dict[str, Factors]:
        """Propagate dy (..., n, d_out), each token's dl/dy, to the factors of every parameter's gradient."""
        (x,) = cache
        return {"W": (x, dy)}


@dataclass(frozen=True)
class ResidualMLP:
    """The deep memory ``M(x) = skip(x) + s(x W_in) W_out`` (the paper's ``x + W1 s(W2 x)``), of any depth.

    Deeper than 2, each hidden layer adds to the one before: ``h_1 = s(x W_in)``, ``h_l = h_{l-1} + s(h_{l-1}
    W_hidden_{l-1})``, ``M(x) = skip(x) + h W_out``. ``skip(x)`` is x, cut or padded with zeros to d_out.

    Parameters
    ----------
    depth
        Number of weight matrices, 2 or more.
    width
        Hidden units; 0 for ``min(4 d_in, 1024)``.
    activation
        ``gelu`` (tanh form), ``silu``, ``relu`` or ``tanh``.
    residual
        False for a plain MLP: without the skip from the input and without those between hidden layers.

    Raises
    ------
    InvalidParamError
        For a setting outside these.

    Examples
    --------
    With one hidden unit relu(2*1 - 1*3) = 0 for x = (1, 3) and relu(2*3 - 1*1) = 5 for x = (3, 1):

    >>> import numpy as np
    >>> module = ResidualMLP(width=1, activation="relu")
    >>> params = {"W_in": np.array([[2.0], [-1.0]]), "W_out": np.array([[1.0, 10.0]])}
    >>> y, cache = module.forward(params, np.array([[1.0, 3.0], [3.0, 1.0]]))
    >>> y.tolist()
    [[1.0, 3.0], [8.0, 51.0]]

    The second token alone has a slope, so with dl/dy = (1, 1) the hidden unit's gradient is 1 + 10 = 11:

    >>> total = gradient(module.factors(params, cache, np.ones((2, 2))))
    >>> total["W_in"].tolist(), total["W_out"].tolist()
    ([[33.0], [11.0]], [[5.0, 5.0]])
    """

    kind: ClassVar[str] = "residual-mlp"

    depth: int = 2
    width: int = 0
    activation: str = "gelu"
    residual: bool = True

    def __post_init__(self) -> None:
        if not is_whole(self.depth, 2) or self.depth > MAX_DEPTH:
            raise InvalidParamError(
                f"depth is {self.depth!r}, not a whole number from 2 to {MAX_DEPTH}",
                key="depth",
                hint="A memory with one matrix is the module called matrix.",
            )
        _check_hidden(self.width, self.activation, self.residual)

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, without leading axes."""
        width = _hidden_units(self.width, d_in)
        hidden = dict.fromkeys(self._hidden_names(), (width, width))
        return {"W_in": (d_in, width), **hidden, "W_out": (width, d_out)}

    def init(self, d_in: int, d_out: int, seed: int) -> dict[str, Array]:
        """Return start values, float64 on the host: ``W_in`` N(0, 1), ``W_hidden`` N(0, 1/rows), ``W_out`` zero."""
        return _start_values(self.shapes(d_in, d_out), seed, output="W_out")

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, tuple[Any, ...]]:
        """Read x (..., n, d_in) as y (..., n, d_out); the cache is what ``factors`` needs."""
        activate = ACTIVATIONS[self.activation].value
        layers = []
        h = x
        for name in ("W_in", *self._hidden_names()):
            z = h @ params[name]
            value, memo = activate(z)
            layers.append((name, h, z, memo))
            h = h + value if self.residual and name != "W_in" else value
        y = h @ params["W_out"]
        if self.residual:
            _add_skip(y, x)
        return y, (layers, h)

    def factors(self, params: Mapping[str, Array], cache: tuple[Any, ...], dy: Array) -> dict[str, Factors]:
        """Propagate dy (..., n, d_out), each token's dl/dy, to the factors of every parameter's gradient."""
        backward = ACTIVATIONS[self.activation].backward
        layers, h = cache
        found: dict[str, Factors] = {"W_out": (h, dy)}
        dh = dy @ _transposed(params["W_out"])
        for name, below, z, memo in reversed(layers):
            dz = backward(dh, z, memo)
            found[name] = (below, dz)
            if name != "W_in":
                below_dh = dz @ _transposed(params[name])
                dh = dh + below_dh if self.residual else below_dh
        return {name: found[name] for name in ("W_in", *self._hidden_names(), "W_out")}

    def _hidden_names(self) -> list[str]:
        return [f"W_hidden_{number}" for number in range(1, self.depth - 1)]


@dataclass(frozen=True)
class GatedMLP:
    """The memory of Atlas++ (eq. 43): ``M(x) = skip(x) + (s(x W_in) * (x W_gate)) W_out``.

    Parameters
    ----------
    width, activation, residual
        As in ``ResidualMLP``.

    Raises
    ------
    InvalidParamError
        For a setting outside these.

    Examples
    --------
    x = (1, 3): relu(1*1 + 3*1) = 4, gate 1*2 + 3*0 = 2, so 8 goes out through (1, -1):

    >>> import numpy as np
    >>> module, x = GatedMLP(width=1, activation="relu"), np.array([[1.0, 3.0]])
    >>> params = {"W_in": [[1.0], [1.0]], "W_gate": [[2.0], [0.0]], "W_out": [[1.0, -1.0]]}
    >>> params = {name: np.array(rows) for name, rows in params.items()}
    >>> y, cache = module.forward(params, x)
    >>> y.tolist()
    [[9.0, -5.0]]

    dl/dy = (1, 0) reaches the product 4 * 2 as 1, so its two sides get 2 and 4:

    >>> total = gradient(module.factors(params, cache, np.array([[1.0, 0.0]])))
    >>> total["W_in"].tolist(), total["W_gate"].tolist(), total["W_out"].tolist()
    ([[2.0], [6.0]], [[4.0], [12.0]], [[8.0, 0.0]])
    """

    kind: ClassVar[str] = "gated-mlp"

    width: int = 0
    activation: str = "gelu"
    residual: bool = True

    def __post_init__(self) -> None:
        _check_hidden(self.width, self.activation, self.residual)

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, without leading axes."""
        width = _hidden_units(self.width, d_in)
        return {"W_in": (d_in, width), "W_gate": (d_in, width), "W_out": (width, d_out)}

    def init(self, d_in: int, d_out: int, seed: int) -> dict[str, Array]:
        """Return start values, float64 on the host: ``W_in`` and ``W_gate`` N(0, 1), ``W_out`` zero."""
        return _start_values(self.shapes(d_in, d_out), seed, output="W_out")

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, tuple[Any, ...]]:
        """Read x (..., n, d_in) as y (..., n, d_out); the cache is what ``factors`` needs."""
        z = x @ params["W_in"]
        value, memo = ACTIVATIONS[self.activation].value(z)
        gate = x @ params["W_gate"]
        h = value * gate
        y = h @ params["W_out"]
        if self.residual:
            _add_skip(y, x)
        return y, (x, z, memo, value, gate, h)

    def factors(self, params: Mapping[str, Array], cache: tuple[Any, ...], dy: Array) -> dict[str, Factors]:
        """Propagate dy (..., n, d_out), each token's dl/dy, to the factors of every parameter's gradient."""
        x, z, memo, value, gate, h = cache
        dh = dy @ _transposed(params["W_out"])
        dz = ACTIVATIONS[self.activation].backward(dh, z, memo)
        dz *= gate
        dh *= value
        return {"W_in": (x, dz), "W_gate": (x, dh), "W_out": (h, dy)}


@dataclass(frozen=True)
class WhitenedMatrix:
    """The linear memory beside a language model: ``M(s) = phi W`` of states s, with ``x = (s - origin) P`` cut to phi.

    P and origin are made from the first ``after`` states that come, so that x varies about alike in all of its
    directions and is about 1 long; its first numbers are the window's key. Until then W is zero and P is random.
    ``bias`` is added to the logits of tokens. ``WhitenedMemory`` reads it and learns; other memories cannot.

    Parameters
    ----------
    rank
        Directions that x has, at most as many as a state has numbers.
    tokens
        Tokens that have a bias each; 0: none.
    after
        States from which the whitening is made.
    sampled
        Gradients that are kept, from which it is found in which directions they vary; 0: none.

    Raises
    ------
    InvalidParamError
        For a number out of range.
    """

    kind: ClassVar[str] = "whitened-matrix"

    rank: int = 192
    tokens: int = 0
    after: int = 512
    sampled: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("tokens", 0), ("after", 2), ("sampled", 0)):
            value = getattr(self, name)
            if not is_whole(value, least):
                raise InvalidParamError(
                    f"{name} is {value!r}, not a whole number of at least {least}", key=name
                )

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter, without leading axes; ``d_in`` does not matter."""
        rank = min(self.rank, d_out)
        shapes: dict[str, tuple[int, ...]] = {"W": (rank, d_out), "P": (d_out, rank), "origin": (1, d_out)}
        if self.tokens:
            shapes["bias"] = (1, self.tokens)
        if self.sampled:
            told_apart = min(max(1, self.sampled // 2), d_out)
            shapes |= {"slopes": (self.sampled, d_out), "directions": (told_apart, d_out), "rest": (1, 1)}
        return shapes

    def init(self, d_in: int, d_out: int, seed: int) -> dict[str, Array]:
        """Return start values, float64 on the host, which are not to be written to: zeros, and random directions P."""
        values = {name: np.broadcast_to(0.0, shape) for name, shape in self.shapes(d_in, d_out).items()}
        values["P"] = _random_directions(seed, *values["P"].shape)
        return values

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, tuple[Any, ...]]:
        """Read states x (..., n, d_out) as y (..., n, d_out); there is no way back, so the cache is empty."""
        if x.shape[-1] != params["P"].shape[-2]:
            raise InvalidParamError(
                f"{x.shape[-1]} numbers are no state of {params['P'].shape[-2]}", key="x",
                hint="A whitened memory takes states as they are: use WhitenedMemory.",
            )  # fmt: skip
        phi = cut((x - params["origin"]) @ params["P"])
        return phi @ params["W"], ()

    def factors(self, params: Mapping[str, Array], cache: tuple[Any, ...], dy: Array) -> dict[str, Factors]:
        """Raise ``InvalidParamError``: whitened memories are learned by ``WhitenedMemory`` alone."""
        raise InvalidParamError(
            "a whitened memory learns beside a language model only",
            key="module",
            hint="Choose another module, or use WhitenedMemory.",
        )


@functools.lru_cache(maxsize=4)
def _random_directions(seed: int, d: int, rank: int) -> Array:
    """Return P (d, rank) before there is a whitening: every new session of a server begins with the same."""
    found = random_normal(seed, "whitened-matrix/P", (d, rank)) / math.sqrt(rank)
    found.setflags(write=False)
    return found


#: Parameters of a whitened memory that do not read: what steps are made with, or how states are whitened.
OF_STEPS = frozenset({"P", "origin", "slopes", "directions", "rest"})


def learned_matrices(parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Return the matrices among a memory's parameters that read: not what steps are made with, nor biases."""
    fixed = {"bias", *OF_STEPS} if "origin" in parameters else set()
    return {name: array for name, array in parameters.items() if name not in fixed}


#: Whitened states have about the length 1; longer ones than this are cut, so that none takes a step far too large.
MOST_LENGTH = 2.0


def cut(x: Array) -> Array:
    """Return vectors x (..., d), those longer than ``MOST_LENGTH`` at that length; x itself where none is.

    >>> cut(np.array([[0.0, 4.0], [0.5, 0.0]])).tolist()
    [[0.0, 2.0], [0.5, 0.0]]
    """
    xp = namespace(x)
    squares = xp.einsum("...d,...d->...", x, x)
    # most are not too long, and stay as they are to the bit
    if xp is np and (
        squares.item() <= MOST_LENGTH**2 if squares.size == 1 else (squares <= MOST_LENGTH**2).all()
    ):
        return x
    scale = MOST_LENGTH / xp.maximum(xp.sqrt(squares), MOST_LENGTH)
    return x * scale[..., None].astype(x.dtype)


MODULES: dict[str, type] = {module.kind: module for module in (Matrix, ResidualMLP, GatedMLP, WhitenedMatrix)}


def _transposed(matrix: Array) -> Array:
    return namespace(matrix).swapaxes(matrix, -1, -2)


def _add_skip(y: Array, x: Array) -> None:
    """Add x to y in place: the identity, or its rectangular form where the widths differ."""
    shared = min(x.shape[-1], y.shape[-1])
    y[..., :shared] += x[..., :shared]


def _hidden_units(width: int, d_in: int) -> int:
    return width or min(4 * d_in, MAX_DEFAULT_WIDTH)


def _start_values(shapes: dict[str, tuple[int, ...]], seed: int, output: str) -> dict[str, Array]:
    """Draw values that give hidden units of variance 1 for inputs of length 1; the output matrix is zero.

    Features and keys have the length 1, so what they meet (``W_in``, ``W_gate``) is N(0, 1); hidden layers have the
    variance 1, so what is between them is N(0, 1/rows).
    """
    values = {}
    for name, shape in shapes.items():
        values[name] = np.zeros(shape) if name == output else random_normal(seed, name, shape)
        if name.startswith("W_hidden"):
            values[name] /= math.sqrt(shape[0])
    return values


def _check_hidden(width: int, activation: str, residual: bool) -> None:
    if not is_whole(width):
        raise InvalidParamError(
            f"width is {width!r}, not a whole number of 0 or more",
            key="width",
            hint="0 chooses four hidden units per input.",
        )
    if activation not in ACTIVATIONS:
        raise InvalidParamError(
            f"{activation!r} is not an activation",
            key="activation",
            hint=f"Choose one of: {', '.join(ACTIVATIONS)}.",
        )
    if not isinstance(residual, bool):
        raise InvalidParamError(f"residual is {residual!r}, not true or false", key="residual")
