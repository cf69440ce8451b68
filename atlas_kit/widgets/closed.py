"""Widgets that were closed and are still there: a page asks what was seen of them last. Knows no widget."""

from __future__ import annotations

import weakref
from typing import Any

#: The widgets, by the ids of their models.
closed: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
