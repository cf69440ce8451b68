"""A stand-in for CuPy that runs on any machine: arrays that refuse to be mixed with NumPy's.

It keeps CuPy's rules and none of its speed: a function of the library takes only the library's arrays and scalars
(NumPy arrays only through ``array`` and ``asarray``), NumPy functions refuse the library's arrays, reductions give
0-d arrays, and only names exist that CuPy 14.2 has. So code that would fail on a GPU for using the wrong library fails
here.
"""

from __future__ import annotations

import operator
import sys
import types

import numpy as np

NAME = "device_double_library"

#: Names that CuPy 14.2.0 has, of those that numeric code may want. Compared with what its __init__.py imports.
# fmt: off
FUNCTIONS = {
    "abs", "add", "all", "amax", "any", "arange", "argmax", "argpartition", "argsort", "array",
    "asarray", "ascontiguousarray", "bincount", "broadcast_to", "can_cast", "clip", "concatenate",
    "copyto", "cos", "cumprod", "cumsum", "divide", "einsum", "empty", "empty_like", "exp",
    "expand_dims", "expm1", "eye", "flatnonzero", "full", "full_like", "isfinite", "isinf", "isnan",
    "log", "log1p", "logical_and", "logical_not", "logical_or", "matmul", "max", "maximum", "mean",
    "min", "minimum", "moveaxis", "multiply", "nan_to_num", "negative", "nonzero", "ones", "ones_like",
    "partition", "power", "put_along_axis", "reciprocal", "reshape", "result_type", "searchsorted",
    "sign", "sin", "sort", "sqrt", "square", "squeeze", "stack", "subtract", "sum", "swapaxes", "take",
    "take_along_axis", "tanh", "tensordot", "transpose", "tril", "triu", "unique", "where", "zeros",
    "zeros_like",
}
CONSTANTS = {
    "bool_", "dtype", "finfo", "float16", "float32", "float64", "inf", "int32", "int64", "nan",
    "newaxis", "uint16", "uint32",
}
# fmt: on
TAKES_HOST = {"array", "asarray"}  # the two ways onto the device


class DeviceArray:
    """An array that only the library's functions and its own operators accept."""

    __array_ufunc__ = None  # NumPy's operators and functions refuse it
    __array_priority__ = 100

    def __init__(self, host):
        self.host = host

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "version": 3}

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def get(self):
        return self.host.copy()

    def __getattr__(self, name):
        if name.startswith("__"):  # __array_interface__ would let NumPy in
            raise AttributeError(name)
        value = getattr(self.host, name)
        return call(value) if callable(value) else wrap(value)

    def __len__(self):
        return len(self.host)

    def __bool__(self):
        return bool(self.host)

    def __int__(self):
        return int(self.host)

    def __float__(self):
        return float(self.host)

    def __iter__(self):
        return iter(map(wrap, self.host))

    def __getitem__(self, index):
        return wrap(np.asarray(self.host[unwrap_index(index)]))

    def __setitem__(self, index, value):
        self.host[unwrap_index(index)] = unwrap(value)


def _operator(function, reflected=False):
    def method(self, other):
        left, right = self.host, unwrap(other)
        return wrap(function(right, left) if reflected else function(left, right))

    return method


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
):
    _plain = _name.strip("_")
    setattr(DeviceArray, f"__{_plain}__", _operator(getattr(operator, _name)))
    setattr(DeviceArray, f"__r{_plain}__", _operator(getattr(operator, _name), reflected=True))
    setattr(DeviceArray, f"__i{_plain}__", _operator(getattr(operator, f"i{_plain}")))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(DeviceArray, f"__{_name}__", _operator(getattr(operator, _name)))
for _name in ("neg", "invert", "abs"):
    setattr(
        DeviceArray, f"__{_name}__", (lambda f: lambda self: wrap(f(self.host)))(getattr(operator, _name))
    )
DeviceArray.__hash__ = None


def wrap(value):
    """Put NumPy results on the device, scalars as 0-d arrays."""
    if isinstance(value, (np.ndarray, np.generic)):
        return DeviceArray(np.asarray(value))
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(map(wrap, value))
    return value


def unwrap(value):
    """Take arrays off the device; a NumPy array among them is the mistake that this file looks for."""
    if isinstance(value, DeviceArray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, (list, tuple)):
        return type(value)(map(unwrap, value))
    return value


def unwrap_index(index):
    """Take indices off the device; CuPy moves host indices there by itself."""
    if isinstance(index, tuple):
        return tuple(map(unwrap_index, index))
    return index.host if isinstance(index, DeviceArray) else index


def call(function):
    def device_function(*args, **kwargs):
        return wrap(function(*map(unwrap, args), **{k: unwrap(v) for k, v in kwargs.items()}))

    return device_function


def library():
    """Return the stand-in as a module, registered under its name."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    module = types.ModuleType(NAME)
    for name in FUNCTIONS - TAKES_HOST:
        setattr(module, name, call(getattr(np, name)))
    for name in CONSTANTS:
        setattr(module, name, getattr(np, name))

    def to_device(value, dtype=None, **kwargs):
        return DeviceArray(
            np.array(value.host if isinstance(value, DeviceArray) else value, dtype=dtype, **kwargs)
        )

    module.array = module.asarray = to_device
    module.linalg = types.SimpleNamespace(svd=call(np.linalg.svd), norm=call(np.linalg.norm))
    module.ndarray = DeviceArray
    DeviceArray.__module__ = NAME
    sys.modules[NAME] = module
    return module
