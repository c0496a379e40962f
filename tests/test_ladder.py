"""The ladder: which cells there are, that none is done twice or taken for another, and what is read from them."""
import json
import types

import numpy as np
import pytest
import torch

from be_nb import cli
from be_nb.backbones import create_backbone
from be_nb.settings import LadderConfig
from be_nb.studies import ladder as L
from be_nb.training.run import run_folder


@pytest.fixture
def config(tmp_path):
    return LadderConfig(rungs=("scenebias",), arms=("random", "moco", "be"), seeds=(0, 1), videos=24, steps=2,
                        out=str(tmp_path))


@pytest.fixture
def runs(monkeypatch):
    "What is pretrained, without training anything."
    seen = []

    def pretrain(settings, **more):
        assert more["resume"]
        seen.append(settings)
        if len(seen) == runs.stop_at:
            raise KeyboardInterrupt
        return types.SimpleNamespace(checkpoint=settings)

    def load(settings):
        torch.manual_seed(settings.seed)
        return create_backbone("tiny").eval()

    runs = types.SimpleNamespace(seen=seen, stop_at=None)
    monkeypatch.setattr(L, "pretrain", pretrain)
    monkeypatch.setattr(L, "load", load)
    monkeypatch.setattr(L, "judge_rung", lambda backbone, lists, **settings: {"probe": 0.5, "r1": 0.25, "still": 0.2})
    return runs


def test_only_what_is_missing_is_run(config, runs):
    runs.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        L.ladder(config, progress=False)
    assert [row is None for row in L.find_rows(config).values()].count(True) == 4
    runs.seen.clear()
    runs.stop_at = None
    rows = L.ladder(config, progress=False)
    assert len(runs.seen) == 4 and len(rows) == 6 and list(L.find_rows(config).values()) == rows
    assert json.loads((run_folder(runs.seen[0]).parent / "rows.json").read_text()) == rows
    assert L.ladder(config, progress=False) == rows and len(runs.seen) == 4
    order = [(settings.seed, settings.distractor, settings.steps) for settings in runs.seen]
    assert order[0] == (0, "intra_frame", 2) and [seed for seed, *_ in order] == [0, 1, 1, 1]


def test_a_record_is_a_place_to_go_on_from(config, runs, tmp_path):
    rows = L.ladder(config, progress=False)
    (tmp_path / "ladder.json").write_text(json.dumps({"commit": "0123abc", "rows": rows}))
    runs.seen.clear()
    elsewhere = vars(config) | dict(out=str(tmp_path / "other"), record=str(tmp_path / "ladder.json"))
    assert L.ladder(LadderConfig(**elsewhere), progress=False) == rows and not runs.seen
    for other in (dict(steps=3), dict(change=("gamma=0.5",)), dict(rho=0.5), dict(videos=12)):  # is another cell
        L.ladder(LadderConfig(**elsewhere | other), progress=False)
        assert len(runs.seen) == len(rows)
        runs.seen.clear()


def test_a_cell_is_known_by_all_that_it_depends_on(config):
    def folder(**changes):
        arm, seed = changes.pop("arm", "be"), changes.pop("seed", 0)
        made = LadderConfig(**vars(config) | changes)
        return run_folder(L.cell_config("scenebias", arm, seed, made)).name

    names = {folder(), folder(steps=3), folder(videos=30), folder(rho=0.5), folder(change=("gamma=0.5",)),
             folder(change=("stride=2",)), folder(arm="moco"), folder(seed=1)}
    assert len(names) == 8
    assert folder(device="cpu") == folder() == folder(arms=("be",), seeds=(7,))
    elsewhere = [L.cell_config("both", "be", 0, LadderConfig(footage=place)) for place in ("here", "there")]
    assert elsewhere[0].name == elsewhere[1].name and elsewhere[0].data.endswith("clips-both-rho0.9")


@pytest.mark.parametrize("rung", ["scenebias", "both", "mine"])
def test_arms_differ_by_the_method_alone(rung, config):
    made = {arm: L.cell_config(rung, arm, 0, LadderConfig(footage="x", steps=7)) for arm in L.WAYS}
    for arm, settings in made.items():
        assert settings.batch_size == 64 and settings.frames == 8 and settings.size == 24
        assert settings.steps == (0 if arm == "random" else 7) and settings.stride == L.rung_of(rung).stride
    assert [(made[arm].distractor, made[arm].negative) for arm in ("moco", "distractor", "negative", "be")] == [
        ("none", "none"), ("intra_frame", "none"), ("none", "intra_video"), ("intra_frame", "intra_video")]
    assert made["triplet"].method == "triplet"


def test_a_change_picks_another_half_and_adds_none():
    change = ("distractor=merged_background", "negative=other_video", "gamma=0.5")
    made = {arm: L.cell_config("scenebias", arm, 0, LadderConfig(footage="x", change=change)) for arm in L.WAYS}
    assert {settings.gamma for settings in made.values()} == {0.5}
    for arm, settings in made.items():
        for half, usual, other in (("distractor", "intra_frame", "merged_background"),
                                   ("negative", "intra_video", "other_video")):
            on = L.WAYS[arm].get(half, usual) != "none"
            assert getattr(settings, half) == (other if on else "none"), (arm, half)


@pytest.mark.parametrize("name, fit, asked", [("scenebias", "unbiased", "swapped"),
                                              ("both", "unbiased.txt", "swapped.txt"),
                                              ("mine", "train.txt", "val.txt")])
def test_the_ceiling_is_fitted_and_tested_on_the_fair_pair(name, fit, asked, monkeypatch):
    seen = {}

    def finetune(config, **more):
        seen.update(vars(config) | more)
        return types.SimpleNamespace(tests={asked: types.SimpleNamespace(top1=0.75)})

    monkeypatch.setattr(L, "finetune", finetune)
    lists = L.Lists({key: [0] * (5 + i) for i, key in enumerate(L.JUDGED if name in L.RUNGS else L.JUDGED[:2])}, {})
    settings = L.cell_config(name, "supervised", 3, LadderConfig(footage="x", steps=7, change=("size=32",)))
    assert L.supervise(settings, lists) == 0.75
    assert (seen["split"], seen["test_splits"]) == (fit, (asked,)) and seen["validation"] == 0 and seen["resume"]
    assert (seen["steps"], seen["batch_size"], seen["size"], seen["seed"]) == (7, 64, 32, 3)
    assert seen["name"] == settings.name
    assert seen["data_size"] == len(lists.sources[lists.fair[0]]) and seen["stride"] == L.rung_of(name).stride


def test_stopped_by_hand_is_told_in_a_line(monkeypatch, capsys, tmp_path):
    def interrupted(config):
        raise KeyboardInterrupt
    monkeypatch.setattr(L, "ladder", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["ladder", "--rungs", "scenebias", "--out", str(tmp_path)])
    assert stop.value.code == 130 and "The same command goes on" in capsys.readouterr().err


def rows_of(*cells):
    return [dict(rung=rung, arm=arm, seed=seed, steps=9, change=[], chance=0.1, probe=probe, r1=probe / 2, still=0.1)
            for rung, arm, seed, probe in cells]


def test_gains_are_paired():
    rng = np.random.default_rng(0)
    arms = ("moco", "be", "negative")
    values = {(rung, arm, seed): rng.random() for rung in "ab" for arm in arms for seed in range(3)}
    rows = rows_of(*((*key, value) for key, value in values.items()))
    found = L.gains(rows)
    assert found == {rung: {seed: pytest.approx(100 * (values[rung, "be", seed] - values[rung, "moco", seed]))
                            for seed in range(3)} for rung in "ab"}
    assert L.gains(rows, "r1", "negative")["a"][2] == pytest.approx(
        50 * (values["a", "negative", 2] - values["a", "moco", 2]))
    alone = [row for row in rows if (row["arm"], row["seed"]) != ("moco", 1)]
    assert set(L.gains(alone)["a"]) == {0, 2}
    for other in (dict(change=["gamma=1"]), dict(rho=0.5), dict(videos=24), dict(steps=77)):
        mixed = [row | (other if row["arm"] == "be" else {}) for row in rows]
        assert L.gains(mixed) == {}
        usual = [row | dict(steps=LadderConfig.steps, rung={"a": "scenes", "b": "both"}[row["rung"]]) for row in rows]
        assert L.standard(usual) == usual and L.standard([row | other for row in usual]) == []
        assert all(L.standard([row | dict(rung=rung) for row in usual]) == [] for rung in ("scenes-small", "mine"))


def test_the_table_and_the_picture_show_what_is_there():
    rows = rows_of(("scenebias", "moco", 0, 0.4), ("scenebias", "be", 0, 0.6), ("scenebias", "be", 1, 0.7),
                   ("mine", "supervised", 0, 0.9))
    table = L.rung_table(rows)
    assert "| synthetic | MoCo + BE | 2 | 65.0 ± 7.1 | 32.5 ± 3.5 |" in table
    assert "| mine | supervised | 1 | 90.0 |" in table
    picture = L.draw_ladder(rows)
    above, below = picture.axes
    heights = [y for line in above.lines for y in np.atleast_1d(line.get_ydata()).tolist()]
    assert any(abs(y - 20) < 1e-6 for y in heights)
    assert [label.get_text() for label in below.get_xticklabels()] == ["synthetic", "mine"]
    assert L.draw_ladder([]).axes


def test_changed_pixels_are_counted():
    class Half:
        "The left half turns from black to white and back."

        def __len__(self):
            return 3

        def num_frames(self, i):
            return 9

        def read(self, i, frames):
            clip = torch.zeros(len(frames), 3, 10, 20, dtype=torch.uint8)
            for image, t in zip(clip, frames):
                image[:, :, :10] = 255 * (t % 2)
            return clip

    assert L.changed_share(Half()) == pytest.approx(0.5) and L.changed_share(Half(), stride=2) == 0


@pytest.mark.parametrize("change", ["gamma", "=3", "gamma="])
def test_a_change_has_a_name_and_a_value(change):
    with pytest.raises(ValueError, match="NAME=VALUE"):
        L.parse_changes((change,))


@pytest.mark.parametrize("line, told", [
    ("--footage FOOTAGE --arms mocco", "Did you mean moco?"), ("", "rung scenes needs footage"),
    ("--footage nowhere", "nowhere: no such folder"), ("--footage FOOTAGE --rungs both", "jhmdb-21 with train.txt"),
    ("--footage FOOTAGE --rungs mine", "mine with train.txt"),
    ("--footage FOOTAGE --rungs scenebias --change gama=3", "gamma"),
    ("--footage FOOTAGE --rungs scenebias --change gamma=3", "gamma must be")])
def test_mistakes_cost_a_line(line, told, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ladder", *line.replace("FOOTAGE", str(tmp_path)).split(), "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and told in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_record_holds_what_the_page_says():
    from conftest import ROOT

    record = json.loads((ROOT / "nbs/results/ladder.json").read_text(encoding="utf8"))
    keys = [(r["rung"], r["arm"], r["seed"], r["steps"], tuple(r["change"])) for r in record["rows"]]
    assert len(set(keys)) == len(keys)
    said = ("commands", "commit", "date", "machine", "minutes", "notes", "changed")
    assert all(record[key] for key in said) or not keys
    for row in record["rows"]:
        assert row["arm"] in L.WAYS and 0 <= row["probe"] <= 1 and "settings" not in row and "data" not in row
    assert all({"cells", "expected", "came"} <= note.keys() for note in record["notes"])


def test_a_change_that_a_rung_would_not_notice_is_refused(config, runs):
    asked = LadderConfig(**vars(config) | dict(change=("data_size=100",)))
    assert len(L.find_rows(asked)) == 6
    with pytest.raises(ValueError, match="data_size counts clips of SceneBias, rung jhmdb-21"):
        L.find_rows(LadderConfig(**vars(asked) | dict(rungs=("jhmdb-21",), footage=".")))
