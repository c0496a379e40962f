"""The main job at a terminal: it can be interrupted without a traceback, and little is done twice after that."""
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
    assert err.strip() == "Stopped. The same command goes on from the newest checkpoint."


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
