"""Configs: what is accepted, what is refused and how, and that nothing is lost on the way into a file and back."""
import ast
import dataclasses
import inspect
import io
import json
import math
import pickle
import subprocess
import sys
import tokenize
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from be_nb import config as C
from be_nb import settings as S
from be_nb.methods import find_method, METHODS
from be_nb.recipes import list_recipes, recipe

PATHS = {"checkpoint": "runs/a", "data": "videos"}  # the fields of evaluation that have no default
MAKE = {"PretrainConfig": S.PretrainConfig, **{name: partial(S.PretrainConfig, method=name) for name in METHODS},
        "BenchConfig": S.BenchConfig, "EvaluateConfig": partial(S.EvaluateConfig, **PATHS),
        "RetrieveConfig": partial(S.RetrieveConfig, **PATHS),
        "PackConfig": partial(S.PackConfig, root="videos", out="pack"),
        "FinetuneConfig": S.FinetuneConfig, "BiasConfig": partial(S.BiasConfig, checkpoint=("runs/a",)),
        "ExportConfig": partial(S.ExportConfig, checkpoint="runs/a", out="a.safetensors")}
KIND = {name: type(make()) for name, make in MAKE.items()}
FIELDS = [(name, f.name) for name in MAKE for f in dataclasses.fields(KIND[name])
          if name not in METHODS or f.name not in {g.name for g in dataclasses.fields(S.PretrainConfig)}]
each_field = pytest.mark.parametrize("name, key", FIELDS, ids=[f"{name}.{key}" for name, key in FIELDS])


def values(kind):
    "Values that an annotation allows, drawn without any help of the code that checks them."
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        low, high, above = inside[1]
        high = 10**6 if high == math.inf else high
        if inside[0] is int:
            return st.integers(int(low), int(high))
        return st.floats(low, high, exclude_min=above)
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is tuple:
        any_length = inside[-1] is ...
        return st.lists(values(inside[0]), max_size=4).map(tuple) if any_length else st.tuples(*map(values, inside))
    if type(None) in inside:
        return st.none() | values(inside[0])
    return {bool: st.booleans(), str: st.text(max_size=8)}[kind]


@st.composite
def configs(draw, name="PretrainConfig"):
    hints = get_type_hints(KIND[name], include_extras=True)
    free = sorted(hints.keys() - {"method", "crops", "test_splits", "checkpoint"})  # these know other rules as well
    keys = draw(st.lists(st.sampled_from(free), unique=True, max_size=12))
    changes = {key: draw(values(hints[key])) for key in keys}
    for key in {"crop", "milestones"} & set(changes):
        changes[key] = tuple(sorted(changes[key]))
    if "bn_groups" in changes or "batch_size" in changes:
        changes["batch_size"] = max(changes.get("batch_size", 64), changes.get("bn_groups", 1))
    return MAKE[name](**changes)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.sampled_from([name for name in MAKE if name not in METHODS or set(find_method(name).uses) >= set(S.NEUTRAL)])
       .flatmap(configs))
def test_every_valid_config_survives_json_and_holds_plain_values_only(config):
    again = type(config)(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and hash(again) == hash(config) and pickle.loads(pickle.dumps(config)) == config
    for value in dataclasses.asdict(config).values():
        for item in value if type(value) is tuple else (value,):
            assert type(item) in (bool, int, float, str, type(None))


def wrong_values(kind):
    "Values that an annotation forbids."
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        low, high, above = inside[1]
        yield from wrong_values(inside[0])
        yield inside[0](low - 1)
        if above:
            yield low
        if high != math.inf:
            yield high + 1
    elif origin is Literal:
        yield from ("no such choice", None, 1)
    elif origin is tuple:
        yield from (None, "12", 1, {1, 2})
        yield from ([wrong, *[good_value(k) for k in inside[1:] if k is not ...]] for wrong in wrong_values(inside[0]))
        if inside[-1] is not ...:
            yield from ((), [good_value(inside[0])] * (len(inside) + 1))
    elif type(None) in inside:
        yield from (wrong for wrong in wrong_values(inside[0]) if wrong is not None)
    else:
        yield from {int: ("1", 1.5, 2.0, True, None, [1], float("nan")),
                    float: ("1", True, None, float("nan"), float("inf"), 1j, [1.0]),
                    bool: (1, 0, "True", None), str: (1, None, True, b"x")}[kind]


def good_value(kind):
    return get_args(kind)[0](1)


@each_field
def test_every_setting_refuses_what_is_wrong_and_names_itself(name, key):
    kind = get_type_hints(KIND[name], include_extras=True)[key]
    for wrong in wrong_values(kind):
        with pytest.raises(ValueError, match=key):
            MAKE[name](**{key: wrong})


@pytest.mark.parametrize("changes, words", [
    (dict(crop=(0.9, 0.5)), "lowest, highest"), (dict(milestones=(0.8, 0.6)), "must rise"),
    (dict(bn_groups=8, batch_size=4), "batch_size=4")])
def test_settings_that_contradict_each_other(changes, words):
    with pytest.raises(ValueError, match=words):
        S.PretrainConfig(**changes)


def test_numpy_paths_and_lists_become_plain_python():
    config = S.PretrainConfig(seed=np.int64(3), lr=np.float32(0.5), rho=1, out=Path("a") / "b", name=np.str_("x"),
                              crop=[np.float64(0.5), 1], short=np.str_("drop"))
    kinds = {key: type(getattr(config, key)) for key in ("seed", "lr", "rho", "out", "name", "short")}
    assert kinds == {"seed": int, "lr": float, "rho": float, "out": str, "name": str, "short": str}
    assert config.crop == (0.5, 1.0) and [type(x) for x in config.crop] == [float, float]


def test_a_config_cannot_be_changed_only_copied():
    config = S.PretrainConfig()
    for key in ("rho", "temprature"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, key, 0.5)
    changed = C.override(config, rho=0.5)
    assert (config.rho, changed.rho) == (0.9, 0.5)
    with pytest.raises(ValueError, match="rho must be"):
        C.override(config, rho=2)


def test_a_missing_letter_is_always_forgiven():
    names = [s.name for s in C.settings(S.PretrainConfig)]
    for name in names:
        for k in range(len(name)) if len(name) > 4 else ():
            wrong = name[:k] + name[k + 1:]
            assert wrong in names or name in C.nearest(wrong, names), (wrong, C.nearest(wrong, names))


@pytest.mark.parametrize("wrong, meant", [
    ("learning_rate", "lr"), ("epochs", "steps"), ("K", "queue_size"), ("tau", "temperature"),
    ("num_workers", "workers"), ("batchsize", "batch_size")])
def test_other_peoples_names_are_understood(wrong, meant):
    with pytest.raises(ValueError, match=rf"'{wrong}'.*Did you mean .*\b{meant}\b"):
        C.override(S.PretrainConfig(), **{wrong: 1})


def test_names_are_no_patterns():
    for odd in ("", " ", "(", "a|b", "_", "ß", 3, None):
        with pytest.raises(ValueError, match="Unknown recipe"):
            recipe(odd)
    assert C.nearest("", ["a"], {"a": "note"}) == []


# Settings of methods

def test_the_settings_of_a_method_are_there_for_it_and_for_no_other():
    for name in METHODS:
        method, config = find_method(name), S.PretrainConfig(method=name)
        own = {f.name for f in dataclasses.fields(method.Settings)}
        shared = {f.name for f in dataclasses.fields(S.PretrainConfig)}
        assert {f.name for f in dataclasses.fields(config)} == shared | own and isinstance(config, S.PretrainConfig)
        idle = S.NEUTRAL.keys() - set(method.uses)
        assert all(getattr(config, key) == S.NEUTRAL[key] for key in idle)
        for other in METHODS:
            for key in {f.name for f in dataclasses.fields(find_method(other).Settings)} - own:
                told = rf"method={name} has no setting {key}: it belongs to .*\b{other}\b"
                with pytest.raises(ValueError, match=told):
                    S.PretrainConfig(method=name, **{key: 1})
                with pytest.raises(ValueError, match=told):
                    C.override(config, **{key: 1})


@pytest.mark.parametrize("name", METHODS)
def test_a_shared_setting_without_effect_is_refused(name):
    others = {"distractor": "gaussian_noise", "gamma": 0.1, "negative": "other_video", "negative_offset": 9}
    for key in S.NEUTRAL.keys() - set(find_method(name).uses):
        with pytest.raises(ValueError, match=f"method={name} makes no use of {key}: leave it out"):
            S.PretrainConfig(method=name, **{key: others[key]})
        assert S.PretrainConfig(method=name, **{key: S.NEUTRAL[key]}) == S.PretrainConfig(method=name)


def test_another_method_brings_its_own_settings():
    moco = S.PretrainConfig(lr=0.1, queue_size=32, temperature=0.5, distractor="none")
    simclr = C.override(moco, method="simclr")
    assert simclr == S.PretrainConfig(method="simclr", lr=0.1, temperature=0.5, distractor="none")
    assert C.override(simclr, method="moco") == C.override(moco, queue_size=512)
    assert C.override(moco, method="moco") == moco and C.override(moco, method="order", gap=3).gap == 3
    assert dataclasses.replace(simclr, lr=0.2) == C.override(simclr, lr=0.2)
    with pytest.raises(ValueError, match="override changes it"):
        dataclasses.replace(moco, method="simclr")
    with pytest.raises(ValueError, match="makes no use of negative"):
        C.override(S.PretrainConfig(negative="other_video"), method="rotnet")
    with pytest.raises(ValueError, match="Unknown method 'mocco'. Did you mean moco"):
        C.override(moco, method="mocco")


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_config_is_read_by_what_is_known_today(name):
    config = S.PretrainConfig(method=name, lr=0.5)
    saved = json.loads(json.dumps(dataclasses.asdict(config)))
    assert S.saved_config(saved) == config and pickle.loads(pickle.dumps(config)) == config
    assert type(pickle.loads(pickle.dumps(config))) is type(config)
    del saved["clip_grad"]
    assert S.saved_config(saved | {"a_setting_of_old": 3}) == config
    assert S.saved_config({}) == S.PretrainConfig()


def comments_in(module):
    "Class → field → comment, as Python's own tokenizer finds them; a class in a class is `Outer.Inner`."
    source = inspect.getsource(module)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokenize.generate_tokens(io.StringIO(source).readline)
                if t.type == tokenize.COMMENT}
    found = {}

    def walk(node, outer):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                name = outer + child.name
                found[name] = {n.target.id: comments[n.lineno] for n in child.body
                               if isinstance(n, ast.AnnAssign) and n.lineno in comments}
                walk(child, name + ".")
    walk(ast.parse(source), "")
    return found


@pytest.mark.parametrize("name", MAKE)
def test_settings_tell_what_the_source_tells(name):
    about, config_class = {}, KIND[name]
    for base in reversed(config_class.__mro__):
        if base.__module__.startswith("be_nb."):
            about |= comments_in(sys.modules[base.__module__])[base.__qualname__]
    found = C.settings(config_class)
    assert {s.name: s.about for s in found} == about and all(about.values())
    assert {s.name: s.default for s in found} == {f.name: f.default for f in dataclasses.fields(config_class)}


def test_settings_without_source_have_no_comments():
    space = {"dataclasses": dataclasses, "Config": C.Config}
    exec("@dataclasses.dataclass(frozen=True)\nclass Made(Config):\n    x: int = 1  # lost\n", space)
    assert C.settings(space["Made"]) == [("made", "x", int, 1, "")]


def test_recipes_are_valid_and_differ_from_each_other():
    made = {name: recipe(name) for name in list_recipes()}
    assert len(set(made.values())) == len(made)
    moco, be = (dataclasses.asdict(made[f"scenebias-{name}"]) for name in ("moco", "be"))
    assert {k for k in be if be[k] != moco[k]} == {"distractor", "negative"}
    assert recipe("scenebias-moco", name="mine").name == "mine"
    assert recipe("scenebias-moco", gamma=0.1) == C.override(made["scenebias-moco"], gamma=0.1)
    with pytest.raises(ValueError, match="setting of PretrainConfig 'gama'.*gamma"):
        recipe("scenebias-be", gama=0.1)


def test_configs_need_no_torch():
    code = "import be_nb.settings, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
