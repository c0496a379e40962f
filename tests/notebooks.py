"""Runs, cleans and measures the lessons: the one place that knows what a stored notebook looks like.

    python tests/notebooks.py run nbs/1_core/05_distractor.ipynb …   # execute, store clean outputs
    python tests/notebooks.py clean nbs/1_core/05_distractor.ipynb … # only strip what should not be stored
    python tests/notebooks.py readme                # list the lessons in nbs/index.ipynb, write README.md from it
    python tests/notebooks.py badge nbs/*/*.ipynb   # a link to Colab, and the cell that installs the package there
"""
import ast
import base64
import configparser
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import warm
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def read(path):
    return nbformat.read(path, as_version=4)


def write(nb, path):
    """Write under a temporary name, then rename: a stop never leaves half a notebook."""
    temporary = Path(f"{path}.tmp{os.getpid()}")
    temporary.write_text(nbformat.writes(nb, indent=1) + "\n", encoding="utf8")
    os.replace(temporary, path)


def neutral(text):
    "Without what differs from run to run: addresses of objects, names of temporary folders."
    folders = re.escape(tempfile.gettempdir()) + r"[/\\]tmp\w+"
    return re.sub(folders, "TEMPORARY", re.sub(r" at 0x[0-9a-f]{6,}", "", text))


def clean_output(output):
    """The output as stored, or None: no widget state (its still picture stays), no progress bars."""
    if output.output_type == "stream":
        if output.name == "stderr":
            return None
        output.text = neutral(output.text)
        return output
    if output.output_type == "error":
        return output
    data = output.data
    if data.pop(WIDGET_VIEW, None) is not None and not any(k.startswith("image/") for k in data):
        return None
    data.pop("text/html", None) if "image/png" in data else None
    if "text/plain" in data:
        data["text/plain"] = neutral(data["text/plain"])
    output.metadata = {}
    if "execution_count" in output:
        output.execution_count = None
    return output


def only_imports(code):
    "Whether nothing but imports is in a cell; directives, comments and magics do not count."
    try:
        body = ast.parse(re.sub(r"^[%!].*", "", code, flags=re.M)).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def boilerplate(code):
    """What nobody opens a lesson for: "set-up", "imports", "drawing", "plumbing"; "" for what a lesson is about.

    JupyterLab folds such a cell, the site folds it or leaves it out; what it shows stays. A cell that defines what the
    library exports is folded only where it says so (`#| code-fold: true`), one that asserts something never.
    """
    if re.match(r"#\| *default_exp", code) or "google.colab" in code:
        return "set-up"
    if only_imports(code):
        return "imports"
    if re.match(r"#\| *export", code):
        return "plumbing" if re.match(r"#\| *export.*\n#\| *code-fold: *true", code) else ""
    if re.search(r"^#\| *hide", code, re.M):
        return "set-up"
    return "drawing" if "Picture(" in code and "assert" not in code else ""


def clean(nb, name):
    """Strip what differs from run to run; give every cell an id made from its text, so that diffs stay small.

    Boilerplate is folded in JupyterLab, so that a lesson opens on words and a picture.
    """
    seen = {}
    for cell in nb.cells:
        digest = hashlib.sha1(f"{name}:{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        folded = cell.cell_type == "code" and boilerplate(cell.source)
        cell.metadata = {"jupyter": {"source_hidden": True}} if folded else {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [o for o in map(clean_output, cell.outputs) if o is not None]
    nb.metadata = KERNEL
    nb.nbformat, nb.nbformat_minor = 4, 5
    return nb


class WarmKernel(AsyncKernelManager):
    """A kernel that starts at once, see `warm.py`; an ordinary one on systems that lack what it needs."""

    def format_kernel_cmd(self, extra_arguments=None):
        if not hasattr(os, "pidfd_open"):
            return super().format_kernel_cmd(extra_arguments)
        return [sys.executable, "-S", warm.__file__, warm.server(), self.connection_file]


def execute(nb, folder, timeout=600, kernels=AsyncKernelManager):
    """Run every cell in a fresh kernel, in the folder of the notebook, as JupyterLab does; raise at the first error."""
    skipped = {i for i, c in enumerate(nb.cells) if c.cell_type == "code"
               and re.search(r"^#\| *(eval: *false|cuda)", c.source, re.M)}
    run = nbformat.from_dict(nb)
    kept = {i: run.cells[i] for i in skipped}
    for i in skipped:
        run.cells[i] = nbformat.v4.new_raw_cell("")
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
           "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    NotebookClient(run, timeout=timeout, kernel_name="python3", kernel_manager_class=kernels, coalesce_streams=True,
                   resources={"metadata": {"path": str(folder)}}).execute(env=env)
    for i, cell in kept.items():
        run.cells[i] = cell
    return run


def answers(nb):
    """The code of folded answers, ```python … ``` or ```py … ```, as one string for each answer that has any."""
    found = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for answer in re.findall(r"<details>(.*?)</details>", cell.source, re.S):
                blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", answer, re.S | re.M)
                if blocks:
                    found.append("\n".join(blocks))
    return found


def with_answers(nb):
    """The lesson followed by its answers' code, each run in a copy of the lesson's names: what readers would try."""
    longer = nbformat.from_dict(nb)
    for code in answers(nb):
        run = f"exec(compile({code!r}, '<answer>', 'exec'), dict(globals()))"
        longer.cells.append(nbformat.v4.new_code_cell(run))
    return longer


def repository():
    "user/name, branch and folder of the notebooks, as settings.ini has them."
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf8")
    default = settings["DEFAULT"]
    return f"{default['user']}/{default['repo']}", default["branch"], default["nbs_path"]


def add_badge(nb, path):
    """A link to Colab under the promise, and before all other code a hidden cell that installs the package on Colab.

    A lesson that reads a record gets the repository, too. Anywhere else that cell does nothing. Doing it twice changes
    nothing.
    """
    where, branch, folder = repository()
    link = f"https://colab.research.google.com/github/{where}/blob/{branch}/{folder}/{path.relative_to(ROOT / folder)}"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
    install = ('#| hide\nimport sys\n\nif "google.colab" in sys.modules:  # nothing happens elsewhere\n'
               f"    %pip install --quiet git+https://github.com/{where}@{branch}")
    if any('"../results' in cell.source for cell in nb.cells):
        copy = f"/content/{where.split('/')[1]}"
        install += (f"\n    !git clone --quiet --depth 1 -b {branch} https://github.com/{where} {copy}"
                    f"\n    %cd -q {copy}/{path.relative_to(ROOT).parent}")
    first = nb.cells[0]
    kept = re.sub(r"\n\n\[!\[Open in Colab\]\([^\n]*", "", first.source)
    first.source = re.sub(r"\A(# .+\n\n> .+)", lambda start: f"{start[1]}\n\n{badge}", kept)
    cells = [c for c in nb.cells if not (c.cell_type == "code" and "google.colab" in c.source)]
    code = next((i for i, c in enumerate(cells) if c.cell_type == "code"), None)
    if code is not None:  # after `#| default_exp`, which nbdev wants before everything else
        code += cells[code].source.startswith("#| default_exp")
        cells.insert(code, nbformat.v4.new_code_cell(install))
    nb.cells = cells
    return nb


WINGS = {  # folder → title, and what it is for
    "1_core": ("Core", "an afternoon: the trap, every part of the method, and the claim"),
    "2_methods": ("Methods", "add one of your own; contrastive, joint-embedding and predictive ones and pretext tasks, "
                             "each with Background Erasing"),
    "3_backbones": ("Backbones", "C3D, I3D, 3D ResNets, R(2+1)D, S3D-G, torchvision's networks, and what they cost"),
    "4_machine": ("Machine", "devices, files, checkpoints, speed, several GPUs"),
    "5_data": ("Data", "the built-in set, folders of videos, packs, official archives, actors"),
    "6_judging": ("Judging", "features, protocols, retrieval, flow, activation maps, the background-bias report"),
    "7_training": ("Training", "settings, recipes, runs that can be killed, fine-tuning, the command line"),
    "8_studies": ("Studies", "the miniature, the speed of a step, the ladder, the leaderboard, laboratories"),
    "9_reference": ("Reference", "pictures, results, glossary"),
}
# the part of the index that is made from the lessons
COURSE = re.compile(r"<!-- lessons -->\n.*<!-- end of lessons -->", re.S)
BOARD = re.compile(r"<!-- leaderboard -->\n.*<!-- end of leaderboard -->", re.S)  # from nbs/results/leaderboard.json


def promise(path):
    "Title and first sentence of the promise of a lesson."
    title, text = re.match(r"# (.+)\n\n> (.+)", read(path).cells[0].source).groups()
    return title, re.split(r"(?<=[.:!?]) (?=[A-Z])", text)[0]


def reading_minutes(path):
    "Minutes to read a lesson: 200 words or 15 lines of code each, without what is folded and further reading."
    minutes = 0.0
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"<details>.*?</details>|^## Further reading.*", "", cell.source, flags=re.S | re.M)
            minutes += len(text.split()) / 200
        elif cell.cell_type == "code" and not boilerplate(cell.source):
            minutes += len(cell.source.splitlines()) / 15
    return minutes


def course():
    "The list of lessons as Markdown: the core as a table, of each other wing a line, folded."
    parts, folded = [], ["<details><summary>The other eight wings, lesson by lesson</summary>", ""]
    for folder, (wing, about) in WINGS.items():
        paths = sorted((ROOT / "nbs" / folder).glob("[0-9]*.ipynb"))
        lessons = [(f"[{promise(path)[0]}]({folder}/{path.name})", promise(path)[1], path) for path in paths]
        if folder == "1_core":
            parts += ["| lesson | what you build | minutes |", "|---|---|---:|",
                      *(f"| {k} {link} | {text} | {reading_minutes(path):.0f} |"
                        for k, (link, text, path) in enumerate(lessons, 1)), ""]
        else:
            folded.append(f"- **{wing}**, {about}: " + " · ".join(link for link, *_ in lessons))
    return "\n".join(["<!-- lessons -->", *parts, *folded, "", "</details>", "<!-- end of lessons -->"])


def board():
    "The head of the leaderboard as Markdown, from its record: what BE helps most, and where it helps least or hurts."
    from be_nb.studies.leaderboard import extremes, headline_table
    record = json.loads((ROOT / "nbs/results/leaderboard.json").read_text(encoding="utf8"))
    shown = extremes(record["cells"], 4)
    return f"<!-- leaderboard -->\n{headline_table(record, shown)}\n<!-- end of leaderboard -->"


def list_lessons(index):
    "The index with its list of lessons and its table of methods made anew."
    for cell in index.cells:
        if cell.cell_type == "markdown":
            cell.source = COURSE.sub(lambda _: course(), cell.source)
            cell.source = BOARD.sub(lambda _: board(), cell.source)
    return index


def readme(index):
    """README.md from the index notebook, and its pictures as {path: bytes}.

    Prose is taken as it is, of code only the pictures it makes; `#| alt: …` in a cell describes its picture.
    """
    parts, pictures = [], {}
    for cell in index.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                path = f"images/index-{len(pictures)}.png"
                pictures[ROOT / "nbs" / path] = base64.b64decode(output.data["image/png"])
                parts.append(f"![{re.search(r'#[|] alt: (.*)', cell.source)[1]}]({path})")
    text = "\n\n".join(parts)
    return re.sub(r"\]\((?!https?:|#|\.\./)", "](nbs/", text).replace("](../", "](") + "\n", pictures


def main(action, *paths):
    if action == "readme":
        index = ROOT / "nbs" / "index.ipynb"
        write(clean(list_lessons(read(index)), index.stem), index)
        text, pictures = readme(read(index))
        (ROOT / "README.md").write_text(text, encoding="utf8")
        for path, content in pictures.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        return
    for path in paths:
        nb = read(path)
        path = Path(path).resolve()
        if action == "run":
            nb = execute(nb, path.parent)
        if action == "badge" and path.stem != "index":  # README is made from the index
            nb = add_badge(nb, path)
        write(clean(nb, path.stem), path)
        print(f"{action}: {path.relative_to(ROOT)} {path.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main(*sys.argv[1:])
