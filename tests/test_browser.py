"""The course where people use it: lessons opened and run in JupyterLab, in a real browser, a slider moved by hand."""
import os

import browser
import notebooks
import pytest
from conftest import ROOT

DISTRACTOR, LABS = LESSONS = ["1_core/05_distractor", "8_studies/07_labs"]
if os.environ.get("COURSE"):  # `make course`: the whole afternoon, in its order
    LESSONS = [*(f"1_core/{path.stem}" for path in sorted((ROOT / "nbs/1_core").glob("*.ipynb"))), LABS]


def test_lessons_in_jupyterlab(tmp_path):
    "One test, so that one server and one browser serve all lessons."
    pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by CHROMIUM=/path/to/chromium")
    names = [f"{name}.ipynb" for name in LESSONS] + ["results"]
    with browser.Lab(tmp_path, ROOT / "nbs", names) as lab, browser.open_page() as page:
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for name in LESSONS:
            lab.open(page, f"{name}.ipynb")
            before = lab.state(page)
            assert not any(before["ran"]), f"{name} is stored with execution counts"
            assert before["folded"] and all(map(notebooks.boilerplate, before["folded"])), name
            assert not any(map(notebooks.boilerplate, before["open"])), f"boilerplate of {name} is not folded"
            lab.run_all(page)
            state = lab.state(page)
            assert state["errors"] == [], name
            assert state["ran"] == list(range(1, len(state["ran"]) + 1)), f"{name}: a cell did not run, or out of turn"
            if name == DISTRACTOR:
                move_the_slider(page, "lam")
            if name == LABS:
                assert page.locator("img.widget-image").count() == 7, "a laboratory does not show"
                move_the_slider(page, "clip", -1)
            lab.close(page)
        assert complaints == []


def move_the_slider(page, name, number=0):
    "A slider of the page's explorers is moved by the arrow keys, as one may do, and the picture below it follows."
    row = page.locator(".widget-hslider", has_text=name).nth(number)
    picture = page.locator("img.widget-image").nth(number)
    row.scroll_into_view_if_needed()
    source, value = picture.get_attribute("src"), row.locator(".widget-readout").inner_text()
    looks = picture.screenshot()
    row.locator(".noUi-handle").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    image = picture.element_handle()
    page.wait_for_function("([image, old]) => image.src !== old", arg=[image, source])
    assert row.locator(".widget-readout").inner_text() != value
    assert picture.evaluate("image => image.complete && image.naturalWidth > 100")
    assert picture.screenshot() != looks, "the picture did not follow the slider"
