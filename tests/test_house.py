"""The house that be_nb/ is: its floors, no circles, nothing imported late, a small root, no module too long to read.

`FLOORS` says what stands on what. A new module belongs on a floor; a module that needs something from a floor above its
own is in the wrong place, or what it needs is.
"""
import ast
import shutil
from functools import cache

import pytest
from conftest import ROOT

# From the top. A module imports from its own floor and from those below; `name/` is a folder with everything in it.
FLOORS = [
    ["cli"],
    ["evaluate", "studies/"],
    ["train"],
    ["training/"],
    ["judging/"],
    ["methods/", "moco", "saving/"],
    ["backbones/", "recipes"],
    ["data/", "augment"],
    ["machine/", "settings"],
    ["config", "distractor", "losses", "pixels", "visualize", "methods", "be_nb"],  # `methods` itself: the table
]
LATE = {"be_nb", "be_nb.cli"}  # may import in a function: `be_nb.load` when asked for, a command when it is given
AT_THE_ROOT = 16               # modules, not counting folders
LINES = 450                    # of one module


def modules(root):
    "{dotted name: path} of everything in root/be_nb."
    paths = [p for p in sorted((root / "be_nb").rglob("*.py")) if p.name != "_modidx.py"]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def floor(name):
    "0 for the cellar; None for a module that stands on no floor."
    inside = name.removeprefix("be_nb.")
    found = {place: height for height, places in enumerate(reversed(FLOORS)) for place in places}
    return found.get(inside, found.get(inside.split(".")[0] + "/"))


def targets(node, name, known):
    "The modules of ours that an import statement in module `name` reaches."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == "be_nb"]
    base = node.module or ""
    if node.level:
        parts = name.split(".") if known[name].name == "__init__.py" else name.split(".")[:-1]
        base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
    if base.split(".")[0] != "be_nb":
        return []
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]


@cache
def statements(text):
    "(import statement, whether inside a function) for every one in a module's text."
    found, waiting = [], [(ast.parse(text), False)]
    while waiting:
        node, late = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append((node, late))
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        waiting += [(child, late) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
    return found


def imports(root):
    "(module, line, imported module of ours, whether inside a function) for every import statement."
    known = modules(root)
    return [(name, node.lineno, target, late) for name, path in known.items()
            for node, late in statements(path.read_text(encoding="utf8")) for target in targets(node, name, known)]


def circles(edges):
    "Modules that import each other: what is left when all that import none, or are imported by none, are taken away."
    edges = set(edges)
    while True:
        importing, imported = {a for a, _ in edges}, {b for _, b in edges}
        inner = {(a, b) for a, b in edges if a in imported and b in importing}
        if inner == edges:
            return sorted({name for edge in edges for name in edge})
        edges = inner


def faults(root):
    "Everything that is wrong with the house at `root`, one sentence each; an empty list if it stands."
    known, found = modules(root), []
    found += [f"{name} stands on no floor: give it one in FLOORS" for name in known if floor(name) is None]
    edges = imports(root)
    for name, line, target, late in edges:
        if late and name not in LATE:
            found.append(f"{name}:{line} imports {target} inside a function")
        elif not late and None not in (floor(name), floor(target)) and floor(target) > floor(name):
            found.append(f"{name}:{line} reaches up to {target}")
    circle = circles((name, target) for name, _, target, late in edges if name != target and name not in LATE)
    if circle:
        found.append(f"a circle of imports runs through {', '.join(circle)}")
    root_modules = [name for name, path in known.items() if name.count(".") == 1 and path.name != "__init__.py"]
    if len(root_modules) > AT_THE_ROOT:
        found.append(f"{len(root_modules)} modules at the root, more than {AT_THE_ROOT}")
    for name, path in known.items():
        lines = len(path.read_text(encoding="utf8").splitlines())
        if lines > LINES:
            found.append(f"{name} has {lines} lines, more than {LINES}: split the module, and the lesson with it")
    return found


def test_house_stands():
    assert faults(ROOT) == []


PLANTED = {
    "upward": ({"data/clips.py": "from ..training.step import train_step\n"},
               "be_nb.data.clips:1 reaches up to be_nb.training.step"),
    "upward, absolute": ({"config.py": "import be_nb.train\n"}, "be_nb.config:1 reaches up to be_nb.train"),
    "upward, guarded": ({"losses.py": "try:\n    from . import moco\nexcept ImportError:\n    moco = None\n"},
                        "be_nb.losses:2 reaches up to be_nb.moco"),
    "circle on one floor": ({"data/decode.py": "from .videos import VideoClips\n"},
                            "a circle of imports runs through be_nb.data.decode, be_nb.data.videos"),
    "late": ({"evaluate.py": "def f():\n    from .recipes import recipe\n"},
             "be_nb.evaluate:2 imports be_nb.recipes inside a function"),
    "late, in a method": ({"moco.py": "class A:\n    async def f(self):\n        import be_nb.losses\n"},
                          "be_nb.moco:3 imports be_nb.losses inside a function"),
    "no floor": ({"utils.py": ""}, "be_nb.utils stands on no floor: give it one in FLOORS"),
    "no floor, folder": ({"misc/__init__.py": ""}, "be_nb.misc stands on no floor: give it one in FLOORS"),
    "large root": ({f"more{i}.py": "" for i in range(AT_THE_ROOT)}, f"more than {AT_THE_ROOT}"),
    "long": ({"losses.py": "\n" * LINES}, "split the module"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault, tmp_path):
    files, sentence = PLANTED[fault]
    shutil.copytree(ROOT / "be_nb", tmp_path / "be_nb", ignore=shutil.ignore_patterns("__pycache__"))
    before = faults(tmp_path)
    for place, text in files.items():
        path = tmp_path / "be_nb" / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + (path.read_text(encoding="utf8") if path.exists() else ""), encoding="utf8")
    new = [f for f in faults(tmp_path) if f not in before]
    assert any(sentence in f for f in new), new


def test_what_may_be_late_is_not_found(tmp_path):
    "The two exceptions, and a folder's own files importing each other, are no faults."
    shutil.copytree(ROOT / "be_nb", tmp_path / "be_nb", ignore=shutil.ignore_patterns("__pycache__"))
    before = faults(tmp_path)
    with open(tmp_path / "be_nb/cli.py", "a", encoding="utf8") as file:
        file.write("\ndef late():\n    from .studies import bench\n")
    with open(tmp_path / "be_nb/data/archives.py", "a", encoding="utf8") as file:
        file.write("\nfrom .lists import read_list\nfrom ..machine import files\n")
    assert faults(tmp_path) == before
