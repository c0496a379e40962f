"""The course where people use it: lessons opened and run in JupyterLab, in a real browser, and a slider moved by hand."""
import browser
import pytest
from conftest import ROOT

LESSONS = ["10_distractor", "04_augment"]


def test_lessons_in_jupyterlab(tmp_path):
    "One test, so that one server and one browser serve all lessons."
    pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by CHROMIUM=/path/to/chromium")
    paths = [ROOT / "nbs" / f"{name}.ipynb" for name in LESSONS]
    with browser.Lab(tmp_path, paths, [ROOT / "nbs" / "results"]) as lab, lab.browser() as page:
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for name in LESSONS:
            lab.open(page, f"{name}.ipynb")
            assert not any(lab.state(page)["ran"]), f"{name} is stored with execution counts"
            lab.run_all(page)
            state = lab.state(page)
            assert state["errors"] == [], name
            assert state["ran"] == list(range(1, len(state["ran"]) + 1)), f"{name}: a cell did not run, or out of turn"
            if name == "10_distractor":
                move_the_slider(page)
            lab.close(page)
        assert complaints == []


def move_the_slider(page):
    "λ is moved by the arrow keys, as one may do on the page, and the picture below follows."
    row, picture = page.locator(".widget-hslider", has_text="lam"), page.locator("img.widget-image")
    row.scroll_into_view_if_needed()
    source, value, looks = picture.get_attribute("src"), row.locator(".widget-readout").inner_text(), picture.screenshot()
    row.locator(".noUi-handle").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("old => document.querySelector('img.widget-image').src !== old", arg=source)
    assert row.locator(".widget-readout").inner_text() != value
    assert picture.evaluate("image => image.complete && image.naturalWidth > 100")
    assert picture.screenshot() != looks, "the picture did not follow the slider"
