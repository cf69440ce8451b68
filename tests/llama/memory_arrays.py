"""What tests of sessions compare: every array of a memory, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from atlas_kit.llama import AtlasSession

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(session: AtlasSession) -> Arrays:
    """Return copies of all arrays of a session's memory."""
    assert session.memory is not None
    groups = session.memory.state.groups()
    found = {f"{group}.{name}": np.array(a) for group, named in groups.items() for name, a in named.items()}
    return {**found, **{name: np.array(a) for name, a in session.memory.waiting().items()}}


def assert_same(one: Arrays, other: Arrays) -> None:
    """Check that two memories are the same to the bit."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
