"""Formulas as plain HTML, which is what a reader without a network sees."""

from __future__ import annotations

import pytest

pytest.importorskip("latex2mathml", reason="latex2mathml is not installed")

from tools.formulas import as_html, in_markdown


@pytest.mark.parametrize(
    ("latex", "line"),
    [
        (r"\eta", "<i>η</i>"),
        (r"k M", "<i>kM</i>"),
        (r"(-2, -4)", "(−2, −4)"),
        (r"\tfrac12", "1/2"),
        (r"\alpha < 1", "<i>α</i> &lt; 1"),
        (r"h_{i-1} \oplus b_i", "<i>h</i><sub><i>i</i>−1</sub> ⊕ <i>b</i><sub><i>i</i></sub>"),
        (r"\frac{W_A + W_B}{2}", "(<i>W</i><sub><i>A</i></sub> + <i>W</i><sub><i>B</i></sub>) / 2"),
        (r"d = \frac{a}{n - 1}", "<i>d</i> = <i>a</i> / (<i>n</i> − 1)"),
        (r"\frac{1}{n} \bigl( \ln p \bigr)", "(1 / <i>n</i>) (ln <i>p</i>)"),
        (r"\sum_{t=1}^{n} \ln p(x_t)",
         "∑<sub><i>t</i>=1</sub><sup><i>n</i></sup> ln <i>p</i>(<i>x</i><sub><i>t</i></sub>)"),
        (r"\min_{\mathcal M} x", "min<sub>ℳ</sub> <i>x</i>"),
        (r"\bar\ell_2", "<i>ℓ\u0304</i><sub>2</sub>"),
        (r"\mathtt{0x811C9DC5}", "<code>0x811C9DC5</code>"),
        (r"\text{gain}(\mathbf s) \ge g", "gain(<b>s</b>) ≥ <i>g</i>"),
    ],
)  # fmt: skip
def test_a_formula_is_one_line(latex, line):
    assert as_html(latex) == line


def test_a_formula_of_its_own_keeps_its_number():
    said = in_markdown("As it says:\n\n$$S_t = \\nabla_t \\tag{32}$$\n")
    assert said == (
        "As it says:\n\n<dl><dd><i>S</i><sub><i>t</i></sub> = ∇<sub><i>t</i></sub>&emsp;&emsp;(32)</dd></dl>\n"
    )


def test_code_and_prices_stay():
    text = "`echo $HOME and $PATH`, ```\n$$x$$\n``` and 5 $ for $ 7"
    assert in_markdown(text) == text


def test_what_no_rule_is_for_is_said():
    with pytest.raises(ValueError, match="no rule for <msqrt>"):
        as_html(r"\sqrt{2}")
