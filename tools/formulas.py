"""Formulas of LaTeX as plain HTML: italics, raised and lowered letters. Knows what latex2mathml reads, and no notebook.

A notebook that is exported to a page, and looked at where no network is, has nothing that draws LaTeX. MathML would do
there, and JupyterLab lets none through. So a formula is one line of HTML, which every reader shows.
"""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

_CODE = re.compile(r"(```.*?```|`[^`]*`)", re.S)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\s)([^$]+?)(?<!\s)\$", re.S)
_TAG = re.compile(r"\\tag\{(.*?)\}")
_SPACES = {"2em": "&emsp;&emsp;", "1em": "&emsp;"}
#: With a space on either side; a sign is one only between two things.
_RELATIONS, _SIGNS = set("=≤≥≠<>≈→←∣∥⊕×·∈"), set("+−±")
#: Names of functions, which stand upright and apart from what follows.
_NAMES = {"min", "max", "exp", "ln", "log", "mod"}
_SCRIPT = {"B": "ℬ", "E": "ℰ", "F": "ℱ", "H": "ℋ", "I": "ℐ", "L": "ℒ", "M": "ℳ", "R": "ℛ"}
_OPEN = set("([|‖")


def in_markdown(text: str) -> str:
    """Return Markdown with its formulas (``$...$``, ``$$...$$``) as HTML; what stands in code stays."""
    parts = _CODE.split(text)
    return "".join(part if n % 2 else _FORMULA.sub(_drawn, part) for n, part in enumerate(parts))


def _drawn(found: re.Match[str]) -> str:
    if found[1] is None:
        return as_html(found[2])
    number = _TAG.search(found[1])
    line = as_html(_TAG.sub("", found[1]))
    return f"<dl><dd>{line}{f'&emsp;&emsp;({number[1]})' if number else ''}</dd></dl>"


def as_html(latex: str) -> str:
    """Return a formula as one line of HTML.

    Raises
    ------
    ValueError
        It has something that no rule here says how to write.
    """
    from latex2mathml.converter import convert

    # what the converter does not know: limits below a word
    latex = " ".join(latex.split()).replace(r"\min_", r"\min\limits_").replace(r"\max_", r"\max\limits_")
    tree = ElementTree.fromstring(convert(latex))
    for node in tree.iter():
        node.tag = node.tag.rpartition("}")[2]
    line = re.sub(r" {2,}", " ", _written(tree)).strip()
    line = re.sub(r"</(i|code)><\1>", "", line)  # one word of several letters
    return re.sub(r"(?<=[(\[]) (?=\w)", "", line)


def _written(node: ElementTree.Element) -> str:
    """Return one element of MathML."""
    parts = [*node]
    text = html.escape(node.text or "", quote=False)
    if node.tag in ("math", "mrow", "mstyle"):
        return _row(parts)
    if node.tag in ("mi", "mn", "mo", "mtext"):
        return _leaf(node, text)
    if node.tag == "mspace":
        return _SPACES.get(node.get("width", ""), " ")
    if node.tag in ("msub", "munder"):
        return f"{_written(parts[0])}<sub>{_tight(parts[1])}</sub>{_after(parts[0])}"
    if node.tag == "msup":
        return f"{_written(parts[0])}<sup>{_tight(parts[1])}</sup>"
    if node.tag in ("msubsup", "munderover"):
        below, above = f"<sub>{_tight(parts[1])}</sub>", f"<sup>{_tight(parts[2])}</sup>"
        return f"{_written(parts[0])}{below}{above}{_after(parts[0])}"
    if node.tag == "mfrac":
        numbers = all(part.tag == "mn" or [p.tag for p in part] == ["mn"] for part in parts)
        return f"{_grouped(parts[0])}{'/' if numbers else ' / '}{_grouped(parts[1])}"
    if node.tag == "mover" and (parts[1].text or "") in ("¯", "‾"):
        return re.sub(r"(\w)(?=</i>$|$)", "\\1\u0304", _written(parts[0]))
    raise ValueError(f"no rule for <{node.tag}> in a formula")


def _row(parts: list[ElementTree.Element]) -> str:
    written = []
    for n, part in enumerate(parts):
        mark = part.text or ""
        if part.tag == "mo" and (mark in _RELATIONS or (mark in _SIGNS and _is_between(parts, n))):
            written.append(f" {html.escape(mark, quote=False)} ")
        elif part.tag == "mo" and mark in (",", ";"):
            written.append(f"{mark} ")
        elif (part.tag in ("mi", "mo") and mark in _NAMES) and n + 1 < len(parts):
            written.append(f"{' ' if n else ''}{mark}{'' if (parts[n + 1].text or '') in _OPEN else ' '}")
        elif (
            part.tag == "mfrac"
            and n + 1 < len(parts)
            and (parts[n + 1].text or "") not in (*_RELATIONS, *",.;)")
        ):
            written.append(f"({_written(part)}) ")
        else:
            written.append(_written(part))
    return "".join(written)


def _leaf(node: ElementTree.Element, text: str) -> str:
    variant = node.get("mathvariant", "")
    if variant == "monospace":
        return f"<code>{text}</code>"
    if variant == "bold":
        return f"<b>{text}</b>"
    if variant == "script":
        return _SCRIPT[text]
    if node.tag == "mi" and len(text) == 1 and text.isalpha():
        return f"<i>{text}</i>"
    return text


def _tight(node: ElementTree.Element) -> str:
    """Return what is raised or lowered: without spaces, which would be as wide as those beside it."""
    return re.sub(r" (?=[^<>]*(?:<|$))", "", _written(node))


def _after(node: ElementTree.Element) -> str:
    """Return the space behind what has limits."""
    return " " if (node.text or "") in ("∑", *_NAMES) else ""


def _grouped(node: ElementTree.Element) -> str:
    """Return what is above or below a fraction's bar, in brackets if it is a sum or a product."""
    written = _written(node)
    several = any((part.text or "") in _RELATIONS | _SIGNS for part in node.iter("mo"))
    return f"({written})" if several else written


def _is_between(parts: list[ElementTree.Element], n: int) -> bool:
    return n > 0 and not (
        parts[n - 1].tag == "mo" and (parts[n - 1].text or "") in {*_OPEN, *_RELATIONS, ",", ";"}
    )
