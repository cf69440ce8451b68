"""The capacity playground in a real JupyterLab: Start, watch recall break, compare, stop."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.jupyter.labdriver import Lab, kernel_json, open_notebook, run_all

CODE = "from atlas_kit.widgets import CapacityPlayground\np = CapacityPlayground()\np"


def test_start_draws_a_curve_and_stop_ends_a_long_run(
    page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    open_notebook(page, lab_server, notebook(CODE))
    assert run_all(page) == []
    status = page.locator(".jp-OutputArea-output p[role=status]")
    expect(status).to_contain_text("Start stores random pairs")

    def press(name: str) -> None:
        page.locator(".jupyter-button", has_text=name).click()

    press("Start")
    expect(status).to_contain_text("64 pairs stored")
    expect(status).to_contain_text("Nine of ten were found up to")
    page.get_by_label("Preset").select_option("Degree 2, Omega rule")
    press("Start")
    expect(status).to_contain_text("192 pairs stored")
    expect(status).to_contain_text("152 features")
    curves = page.locator(".jp-OutputArea-output svg polyline")
    expect(curves).to_have_count(2)
    old, new = (curves.nth(i).get_attribute("points").split() for i in (0, 1))
    assert float(new[-1].split(",")[0]) > float(old[-1].split(",")[0])  # further to the right
    expect(page.get_by_text("192 × 192")).to_be_visible()

    page.get_by_label("Preset").select_option("Deep, converged, Muon")
    press("Start")
    expect(status).to_contain_text("deep, converged")
    press("Stop")
    expect(page.locator(".jupyter-button", has_text="Pause")).to_be_disabled()
    assert kernel_json(page, "[p.state, len(p.curves)]") == ["idle", 3]
