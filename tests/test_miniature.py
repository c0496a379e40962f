"""The main job at a terminal: it can be interrupted without a traceback, and little is done twice after that."""
import json
import subprocess
import sys

import pytest
from conftest import ROOT

from be_nb.recipes import changes, find, RECIPES
from be_nb.settings import FinetuneConfig, PretrainConfig
from be_nb.studies import miniature


def test_an_interrupted_study_ends_in_a_line(monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt
    monkeypatch.setattr(miniature, "study", interrupted)
    monkeypatch.setattr(sys, "argv", ["miniature"])
    with pytest.raises(SystemExit) as stop:
        miniature.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 130 and "3 networks" in out
    assert err.strip() == "Stopped. The same command goes on with what is not done."


@pytest.mark.parametrize("arm", miniature.ARMS)
def test_an_arm_can_be_resumed_and_keeps_what_the_caller_wants(arm, monkeypatch, tmp_path):
    class Seen(Exception):
        pass

    def pretrain(**settings):
        raise Seen(settings)
    monkeypatch.setattr(miniature, "pretrain", pretrain)
    for wanted, every in (({}, 50), ({"checkpoint_every": 7}, 7)):
        with pytest.raises(Seen) as caught:
            miniature.run_arm(arm, 1, 2, 0.5, str(tmp_path), steps=20, **wanted)
        seen = caught.value.args[0]
        assert seen["resume"] and seen["checkpoint_every"] == every and seen["name"] == f"{arm}-rho0.5-seed1-data2"
        assert seen["steps"] == miniature.ARMS[arm].get("steps", 20)


def test_other_methods_are_those_of_their_recipes():
    for arm in miniature.OTHERS:
        config = PretrainConfig(**miniature.ARMS[arm])
        assert config.method == arm.removesuffix("-be")
        assert (config.distractor == "none") != (arm == "triplet" or arm.endswith("-be"))
        assert config == find("scenebias-triplet-be" if arm == "triplet" else f"scenebias-{arm}").config


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_changes_makes_it_again(name):
    config = find(name).config
    kind = FinetuneConfig if isinstance(config, FinetuneConfig) else PretrainConfig
    assert kind(**changes(name)) == config


def test_the_command_is_the_module():
    done = subprocess.run([sys.executable, "-m", "be_nb.studies.miniature", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "python -m be_nb.studies.miniature" in done.stdout and "--arms" in done.stdout
    assert "-m be_nb.studies.miniature\n" in (ROOT / "Makefile").read_text()


def test_every_method_recipe_or_class_is_an_arm(tmp_path, monkeypatch):
    "New arms need no list: their settings are those of their recipes, and a class of one's own is found by its place."
    for name in ("simclr", "pace", "rotnet"):
        for ending in ("", "-be"):
            title, settings = miniature.find_arm(name + ending)
            assert PretrainConfig(**settings) == find(f"scenebias-{name}{ending}").config, (title, ending)
    assert miniature.find_arm("scenebias-triplet")[1] == changes("scenebias-triplet")
    (tmp_path / "own_arm.py").write_text("from be_nb.methods.simclr import SimCLR\n\n\nclass Mine(SimCLR):\n"
                                         "    title = 'mine'\n")
    monkeypatch.syspath_prepend(tmp_path)
    title, settings = miniature.find_arm("own_arm:Mine-be")
    assert title == "mine + BE" and settings["method"] == "own_arm:Mine" and "distractor" not in settings
    assert miniature.find_arm("own_arm:Mine")[1]["distractor"] == "none"
    for wrong in ("simclrr", "c3d-ucf101-be", "scenebias-finetune"):
        with pytest.raises(ValueError, match="Did you mean|no recipe that pretrains"):
            miniature.StudyConfig(arms=(wrong,))


def test_the_table_drops_no_arm():
    rows = [{"arm": arm, "rho": 0.9, **dict.fromkeys(miniature.COLUMNS, 0.5)} for arm in ("simclr-be", "be", "pace")]
    lines = miniature.table(rows).splitlines()[2:]
    assert [line.split(" |")[0] for line in lines] == ["| MoCo + BE", "| SimCLR + BE", "| pace prediction"]


def test_runs_of_other_settings_are_neither_taken_nor_drawn(tmp_path, monkeypatch):
    "`--steps 1`, then two steps: each is trained, each is found again, and pictures show those asked for."
    small = dict(data_size=16, batch_size=4, queue_size=8, size=16, frames=4, warmup_steps=0, log_every=1, knn_every=0,
                 amp="fp32", checks=False, progress=False)
    monkeypatch.setattr(miniature, "judge", lambda *_, **__: dict.fromkeys(miniature.COLUMNS, 0.5))
    run = lambda steps: miniature.run_arm("be", 0, 0, 0.9, str(tmp_path), {}, steps=steps, **small)
    short, long = run(1), run(2)
    assert (short["settings"]["steps"], long["settings"]["steps"]) == (1, 2) and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(miniature, "pretrain", None)  # nothing is trained again
    assert run(1) == short and run(2) == long
    folders = miniature.runs_of([long], tmp_path)
    assert [len((folder / "history.jsonl").read_text().splitlines()) for folder in folders] == [2]
    (folders[0] / "scores.json").write_text("{")  # a torn record belongs to nobody
    assert miniature.runs_of([long], tmp_path) == []


def test_the_rows_of_a_study_are_a_record(tmp_path):
    rows = [{"arm": "be", "seed": 1, "commit": "c", "date": "d"}, {"arm": "moco", "seed": 2}]
    miniature.keep_rows(rows, tmp_path / "new")
    about = {"commit": "", "date": ""}
    assert miniature.read_record(str(tmp_path / "new/rows.json"), "rows") == [about | row for row in rows]
    (tmp_path / "kept.json").write_text(json.dumps({"cells": rows, "date": "today"}))
    last = miniature.read_record(str(tmp_path / "kept.json"), "cells")[1]
    assert last == {"arm": "moco", "seed": 2, "commit": "", "date": "today"}
    for text in ('{"rows": 3}', "3", "[3]", "no"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json is no record with rows"):
            miniature.read_record(str(tmp_path / "bad.json"), "rows")
