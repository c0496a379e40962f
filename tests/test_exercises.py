"""The tools that run folded answers, open lessons in Colab and link the glossary; answers are run in test_lessons."""
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import nbformat
import notebooks
import pytest
import warm
from conftest import ROOT

SOME_LESSON = ROOT / "nbs/1_core/some_lesson.ipynb"
ANSWER = "**1.** Why?\n\n<details><summary>Answer</summary>\n\nThus:\n\n```python\n{}\n```\n\n</details>"


def lesson(answer):
    cells = [nbformat.v4.new_markdown_cell("# T\n\n> P"), nbformat.v4.new_code_cell("base = 41"),
             nbformat.v4.new_markdown_cell(ANSWER.format(answer))]
    return nbformat.v4.new_notebook(cells=cells)


def test_answers_run_with_the_names_of_the_lesson():
    ran = notebooks.execute(notebooks.with_answers(lesson("base += 1\nprint(base)")), ROOT)
    assert ran.cells[-1].outputs[0].text == "42\n"


def test_a_wrong_answer_is_an_error():
    with pytest.raises(Exception, match="NameError"):
        notebooks.execute(notebooks.with_answers(lesson("print(unknown)")), ROOT)


def test_prose_and_other_languages_are_not_run():
    nb = lesson("x")
    nb.cells[2].source = nb.cells[2].source.replace("```python", "```sh")
    assert notebooks.answers(nb) == []


def test_badge_is_added_once_and_keeps_the_promise():
    once = notebooks.add_badge(lesson("x"), SOME_LESSON)
    sources = [c.source for c in once.cells]
    assert re.match(r"# T\n\n> P\n\n\[!\[Open in Colab\].*1_core/some_lesson\.ipynb\)$", sources[0])
    assert "google.colab" in sources[1] and sources[2] == "base = 41"
    assert [c.source for c in notebooks.add_badge(once, SOME_LESSON).cells] == sources
    assert "git clone" not in sources[1]
    once.cells[2].source = 'open("../results/x.json")'  # of the repository, not of the package
    reads = notebooks.add_badge(once, SOME_LESSON).cells[1].source
    assert "git clone" in reads and reads.endswith(f"/be_nb/{SOME_LESSON.relative_to(notebooks.ROOT).parent}")


def test_badge_cell_does_nothing_here():
    ran = notebooks.execute(notebooks.add_badge(lesson("x"), SOME_LESSON), ROOT)
    assert ran.cells[1].outputs == []


def test_glossary_leads_to_lessons():
    prose = "\n".join(c.source for c in notebooks.read(ROOT / "nbs/9_reference/03_glossary.ipynb").cells)
    targets = re.findall(r"\]\(([^):]+\.ipynb)\)", prose)
    assert len(targets) > 40
    assert {t for t in targets if not (ROOT / "nbs/9_reference" / t).exists()} == set()
    terms = re.findall(r"^- \*\*(.+?)\*\*", prose, re.M)
    assert len(terms) == len(set(terms))


@pytest.mark.parametrize("name", ["1_core/05_distractor"])
def test_lesson_runs_as_a_script(name, tmp_path):
    "Plain Python, no kernel: a cell's last expression is evaluated and not shown, as in a script."
    nb = notebooks.read(ROOT / f"nbs/{name}.ipynb")
    cells = [c.source for c in nb.cells if c.cell_type == "code"
             and not re.search(r"^#\| *(eval: *false|cuda)", c.source, re.M)]
    script = tmp_path / "lesson.py"
    script.write_text("\n\n".join(s for s in cells if "google.colab" not in s), encoding="utf8")
    done = subprocess.run([sys.executable, script], cwd=(ROOT / "nbs" / name).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def code(source):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])


LIKE = """
import os, sys
print(os.getcwd(), sys.path[0], __name__, [m for m in sys.modules if m.startswith("be_nb")])
import matplotlib.pyplot as plt, sklearn.linear_model, torch, torchvision
print(sorted(set(os.environ) - {"_", "COLUMNS", "LINES"}))
print(torch.get_num_threads(), torch.is_grad_enabled(), plt.rcParams["figure.dpi"])
print(torch.ones(2, requires_grad=True).sum().backward(), plt.get_backend())
"""
needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kernels are ordinary ones on this system")


@needs_pidfd
def test_a_warm_kernel_is_like_a_fresh_one(tmp_path):
    fresh, warmed = ("".join(output.text for output in notebooks.execute(code(LIKE), tmp_path, kernels=kernels)
                             .cells[0].outputs) for kernels in (notebooks.AsyncKernelManager, notebooks.WarmKernel))
    assert warmed == fresh and "backend_inline" in fresh


@needs_pidfd
def test_a_warm_kernel_ends_with_its_launcher(tmp_path):
    sleeps = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(9999)"
    with ThreadPoolExecutor() as pool:
        run = pool.submit(notebooks.execute, code(sleeps), tmp_path, kernels=notebooks.WarmKernel)
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        kernel = Path("/proc", (tmp_path / "pid").read_text())
        assert kernel.exists()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().decode().split("\0")
                if [warm.__file__, warm.server()] == words[2:4]:
                    os.kill(int(process.name), signal.SIGKILL)
        with pytest.raises(Exception, match="[Kk]ernel"):
            run.result()
    while kernel.exists():  # as long as it takes: what is tested is that it ends
        time.sleep(0.05)
