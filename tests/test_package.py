"""The library as others get it: exported from the notebooks, importable piece by piece, installable as a wheel."""
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import be_nb

MODULES = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                 for p in (ROOT / "be_nb").rglob("*.py") if p.name != "_modidx.py")

# Heavy libraries are imported once, then every module is imported in a fork of its own: alone, but quickly.
IMPORT_ALONE = """
import json, os, sys, traceback
import torch, torchvision, av, tyro
assert not [m for m in sys.modules if m.startswith("be_nb")]
failed = {}
for name in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try:
            __import__(name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        failed[name] = "see above"
import be_nb
print(os.path.dirname(be_nb.__file__))
sys.exit(", ".join(failed) or 0)
"""


def run(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# All that a module of ours may need to be imported; what else the course brings is imported where it is used.
LEAST = ("torch", "torchvision", "numpy", "einops", "tqdm", "av", "safetensors", "tyro")

# As if nothing but LEAST were installed: what the second argument names is not found, by us and by others.
HIDE = """
import json, sys
class Hiding:
    hidden = set(json.loads(sys.argv[2]))
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.hidden else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


def least_names():
    "Top-level names that LEAST and what it requires install, and those of all other installed packages."
    least, waiting = set(), [name.lower() for name in LEAST]
    while waiting:
        name = waiting.pop()
        if name not in least:
            least.add(name)
            try:
                wanted = [r for r in metadata.requires(name) or () if "extra ==" not in r]
            except metadata.PackageNotFoundError:  # for another system or Python
                continue
            waiting += [re.match(r"[\w.-]+", r)[0].lower() for r in wanted]
    owners = {name: {re.sub(r"[-_.]+", "-", owner).lower() for owner in all_of}
              for name, all_of in metadata.packages_distributions().items()}
    ours = {name for name, all_of in owners.items() if all_of & {re.sub(r"[-_.]+", "-", n) for n in least}}
    return ours, set(owners) - ours - {"be_nb", ""}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the interpreter")
def test_every_module_imports_alone_with_the_least_installed():
    ours, hidden = least_names()
    assert set(LEAST) <= ours and {"sklearn", "matplotlib", "tensorboard", "IPython", "ipywidgets", "scipy"} <= hidden
    run(sys.executable, "-c", HIDE + IMPORT_ALONE, json.dumps(MODULES), json.dumps(sorted(hidden)), cwd=ROOT)


LATE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"tensorboard", "sklearn", "matplotlib", "webdataset", "ipywidgets", "IPython"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""


def test_training_imports_nothing_heavy_before_it_is_used():
    modules = [m for m in MODULES if m.startswith("be_nb.training")]
    assert "be_nb.training.finetune" in modules
    run(sys.executable, "-c", LATE, "be_nb.visualize", *modules, "be_nb.train", cwd=ROOT)


def test_the_version_is_that_of_the_package(tmp_path):
    "Said once, in settings.ini; a source tree that was never installed says so."
    bare = [sys.executable, "-S", "-c",
            "import be_nb, sys; assert 'torch' not in sys.modules; print(be_nb.__version__)"]
    (tmp_path / "be_nb").mkdir()  # elsewhere: beside the tree, an installation in place leaves what it knows
    (tmp_path / "be_nb/__init__.py").write_bytes((ROOT / "be_nb/__init__.py").read_bytes())
    assert run(*bare, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}).strip() == "0+not.installed"
    assert "__version__ =" not in (ROOT / "be_nb/__init__.py").read_text()
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        be_nb.lod  # noqa: B018


def test_export_is_in_sync(tmp_path):
    for part in ("nbs", "be_nb"):
        shutil.copytree(ROOT / part, tmp_path / part,
                        ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for part in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / part, tmp_path / part)
    run(str(Path(sys.executable).with_name("nbdev_export")), cwd=tmp_path)
    read = lambda folder: {p.relative_to(folder): p.read_text() for p in (folder / "be_nb").rglob("*.py")}
    fresh, stored = read(tmp_path), read(ROOT)
    stale = sorted(str(p) for p in fresh.keys() | stored.keys() if fresh.get(p) != stored.get(p))
    assert not stale, f"run nbdev_export: {', '.join(stale)} differ from the notebooks"


def test_exports_use_no_notebook_globals():
    run(sys.executable, "-m", "pyflakes", *(str(p) for p in (ROOT / "be_nb").rglob("*.py") if p.name != "__init__.py"))
    run(sys.executable, "-m", "pyflakes", str(ROOT / "be_nb/backbones/__init__.py"))


def test_library_needs_no_development_packages():
    names = ("nbdev", "fastcore", "execnb", "IPython.core", "pytest", "hypothesis")
    for path in (ROOT / "be_nb").rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines()]
        wrong = [line for line in lines
                 if line.startswith(tuple(f"{w} {n}" for w in ("import", "from") for n in names))]
        assert not wrong, f"{path.name}: {wrong}"


def test_what_github_reads_is_yaml_and_says_the_version():
    for path in (ROOT / ".github").rglob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf8")), dict), path
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    assert f"version = {citation['version']}\n" in (ROOT / "settings.ini").read_text(encoding="utf8")


def test_wheel_works_outside_the_tree(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for part in ("be_nb", "nbs/results/weights", "settings.ini", "setup.py", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (tree / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, tree / part)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheel"), str(tree))
    wheel, = (tmp_path / "wheel").glob("*.whl")
    run(*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    where = run(sys.executable, "-c", IMPORT_ALONE, json.dumps(MODULES), cwd=elsewhere, env=env)
    assert where.strip().endswith(str(tmp_path / "site" / "be_nb"))
    assert "pretrain" in run(str(tmp_path / "site" / "bin" / "be-nb"), "--help", cwd=elsewhere, env=env)
    brought = {p.name for p in (tmp_path / "site/be_nb/weights").iterdir()}
    assert brought == {p.name for p in (ROOT / "nbs/results/weights").iterdir()}, "the networks that come along"
    where = "from be_nb.saving.weights import find_weights; print(find_weights('scenebias-be').path)"
    assert str(tmp_path / "site/be_nb/weights") in run(sys.executable, "-c", where, cwd=elsewhere, env=env)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf8")
    version = settings["DEFAULT"]["version"]
    assert run(str(tmp_path / "site" / "bin" / "be-nb"), "--version", cwd=elsewhere,
               env=env).strip() == f"be_nb {version}"
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf8"), "the changelog has no such version"
