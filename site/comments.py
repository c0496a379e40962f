"""For griffe, which reads the code: parameters, results and fields are documented by the comments behind them.

    def mix_static_frame(
        clips: torch.Tensor,  # float (b, c, t, h, w)
        …
    ) -> torch.Tensor:        # like `clips`
"""
import ast
import io
import re
import textwrap
import tokenize

import griffe


def comments_of(source):
    "{line: text of the comment in that line}"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#! ").strip() for t in tokens if t.type == tokenize.COMMENT}


def definition(thing):
    "Syntax tree of a function or class, and its comments; line numbers begin at its own source."
    source = textwrap.dedent("\n".join(thing.lines)) + "\n"
    return ast.parse(source).body[0], comments_of(source)


def as_markdown(text):
    "A docstring's brackets are brackets, `usage: [--flag]`, unless they are the text of a link."
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(p if p.startswith("`") else re.sub(r"\[(?=[^\]\n]*\](?!\())", r"\\[", p) for p in parts)


def set_sections(thing, sections):
    "Put sections behind the prose of a docstring, which is Markdown and is taken as it is."
    if not thing.docstring:
        thing.docstring = griffe.Docstring("", parent=thing)  # nothing was said; the comments say it
    prose = [griffe.DocstringSectionText(thing.docstring.value)] if thing.docstring.value else []
    thing.docstring.__dict__["parsed"] = prose + sections


def document_function(function):
    node, comments = definition(function)
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = dict(zip([a.arg for a in given][::-1], node.args.defaults[::-1]))
    defaults |= {a.arg: d for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults) if d}
    given += [*node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
    documented = []
    for argument in given:
        line = max(argument.end_lineno, getattr(defaults.get(argument.arg), "end_lineno", 0))
        if line > node.lineno and line in comments:
            parameter = function.parameters[argument.arg]
            documented.append(griffe.DocstringParameter(
                argument.arg, description=as_markdown(comments[line]), annotation=parameter.annotation,
                value=None if parameter.default in ("()", "{}") and parameter.kind.value.startswith("variadic")
                else parameter.default))
    sections = [griffe.DocstringSectionParameters(documented)] if documented else []
    if node.returns and node.returns.end_lineno in comments:
        said = as_markdown(comments[node.returns.end_lineno])
        result = griffe.DocstringReturn("", description=said, annotation=function.returns)
        sections.append(griffe.DocstringSectionReturns([result]))
    if sections:
        set_sections(function, sections)


def document_class(thing):
    node, comments = definition(thing)
    documented = []
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.end_lineno in comments:
            attribute = thing.members[field.target.id]
            said = as_markdown(comments[field.end_lineno])
            documented.append(griffe.DocstringAttribute(attribute.name, description=said, value=attribute.value,
                                                        annotation=attribute.annotation))
            attribute.public = False  # it stands in the table, once
    if documented:
        set_sections(thing, [griffe.DocstringSectionAttributes(documented)])


def document_constant(attribute, lines):
    "A constant of a module: the comment behind it, or the lines of comment above it."
    comments = comments_of("\n".join(lines[attribute.lineno - 1:attribute.endlineno]) + "\n")
    text, line = comments.get(attribute.endlineno - attribute.lineno + 1, ""), attribute.lineno - 2
    while not text and line >= 0 and lines[line].startswith("# ") and not lines[line].startswith("# %%"):
        above = line
        while lines[above].startswith("# ") and not lines[above].startswith("# %%"):
            above -= 1
        text = " ".join(part.lstrip("# ") for part in lines[above + 1:line + 1])
    if text:
        attribute.docstring = griffe.Docstring(as_markdown(text), parent=attribute)


UNSAID = ("__new__", "__reduce__", "__post_init__", "__repr__", "__str__", "__getattr__", "__setstate__", "extra_repr")


class Comments(griffe.Extension):
    def on_package(self, *, pkg, **kwargs):
        waiting = [pkg]
        while waiting:
            thing = waiting.pop()
            if thing.is_alias:
                continue
            if thing.docstring:
                thing.docstring.value = as_markdown(thing.docstring.value)
            if thing.is_function:
                document_function(thing)
                if thing.name in UNSAID and not thing.docstring:
                    thing.public = False
            elif thing.is_class:
                document_class(thing)
            elif thing.is_attribute and thing.parent.is_module and not thing.docstring and thing.is_public:
                document_constant(thing, thing.lines_collection[thing.filepath])
            waiting += [member for member in thing.members.values() if not getattr(member, "inherited", False)]
