"""The file explorer in a notebook: what ``explorer`` answers, shown by ``static/explorer/explorer.js``.

Nothing of the file is in the widget's state: the browser asks for what it shows, in messages of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from atlas_kit.errors import AtlasError
from atlas_kit.explorer.explorer import Explorer
from atlas_kit.widgets import ending
from atlas_kit.widgets.base import Shown
from atlas_kit.widgets.explorer import static_view, watching
from atlas_kit.widgets.static_modules import joined, joined_style

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure

    from atlas_kit.explorer.matrix import StoredMatrix

_RENDER = """
export default {
  render({ model, el }) {
    let last = 0;
    const waiting = new Map();
    // What has changed is shown once at a time: a busy kernel may say so again before it has answered.
    let following = false, more = false;
    const follow = async () => {
      more = true;
      if (following) return;
      following = true;
      while (more) { more = false; await end.changed(); }
      following = false;
    };
    const take = (message, buffers) => {
      if (message.changed) { follow(); return; }
      const resolve = waiting.get(message.id);
      if (!resolve) return;
      waiting.delete(message.id);
      resolve({ reply: message.reply, buffers });
    };
    model.on("msg:custom", take);
    const request = async (message) => {
      const id = `${++last}-${Math.random()}`;
      const found = await new Promise((resolve) => {
        waiting.set(id, resolve);
        model.send({ ...message, id });
      });
      if (message.op === "summary" && found.reply.changed) setTimeout(follow); // it changed while nobody looked
      return found;
    };
    const onSelect = (selection) => { model.set("selection", selection); model.save_changes(); };
    const openBackup = async (name) => (await request({ op: "open_backup", name })).reply;
    const onTab = (tab) => model.send({ op: "seen", tab });
    const untold = tellWhenGone(model, el);
    const end = mount(el, { request, onSelect, onTab, openBackup });
    return () => { more = false; untold(); model.off("msg:custom", take); end(); };
  },
};
"""


class FileExplorer(Shown, anywidget.AnyWidget):
    """A memory file or a model, to be looked at: summary, byte map, bytes, tables, values, findings.

    Opening reads the header or the index only, whatever the size. A file that is damaged, encrypted or not there is
    shown as far as it goes, with one sentence that says what is wrong. The file is followed while it is looked at: when
    it changes, it is shown anew at the same place.

    Parameters
    ----------
    path
        A ``.atlas`` or ``.gguf`` file; of any other, the bytes are shown.
    passphrase
        Opens an encrypted memory; without it, the explorer asks.

    Examples
    --------
    >>> FileExplorer("model.gguf")  # doctest: +SKIP
    """

    _tells_when_closed = False  # the file is closed, too

    _esm = joined("before.js") + joined("explorer/explorer.js") + _RENDER
    _css = joined_style("explorer/explorer.css")

    #: What was chosen last in the browser: name, start, size, table, row.
    selection = traitlets.Dict().tag(sync=True)

    def __init__(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        self.explorer = Explorer(path, passphrase, moves=True)
        self._seen = static_view.Seen()
        self._told: tuple[int, ...] | None = None
        super().__init__()
        self.on_msg(self._answer)
        ending.replace(self)

    def glance(self) -> None:
        """Tell the page if the file has changed since it was opened, once for each change; called every two seconds."""
        now = self.explorer.changed_on_disk()
        if now is not None and now != self._told:
            self.send({"changed": True})
        self._told = now

    def _answer(self, _: Any, message: Any, __: Any) -> None:
        watching.watch(self)
        if isinstance(message, dict) and message.get("op") == "seen":
            self._seen.tab = str(message.get("tab"))
            return
        reply, buffers = self.explorer.answer(message)
        if isinstance(message, dict) and message.get("op") == "rows" and "error" not in reply:
            order = {key: message[key] for key in ("sort", "descending", "filter") if key in message}
            self._seen.orders[str(message["table"])] = order
        number = message.get("id") if isinstance(message, dict) else None
        self.send({"id": number, "reply": reply}, buffers)

    # --- for Python -------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file; where one of its backups is being looked at, that."""
        return Path(self.explorer.path)

    @property
    def selected(self) -> str | None:
        """Name of the entry, metadata value or tensor that was chosen last, or None."""
        name: str | None = self.selection.get("name")
        return name

    @property
    def selection_bytes(self) -> bytes:
        """The bytes of what was chosen last, as they are in the file; its first 16 MiB."""
        start, size = self.selection.get("start", 0), self.selection.get("size", 0)
        return self.explorer.contents.source.read_upto(start, min(size, 1 << 24))

    def matrix(self, name: str) -> StoredMatrix:
        """Return a tensor as a tile source for `MatrixView`."""
        return self.explorer.matrix(name)

    def export(self, name: str, path: str | os.PathLike[str], form: str | None = None) -> int:
        """Save an entry, metadata value or tensor of any size as a file; see `Explorer.export`."""
        return self.explorer.export(name, path, form)

    def close(self) -> None:
        """Release the file and the view."""
        watching.let_go(self)
        self.explorer.close()
        ending.close_looks(self)
        super().close()

    # --- without JavaScript -----------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options: Any) -> Any:
        ending.shown(self)
        return super()._repr_mimebundle_(**options)

    def text(self) -> str:
        """Return the summary in a few lines."""
        return static_view.text(self.explorer)

    def html(self) -> str:
        """Return what was looked at as a page: the byte map, tabs, the tables as they were sorted, what was chosen."""
        table, row = self.selection.get("table"), self.selection.get("row")
        self._seen.chosen = (str(table), int(row)) if table is not None and row is not None else None
        return static_view.html(self.explorer, self._seen)

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return the table that is looked at, as it is sorted and filtered; elsewhere the summary."""
        return static_view.sheet(self.explorer, self._seen)

    def figure(self) -> Figure:
        """Return the byte map as a figure."""
        return static_view.figure(self.explorer)


__all__ = ["AtlasError", "FileExplorer"]
