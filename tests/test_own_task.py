"""What a run loses when time stops: nothing where nothing moves; kept run by run; paired by all that is not BE."""
import json
import random
from pathlib import Path

import numpy as np
import pytest

from be_nb.data.scenebias import SceneBias
from be_nb.saving.checkpoint import CheckpointError
from be_nb.settings import PretrainConfig
from be_nb.studies import own_task
from be_nb.studies.own_task import ask_runs, draw_need, find_pairs, Need, needs_time, OwnTaskConfig
from be_nb.train import pretrain

SMALL = dict(data_size=40, steps=2, batch_size=8, backbone="tiny", progress=False)


class Photos:
    "Videos that show their first frame all the time."

    def __init__(self, films):
        self.films = films
        self.labels, self.names, self.classes = films.labels, films.names, films.classes
        self.num_frames = films.num_frames

    def __len__(self):
        return len(self.films)

    def read(self, index, frames):
        return self.films.read(index, np.zeros_like(frames))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "The folder of a short run of MoCo + BE."
    out = tmp_path_factory.mktemp("runs")
    small = SMALL | {"queue_size": 16}
    return Path(pretrain("scenebias-be", out=str(out), name="be", **small).checkpoint).parent


def test_where_nothing_moves_nothing_is_lost(run):
    for seed in range(3):
        asked = needs_time(run, Photos(SceneBias("pretrain", seed=seed, size=24)))
        assert asked.moving == asked.stopped and asked.time == 0


def test_a_file_and_its_folder_are_the_same_run(run):
    assert needs_time(run) == needs_time(next(run.glob("step-*.pt")))


def test_without_its_negative_a_run_is_asked_as_moco_is(run, tmp_path):
    "The same weights, asked without the wrong answer of the same video; three of them are left out as well as one."
    several = pretrain("scenebias-be", out=str(tmp_path), name="three", negatives=3, **SMALL, queue_size=16).checkpoint
    for path in (run, several):
        asked = needs_time(path, Photos(SceneBias("pretrain", size=24)), negative=False)
        assert asked.moving == asked.stopped
    plain = pretrain("scenebias-moco", out=str(tmp_path), name="plain", **SMALL, queue_size=16).checkpoint
    assert needs_time(plain) == needs_time(plain, negative=False)


def test_time_is_the_difference_in_points():
    assert Need(0.75, 0.5).time == 25 and Need(0.25, 0.5).time == -25


def test_a_pretext_task_is_asked_too(tmp_path):
    "Turns of a clip in which nothing moves are told as often moving as stopped."
    checkpoint = pretrain("scenebias-rotnet", out=str(tmp_path), name="rotnet", **SMALL).checkpoint
    asked = needs_time(checkpoint, Photos(SceneBias("pretrain", size=16)))
    assert 0 <= asked.moving <= 1 and asked.moving == asked.stopped


def test_who_has_no_right_answers_is_refused(tmp_path, run):
    checkpoint = pretrain(PretrainConfig(method="byol", out=str(tmp_path), name="byol", data_size=16, steps=1,
                                         batch_size=8), progress=False).checkpoint
    with pytest.raises(ValueError, match="no right answers"):
        needs_time(checkpoint)
    with pytest.raises(ValueError, match="fewer than a batch"):
        needs_time(run, SceneBias("pretrain", size=7))
    with pytest.raises(CheckpointError, match="no intact step"):
        needs_time(tmp_path)


def test_a_record_keeps_what_was_said_before_a_stop(run, tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "cell.json").write_text(json.dumps({"rung": "r", "arm": "be", "seed": 1, "other": 5}))
    asked = []

    def say(path, source, device, negative):
        if not negative:
            return Need(0.75, 0.5)
        if path.name == "c" and "c" not in asked:
            asked.append("c")
            raise KeyboardInterrupt
        asked.append(path.name)
        return Need(0.5, 0.25)

    monkeypatch.setattr(own_task, "needs_time", say)
    config = OwnTaskConfig(runs=tuple(str(tmp_path / name) for name in "abc"), record=str(tmp_path / "record.json"))
    with pytest.raises(KeyboardInterrupt):
        ask_runs(config)
    rows = ask_runs(config)
    assert asked == ["a", "b", "c", "c"] and json.loads((tmp_path / "record.json").read_text())["rows"] == rows
    told = {"own": 0.5, "own_still": 0.25, "others": 0.75, "others_still": 0.5}
    assert rows[0] == {"run": "a", **told, "rung": "r", "arm": "be", "seed": 1}


def test_the_command_says_a_mistake_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["own_task", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match="no intact step"):
        own_task.main()


def cell(arm, rung="r", seed=0, steps=5, change=(), own=0.5, still=0.5, probe=0.5):
    return dict(run=f"{arm}{rung}{seed}{steps}{change}", arm=arm, rung=rung, seed=seed, steps=steps,
                change=list(change), own=own, own_still=still, others=still, others_still=own, probe=probe)


def test_pairs_differ_in_background_erasing_alone():
    rng = random.Random(0)
    keys = [dict(rung=rung, seed=seed, steps=steps, change=change) for rung in "qr" for seed in (0, 1)
            for steps in (5, 9) for change in ((), ("size=3",))]
    rows = [cell(arm, **key, own=rng.random(), still=rng.random(), probe=rng.random())
            for key in keys for arm in ("moco", "be", "distractor")]
    lonely = [cell("be", "alone"), cell("moco", "r", seed=7), {"run": "mine", "own": 1.0, "own_still": 0.0}]
    shuffled = [*rows, *lonely]
    rng.shuffle(shuffled)
    found = find_pairs(shuffled)
    assert len(found) == len(keys) and found == find_pairs(rows)
    for pair in found:
        moco, be = (next(r for r in rows if r["arm"] == arm and (r["rung"], r["steps"], r["seed"], tuple(r["change"]))
                         == (pair.rung, pair.steps, pair.seed, pair.change)) for arm in ("moco", "be"))
        assert pair.gain == pytest.approx(100 * (be["probe"] - moco["probe"]))
        assert pair.be == pytest.approx(100 * (be["own"] - be["own_still"]))
        assert pair.others == pytest.approx(-pair.be)
        assert pair.moco == pytest.approx(100 * (moco["own"] - moco["own_still"]))


def test_every_pair_is_a_dot():
    rows = [cell(arm, rung, steps=steps, own=own) for rung in ("scenes", "puppets", "mine") for steps in (500, 900)
            for arm, own in (("moco", 0.6), ("be", 0.9))]
    dots = [line for line in draw_need(rows).axes[0].lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in dots) == 6
    assert all(x == pytest.approx(40) for line in dots for x in line.get_xdata())
