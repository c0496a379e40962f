"""`site/check.py`, which `make site` runs over the built pages, finds what it should."""
import importlib.util
import json

import pytest
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("site_check", ROOT / "site/check.py")
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

INDEX = [{"location": place, "title": "The Distractor", "text": "InfoNCE"}
         for place in ("1_core/05_distractor.html", "api/distractor.html", "1_core/07_losses.html")]


@pytest.fixture
def site(tmp_path):
    "Two pages that link to each other, a style with a font, an index of words."
    for folder in ("a", "search", "fonts"):
        (tmp_path / folder).mkdir()
    (tmp_path / "index.html").write_text('<link rel="stylesheet" href="style.css"><a href="a/b.html#there">b</a>'
                                         '<a href="https://arxiv.org/abs/2009.05769">paper</a><pre>x = "$$"</pre>')
    (tmp_path / "a/b.html").write_text('<h2 id="there">b</h2><a href="../index.html">home</a>'
                                       '<img src="data:image/png;base64,">')
    (tmp_path / "style.css").write_text("@font-face { src: url(fonts/f.woff2) }")
    (tmp_path / "fonts/f.woff2").write_bytes(b"")
    (tmp_path / "search/search_index.json").write_text(json.dumps({"docs": INDEX}))
    return tmp_path


def test_a_whole_site_passes(site):
    assert check.faults(site) == []


@pytest.mark.parametrize("planted, sentence", [
    ('<a href="c.html">', "index.html links to c.html, which is not there"),
    ('<a href="a/b.html#here">', "index.html links to a/b.html#here: no such place on that page"),
    ('<a href="#here">', "index.html links to #here: no such place on that page"),
    ('<img src="missing.png">', "index.html links to missing.png, which is not there"),
    ('<script src="https://cdn.example/x.js"></script>', "index.html fetches https://cdn.example/x.js"),
    ('<link rel="preconnect" href="//fonts.example">', "index.html fetches //fonts.example"),
    ("<p>$$x$$", "index.html shows '$$'"),
    (r"<p>\lambda", r"index.html shows '\\lambda': TeX, or a path that should be code"),
    ("<p>#| hide", "index.html shows '#|'"),
])
def test_a_planted_fault_is_found(site, planted, sentence):
    with open(site / "index.html", "a") as file:
        file.write(planted)
    assert check.faults(site) == [sentence]


@pytest.mark.parametrize("rule, sentence", [
    ("@import 'https://fonts.example/f.css'", "style.css fetches https://fonts.example/f.css"),
    ("p { background: url(no.png) }", "style.css needs no.png, which is not there"),
])
def test_a_fault_of_a_style_is_found(site, rule, sentence):
    (site / "style.css").write_text(rule)
    assert check.faults(site) == [sentence]


def test_a_word_that_cannot_be_found_is_a_fault(site):
    (site / "search/search_index.json").write_text(json.dumps({"docs": INDEX[1:]}))
    assert check.faults(site) == ["a search for Distractor would not find 05_distractor.html"]
