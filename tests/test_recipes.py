"""Recipes: rows of the paper's tables that differ where the rows differ, with commands that the command line takes."""
import math
import re
import shlex

import pytest
from conftest import ROOT

import be_nb.cli as cli
from be_nb.backbones import create_backbone
from be_nb.backbones.measure import describe
from be_nb.data.sets import DATA, how_to_get, set_of
from be_nb.distractor import VARIANTS
from be_nb.methods import find_method, METHODS
from be_nb.recipes import (ASSUMED, commands, cost, describe_recipes, find, GMAC, gpu_hours, list_recipes, passes,
                           recipe, RECIPES)
from be_nb.settings import EvaluateConfig, FinetuneConfig, PretrainConfig, RetrieveConfig
from be_nb.train import finetune, pretrain

FULL = [name for name, r in RECIPES.items() if set_of(r.config.data)]


def differences(one, two):
    one, two = recipe(one), recipe(two)
    return {key for key in vars(one) if getattr(one, key) != getattr(two, key)}


@pytest.mark.parametrize("net", ["c3d", "i3d", "r3d34"])
@pytest.mark.parametrize("data", ["ucf101", "k400"])
def test_moco_and_be_differ_in_what_background_erasing_is(net, data):
    assert differences(f"{net}-{data}-moco", f"{net}-{data}-be") == {"distractor", "negative"}


def test_the_ablation_of_distractors_changes_the_distractor_alone():
    rows = {"i3d-ucf101-be": "intra_frame", **{f"i3d-ucf101-{v}": v for v in VARIANTS if v != "intra_frame"}}
    assert {recipe(name).distractor for name in rows} == set(VARIANTS)
    for name, variant in rows.items():
        assert recipe(name).distractor == variant
        assert differences(name, "i3d-ucf101-be") <= {"distractor"}


@pytest.mark.parametrize("task", ["rotnet", "puzzles", "order"])
def test_a_pretext_task_with_and_without_erasing(task):
    name = f"c3d-{'k400' if task == 'rotnet' else 'ucf101'}-{task}"
    assert differences(name, f"{name}-be") == {"distractor"}
    plain, erased = recipe(name), recipe(f"{name}-be")
    assert plain.distractor == "none" and erased.distractor == "intra_frame" and erased.beta > 0
    assert plain.backbone == "c3d" and plain.method == task


def test_the_windows_of_the_pretext_tasks():
    "Table 1: 48 frames for the puzzles, 64 for clip order, 16 for RotNet."
    for name, window in (("c3d-ucf101-puzzles", 48), ("c3d-ucf101-order", 64), ("c3d-k400-rotnet", 16)):
        config = recipe(name)
        assert (find_method(config.method).windows(config).frames or config.frames) == window


def test_the_baseline_compares_as_many_pairs():
    for name in ("c3d-ucf101", "i3d-k400"):
        moco, be = recipe(f"{name}-moco"), recipe(f"{name}-be")
        assert moco.negative == "other_video" and passes(moco) == passes(be) == 7


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_small_recipe_without_and_with_erasing(name):
    "A method is a line in the table; its recipes come from what it says of itself."
    method, endings = find_method(name), ("", "-be")
    plain, erased = (recipe("scenebias-be" if (name, end) == ("moco", "-be") else f"scenebias-{name}{end}")
                     for end in endings)
    assert {plain.method, erased.method} == {name} and plain.data == "scenebias" and plain.backbone == method.network
    assert all(getattr(plain, key) == value for key, value in method.mini.items())
    halves = {"distractor", "negative"} & set(method.uses)
    assert {key for key in vars(plain) if getattr(plain, key) != getattr(erased, key)} == halves
    assert all(getattr(plain, key) == "none" for key in halves) and erased.distractor == "intra_frame"


def test_videomae_as_its_authors_trained_it_on_ucf101():
    config = recipe("vit_base-ucf101-videomae")
    videos = DATA["ucf101"].videos
    assert config.steps == math.ceil(3200 * videos / 192) and config.warmup_steps == math.ceil(40 * videos / 192)
    assert (config.batch_size, config.masked, config.decoder_depth, config.lr, config.weight_decay) == (
        192, .75, 4, 3e-4, .05)
    assert (config.frames, config.stride, config.size, config.optimizer) == (16, 4, 224, "adamw")


def test_published_settings():
    for net, data, epochs, queue in (("i3d", "ucf101", 200, 3569), ("i3d", "k400", 50, 65536),
                                     ("c3d", "ucf101", 200, 3569)):
        config = recipe(f"{net}-{data}-be")
        videos = DATA[set_of(config.data)].videos
        assert config.steps == math.ceil(epochs * videos / config.batch_size) and config.queue_size == queue
        assert (config.frames, config.stride, config.lr, config.momentum, config.temperature, config.gamma) == (
            16, 4, 3e-3, 0.999, 0.07, 0.3)
        assert config.size == (112 if net == "c3d" else 224)
        assert (config.optimizer, config.sgd_momentum, config.weight_decay) == ("sgd", 0.9, 1e-4)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_has_a_small_form_and_is_listed(name):
    assert (RECIPES[name].mini in RECIPES) == (name in FULL)
    small = recipe(f"{name}-mini")
    assert isinstance(small, type(recipe(name))) and small.data in ("scenebias", "videos")
    assert name in describe_recipes() and name in list_recipes()
    if isinstance(small, PretrainConfig):
        full = recipe(name)
        assert small.backbone == find_method(small.method).network and small.method in METHODS
        assert (small.method, small.distractor) == (full.method, full.distractor)
        baseline = (full.method, full.distractor, full.negative) == ("moco", "none", "other_video")
        assert small.negative == ("none" if baseline else full.negative)  # the small form is plain MoCo


def parsed(line, named):
    "What the command line makes of a line, without running it."
    command, *words = shlex.split(line)[1:]
    kind = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "evaluate": EvaluateConfig,
            "retrieve": RetrieveConfig}
    if named:
        return cli.parse_recipe(command, kind[command], words, "")
    return cli.parse(command, kind[command], words, "")


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_commands_of_a_recipe_are_commands(name):
    for line in commands(name):
        if line.startswith("be-nb"):
            parsed(line, named=line.split()[1] in ("pretrain", "finetune"))
        else:
            script, = re.findall(r"data_scripts/\w+\.py", line)
            assert (ROOT / script).exists(), f"{name} wants {script}"


@pytest.mark.parametrize("net", list(GMAC))
def test_costs_are_measured(net):
    assert describe(create_backbone(net)).macs / 1e9 == pytest.approx(GMAC[net], rel=0.01)


def test_hours_by_hand():
    # I3D on Kinetics, MoCo + BE: 7 forward passes a video, two operations a multiplication
    macs = describe(create_backbone("i3d"), 16, 224).macs
    assert gpu_hours(recipe("i3d-k400-be")) == pytest.approx(2 * macs * 7 * 240_000 * 50 / ASSUMED / 3600, rel=0.02)
    macs = describe(create_backbone("i3d"), 64, 224).macs
    assert gpu_hours(recipe("finetune-hmdb51"), 3570) == pytest.approx(2 * macs * 3 * 3570 * 50 / ASSUMED / 3600,
                                                                       rel=0.02)
    assert all(cost(find(name)).endswith("GPU h") for name in FULL)
    assert gpu_hours(recipe("c3d-ucf101-order-be")) == 2 * gpu_hours(recipe("c3d-ucf101-order"))


@pytest.mark.parametrize("name", [name for name in FULL if isinstance(recipe(name), PretrainConfig)])
def test_hours_are_those_of_the_passes_that_a_method_names(name, monkeypatch):
    config, before = recipe(name), gpu_hours(recipe(name))
    counted = find_method(config.method).passes(config)
    monkeypatch.setattr(find_method(config.method), "passes", classmethod(lambda cls, config: 10 * counted))
    assert passes(config) == 10 * counted and gpu_hours(config) == pytest.approx(10 * before)


def test_missing_data_is_told_with_what_to_do():
    for data, known in DATA.items():
        text = how_to_get(f"somewhere/{data}/")
        assert known.source in text and f"data_scripts/{data}.py" in text and known.title in text
    assert "train.txt" in how_to_get("holiday")


@pytest.mark.parametrize("train, name", [(pretrain, "i3d-k400-be"), (finetune, "finetune-hmdb51")])
def test_a_run_without_its_data_ends_before_any_work(train, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such folder.*python data_scripts/\w+\.py --archives"):
        train(name, progress=False, backbone="tiny")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_and_kinds():
    with pytest.raises(ValueError, match="Did you mean"):
        find("i3d-k400-bee")
    with pytest.raises(ValueError, match="be-nb pretrain"):
        recipe("i3d-k400-be", FinetuneConfig)
    with pytest.raises(ValueError, match="Unknown recipe"):
        recipe("no-such-thing-mini")
