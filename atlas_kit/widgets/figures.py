"""Figures of a notebook that read on a light page and on a dark one. Knows matplotlib and IPython, and no widget."""

from __future__ import annotations

from typing import Any

#: What the figures are drawn in: nothing behind them, and a grey that reads on both.
STYLE = "atlas_kit.widgets.page"


def use_page_style() -> None:
    """Draw this notebook's figures with nothing behind them, in colours that read on a light page and on a dark one.

    The same as ``plt.style.use("atlas_kit.widgets.page")``, and JupyterLab puts no white behind them in a dark theme.

    Examples
    --------
    ::

        use_page_style()
        plt.plot([1, 2, 4, 8])
    """
    from matplotlib import pyplot as plt

    plt.style.use(STYLE)
    try:
        from IPython import get_ipython
        from matplotlib_inline import backend_inline
        from matplotlib_inline.config import InlineBackend
    except ModuleNotFoundError:
        return
    shell: Any = get_ipython()
    if not hasattr(shell, "kernel"):
        return
    # A figure with nothing behind it says so beside its picture, and JupyterLab puts white there because of its ticks.
    # This one has something behind it, which is left out of the picture.
    plt.rcParams["figure.facecolor"] = "white"
    config: Any = InlineBackend.instance(parent=shell)
    config.print_figure_kwargs = {**config.print_figure_kwargs, "facecolor": "none"}
    inline: Any = backend_inline
    inline.set_matplotlib_formats(*config.figure_formats, facecolor="none")
