"""Views of matrices that go together: one colour scale, one part in view, one cursor.

Changes travel through the kernel, from one view to the others and never back: two ways at once would make a view
that is being dragged jump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

_TOGETHER = ("viewport", "cursor", "transform")


class LinkedView(Protocol):
    """What a view must have to be linked: ``MatrixView``."""

    comm: Any
    _link: Link | None

    @property
    def own_limit(self) -> float:
        """The limit of its colours, were it alone."""

    def unlink(self) -> None:
        """Leave the link that it belongs to, if any."""

    def send_state(self, key: str) -> None:
        """Send one trait to the page."""

    def set_trait(self, name: str, value: Any) -> None:
        """Set one trait."""

    def observe(self, handler: Callable[[Any], None], names: Sequence[str]) -> None:
        """Call ``handler`` whenever one of the traits changes."""

    def unobserve(self, handler: Callable[[Any], None], names: Sequence[str]) -> None:
        """Call it no more."""


class Link:
    """Some views; each belongs to one link at most."""

    def __init__(self, views: Iterable[LinkedView]) -> None:
        self._views: tuple[LinkedView, ...] = ()
        for view in views:
            view.unlink()
            self._views += (view,)
            view._link = self
            view.observe(self._follow, _TOGETHER)
        self._limit = 0.0
        self.rescale()

    @property
    def limit(self) -> float:
        """The largest of the limits that the views would have alone."""
        return max(view.own_limit for view in self._views)

    def rescale(self, sent: LinkedView | None = None) -> None:
        """Tell every view the common limit if it changed, except the one that has just sent it."""
        limit = self.limit
        if limit == self._limit:
            return
        self._limit = limit
        for view in self._views:
            if view is not sent and view.comm is not None:
                view.send_state("limit")

    def leave(self, view: LinkedView) -> None:
        """Let one view go; the others stay linked."""
        view.unobserve(self._follow, _TOGETHER)
        view._link = None
        self._views = tuple(other for other in self._views if other is not view)
        if view.comm is not None:
            view.send_state("limit")
        if self._views:
            self.rescale()

    def _follow(self, change: Any) -> None:
        for view in self._views:
            if view is not change.owner:
                view.set_trait(change.name, change.new)
