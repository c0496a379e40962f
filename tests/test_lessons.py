"""Every notebook of the course: stored clean, short enough to teach, and running from top to bottom."""
import ast
import json
import re
from collections import Counter
from functools import cache

import nbformat
import notebooks
import pytest
from conftest import ROOT

LESSONS = sorted((ROOT / "nbs").rglob("[!.]*.ipynb"))  # in reading order: folders and files are numbered
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: "/".join(p.relative_to(ROOT / "nbs").parts))


def cells(nb, kind):
    return [c for c in nb.cells if c.cell_type == kind]


def code_lines(source):
    return [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]


@each_lesson
def test_stored_clean(path):
    before = notebooks.read(path)
    after = notebooks.clean(notebooks.read(path), path.stem)
    assert before == after, f"run: python tests/notebooks.py clean {path.relative_to(ROOT)}"
    assert not [o for c in cells(before, "code") for o in c.outputs if o.output_type == "error"], "an error is stored"


@each_lesson
def test_lesson_budget(path):
    nb = notebooks.read(path)
    code = [c.source for c in cells(nb, "code")]
    prose = sum(len(c.source.split()) for c in cells(nb, "markdown"))
    lines = sum(len(code_lines(s)) for s in code)
    assert prose >= 3 * lines, f"{prose} words for {lines} lines of code: at least three words a line"
    side = "1_core" not in path.parts  # where a class is exported in one piece, it may take more than a screen
    longest = max((len(s.splitlines()) for s in code if not (side and re.match(r"#\| *export", s))), default=0)
    exported = max((len(s.splitlines()) for s in code), default=0)
    assert longest <= 40 and exported <= 60, "a code cell is longer than 40 lines, or one that is exported than 60"
    assert all(len(s.splitlines()) <= 16 for s in code
               if s.startswith("#| hide")), "a hidden cell is longer than 15 lines"
    assert path.stat().st_size <= 300_000, "the notebook is larger than 300 KB"
    assert max((len(line) for s in code for line in s.splitlines()),
               default=0) <= 120, "a line is longer than 120 columns"
    first = nb.cells[0].source
    assert re.match(r"# .+\n\n> .+", first), "the first cell is `# Title`, an empty line, `> promise`"


@each_lesson
def test_lesson_exports_politely(path):
    for source in (c.source for c in cells(notebooks.read(path), "code")):
        if re.match(r"#\| *export", source):
            assert "import *" not in source and "@patch" not in source, "breaks go-to-definition"


@each_lesson
def test_lesson_teaches(path):
    nb = notebooks.read(path)
    if path.stem in ("index", "02_results", "03_glossary"):
        pytest.skip("a map, a record and a glossary, not lessons")
    prose = "\n".join(c.source for c in cells(nb, "markdown")).lower()
    pictures = [o for c in cells(nb, "code") for o in c.outputs
                if any(k.startswith("image/") for k in o.get("data", {}))]
    assert pictures, "no picture is stored"
    assert prose.count("<details><summary>answer</summary>") >= 3, "at least three exercises with folded answers"
    assert not re.search(r"[^\n]\n<details>", prose), "without an empty line before it an answer lies open on a page"
    assert "summary" in prose and "exercises" in prose
    assert any(re.search(r"^\s*assert |test_", c.source, re.M) for c in cells(nb, "code")), "nothing is tested"


def test_the_core_is_an_afternoon():
    minutes = [notebooks.reading_minutes(path) for path in (notebooks.ROOT / "nbs/1_core").glob("[0-9]*.ipynb")]
    assert len(minutes) == 12 and sum(minutes) <= 170 and max(minutes) < 20


@each_lesson
def test_lesson_runs(path):
    "From top to bottom, and then the code of its folded answers."
    notebooks.execute(notebooks.with_answers(notebooks.read(path)), path.parent, kernels=notebooks.WarmKernel)


@each_lesson
def test_answers_with_code_are_marked(path):
    """An answer's code is fenced as python (and run by the test above) or as what it is: sh, text."""
    prose = "\n".join(c.source for c in cells(notebooks.read(path), "markdown"))
    for answer in re.findall(r"<details>(.*?)</details>", prose, re.S):
        for language in re.findall(r"^```(.*)\n", answer, re.M)[::2]:
            assert language in ("python", "py", "sh", "text"), f"an answer has a block in {language!r}"


@each_lesson
def test_lesson_opens_in_colab(path):
    nb = notebooks.read(path)
    if path.stem == "index":
        pytest.skip("README is made from it")
    again = notebooks.add_badge(notebooks.read(path), path)
    assert [c.source for c in again.cells] == [c.source for c in nb.cells], "run: python tests/notebooks.py badge"


@pytest.mark.parametrize("code, kind", [
    ("#| default_exp losses", "set-up"), ("#| hide\ntorch.manual_seed(0)", "set-up"),
    ("#| hide\nimport sys\nif 'google.colab' in sys.modules:\n    %pip install be_nb", "set-up"),
    ("#| export\nimport torch\n\nfrom be_nb.losses import info_nce", "imports"),
    ("%matplotlib inline\nimport torch", "imports"),
    ("#| alt: dots\nfigure = Picture()\nfigure.add_subplot().plot(x)\nfigure", "drawing"),
    ("figure = Picture()\nassert figure", ""), ("#| export\ndef draw():\n    return Picture()", ""),
    ("strip(clip)", ""), ("#| export\n#| code-fold: true\ndef check(): ...", "plumbing"),
    ("#| exporti\n#| code-fold: false\ndef check(): ...", ""),
    ("#| exporti\nimport torch\nx = 1", ""), ("# nothing", "")])
def test_what_is_folded(code, kind):
    "In JupyterLab by a mark that cleaning sets, so that `test_stored_clean` finds every lesson where it is missing."
    assert notebooks.boilerplate(code) == kind
    cell = notebooks.clean(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), "x").cells[0]
    assert cell.metadata == ({"jupyter": {"source_hidden": True}} if kind else {})


@each_lesson
def test_lesson_opens_on_words_and_a_picture(path):
    "What is not folded: words first, and a picture before the 25th line of code in the core."
    lines = 0
    for k, cell in enumerate(notebooks.read(path).cells):
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])):
            break
        if cell.cell_type == "code" and not notebooks.boilerplate(cell.source):
            lines += len(code_lines(cell.source))
            assert k > 1, "code before words"
    assert lines < 25 or "1_core" not in path.parts, f"{lines} lines of code before the first picture"


def test_index_lists_the_lessons():
    index = notebooks.read(ROOT / "nbs/index.ipynb")
    before = [c.source for c in index.cells]
    assert any(notebooks.COURSE.search(source) for source in before)
    assert [c.source for c in notebooks.list_lessons(index).cells] == before, "run: make export"


def test_readme_is_the_index():
    text, pictures = notebooks.readme(notebooks.read(ROOT / "nbs/index.ipynb"))
    assert (ROOT / "README.md").read_text(encoding="utf8") == text, "run: make export"
    assert pictures and all(path.read_bytes() == content for path, content in pictures.items()), "run: make export"


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf8")):
        assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"


def test_readme_table_is_the_record():
    from be_nb.studies.miniature import table

    rows = json.loads((ROOT / "nbs/results/scenebias.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    for line in table([row for row in rows if row["rho"] == 0.9]).splitlines()[2:]:
        cells = line.strip("| ").split(" | ")  # of its eight columns the README shows four
        assert "| " + " | ".join(cells[k] for k in (0, 1, 2, 5, 6)) + " |" in readme


def test_readme_says_which_half_helps_as_the_records_do():
    records = {name: json.loads((ROOT / f"nbs/results/{name}.json").read_text())["rows"]
               for name in ("scenebias", "capstone")}
    arms = {"MoCo": ("scenebias", "moco", "distractor", "negative", "be"),
            "[SimCLR]": ("capstone", "simclr", "simclr-be", "simclr-negative", "simclr-negative-be")}
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    for method, (name, *four) in arms.items():
        found = [[100 * r["motion_probe"] for r in records[name] if (r["arm"], r["rho"]) == (arm, 0.9)]
                 for arm in four]
        line = next(line for line in readme.splitlines() if line.startswith(f"> | {method}"))
        assert re.findall(r"\d\d\.\d", line) == [f"{sum(y) / len(y):.1f}" for y in found] and min(map(len, found)) > 2


# Order: a lesson uses what came before it. All may use the ground; two lessons frame the story and may use anything.
GROUND = {f"be_nb.{m}"
          for m in ("visualize", "data.scenebias", "config", "settings", "recipes", "machine.device", "methods")}
FRAMES = {"1_core/01_the_wall.ipynb", "1_core/12_the_claim.ipynb"}


@cache
def lessons():
    "{place below nbs/: code of its cells} in reading order, which is that of the names; not the index."
    found = {}
    for path in LESSONS:
        stored = json.loads(path.read_text(encoding="utf8"))["cells"]
        found[path.relative_to(ROOT / "nbs").as_posix()] = "\n".join(
            "".join(c["source"]) for c in stored if c["cell_type"] == "code")
    del found["index.ipynb"]
    return found


def exported_module(code):
    name = re.search(r"^#\| *default_exp +(\S+)", code, re.M)
    return name and f"be_nb.{name[1]}".removesuffix(".__init__")


@cache
def imported_modules(code):
    found = set()
    for node in ast.walk(ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.M))):  # %pip is not Python
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def forward_references(order):
    "Sentences: which lesson imports the module of which later one."
    places = list(order)
    made = {exported_module(code): places.index(place) for place, code in order.items() if exported_module(code)}
    return [f"{place} imports {module}, which {places[made[module]]} makes"
            for here, (place, code) in enumerate(order.items()) if place not in FRAMES
            for module in sorted(imported_modules(code) - GROUND) if made.get(module, -1) > here]


def misnumbered(places):
    "Folders and lessons without a number of their own: their order would depend on spelling."
    numbers = [re.match(r"(\d)_[a-z]\w*/(\d\d)_[a-z]\w*\.ipynb$", place) for place in places]
    folders = Counter(folder[0] for folder in {place.split("/")[0] for place in places})
    lessons = Counter(m.groups() for m in numbers if m)
    return [place for place, m in zip(places, numbers) if not m or lessons[m.groups()] > 1 or folders[m[1]] > 1]


def test_lessons_look_back_only():
    assert forward_references(lessons()) == []


def test_order_of_lessons_is_said_by_their_numbers():
    assert misnumbered(lessons()) == []


def test_one_module_one_lesson():
    made = Counter(filter(None, map(exported_module, lessons().values())))
    assert {module for module, n in made.items() if n > 1} == set()
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
               for p in (ROOT / "be_nb").rglob("*.py") if p.name != "_modidx.py" and p.stat().st_size}
    assert modules - {"be_nb"} == set(made)


@pytest.mark.parametrize("statement", [
    "from be_nb.studies.miniature import table", "from be_nb.studies import miniature",
    "import be_nb.studies.miniature as m", "def f():\n    from be_nb.studies.miniature import table",
])
def test_a_planted_forward_reference_is_found(statement):
    planted = f"\n%pip list\n{statement}\nfrom be_nb import settings"
    early, late = "5_data/02_decode.ipynb", "8_studies/02_bench.ipynb"  # the later one may import it
    order = {place: code + planted * (place in (early, late)) for place, code in lessons().items()}
    new = set(forward_references(order)) - set(forward_references(lessons()))
    assert new == {f"{early} imports be_nb.studies.miniature, which 8_studies/01_miniature.ipynb makes"}


@pytest.mark.parametrize("place", ["5_data/02_again.ipynb", "5_other/77_more.ipynb", "5_data/more.ipynb", "more.ipynb"])
def test_a_planted_double_number_is_found(place):
    assert place in misnumbered([*lessons(), place])
