"""Is the built site whole? Links lead somewhere, nothing is fetched from elsewhere, nothing hidden shows.

    python site/check.py _site
"""
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

UNREAD = ("script", "style", "code", "pre", "annotation")  # what is shown as it is, or not at all

FOUND = [("Distractor", "05_distractor.html"), ("Distractor", "api/distractor.html"), ("InfoNCE", "07_losses.html")]
RAW = ("$$", r"\[", "<details", "google.colab", "#|", "```", "](")           # what should have become something else


class Page(HTMLParser):
    "Links of a page, what it fetches, and the places inside it that a link can name."

    def __init__(self, path):
        super().__init__()
        self.links, self.fetched, self.places, self.text, self.skipping = [], [], set(), [], 0
        self.feed(path.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attrs):
        given = {k: v or "" for k, v in attrs}
        self.places |= {given[k] for k in ("id", "name") if k in given}
        if "href" in given:
            led = tag in ("a", "area") or given.get("rel") in ("canonical", "next", "prev")
            (self.links if led else self.fetched).append(given["href"])
        self.fetched += [given[k] for k in ("src", "data", "poster") if k in given and tag not in ("input", "button")]
        self.fetched += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        self.skipping += tag in UNREAD

    def handle_endtag(self, tag):
        self.skipping -= tag in UNREAD

    def handle_data(self, data):
        if not self.skipping:
            self.text.append(data)


def faults(site):
    "Sentences; an empty list if all is well."
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site} holds no page"]
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme == "data" or ((parts.scheme or parts.netloc) and link in page.links):
                continue
            if parts.scheme or parts.netloc:
                found.append(f"{name} fetches {link}")
                continue
            base = site if name.name == "404.html" or parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name} links to {link}, which is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{name} links to {link}: no such place on that page")
        text = "".join(page.text)
        found += [f"{name} shows {tex!r}: TeX, or a path that should be code"
                  for tex in re.findall(r"\\[A-Za-z]{2,}", text)]
        found += [f"{name} shows {word!r}" for word in RAW if word in text]
    for path in site.rglob("*.css"):
        sheet = path.read_text(encoding="utf8")
        for url in re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')]+)", sheet):
            if "//" in url:
                found.append(f"{path.relative_to(site)} fetches {url}")
            elif not url.startswith(("data:", "#")) and not (path.parent / url.split("#")[0].split("?")[0]).is_file():
                found.append(f"{path.relative_to(site)} needs {url}, which is not there")
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf8"))["docs"]
    for word, place in FOUND:
        if not any(place in doc["location"] and word in doc["title"] + doc["text"] for doc in index):
            found.append(f"a search for {word} would not find {place}")
    return found


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or f"{sys.argv[1]}: all links lead somewhere, nothing is fetched from elsewhere")
    sys.exit(bool(wrong))
