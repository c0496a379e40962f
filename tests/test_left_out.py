"""Leaving each person out: against scikit-learn's own splitter, and what is read of the pairs."""
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from be_nb.data.scenebias import SceneBias
from be_nb.data.videos import write_folder
from be_nb.studies import left_out as L
from be_nb.train import pretrain


def blobs(n=90, d=6, classes=3, groups=4):
    rng = np.random.default_rng(0)
    y, group = rng.integers(classes, size=n), rng.integers(groups, size=n).astype(str)
    return torch.from_numpy(rng.normal(size=(n, d)) + 1.5 * np.eye(classes, d)[y]).float(), y, group


def test_the_probe_is_that_of_scikit_learns_splitter():
    x, y, groups = blobs()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    said = cross_val_predict(probe, x.numpy(), y, groups=groups, cv=LeaveOneGroupOut())
    found = L.leave_out(x, y, groups)
    assert sorted(found) == sorted(set(groups))
    for group, scores in found.items():
        out = groups == group
        assert scores["videos"] == out.sum()
        assert scores["probe"] == pytest.approx((said == y)[out].mean(), abs=1e-4)


def test_the_nearest_neighbour_is_of_another_group():
    x, y, groups = blobs()
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    near = unit @ unit.T
    near[groups[:, None] == groups[None]] = -2
    hits = y[near.argmax(1)] == y
    for group, scores in L.leave_out(x, y, groups).items():
        assert scores["r1"] == pytest.approx(hits[groups == group].mean(), abs=1e-4)


def test_a_group_that_is_all_is_refused():
    x, y, _ = blobs()
    with pytest.raises(ValueError, match="nothing is left to fit on"):
        L.leave_out(x, y, np.full(len(y), "one"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    "A short run and twenty-four videos whose names say the kind of their scene."
    place = tmp_path_factory.mktemp("left_out")
    run = pretrain("scenebias-moco", out=str(place), name="run", data_size=16, steps=1, batch_size=8, queue_size=16,
                   progress=False).checkpoint.parent
    for name, seed in (("train.txt", 0), ("val.txt", 1)):
        clips = SceneBias("probe", size=12, seed=seed)
        clips.names = [f"{name[0]}{i}-u{i % 3}" for i in range(12)]
        write_folder(place / "videos", {name: clips}, frame_size=(30, 30))
    return L.LeftOutConfig(runs=(str(run),), data=str(place / "videos"), record=str(place / "record.json"))


def test_both_lists_count_and_nothing_is_asked_twice(asked, monkeypatch):
    (row,) = L.ask_left_out(asked)
    assert {group: scores["videos"] for group, scores in row["groups"].items()} == {"0": 8, "1": 8, "2": 8}
    assert all(0 <= scores[key] <= 1 for scores in row["groups"].values() for key in ("probe", "r1", "still"))
    monkeypatch.setattr(L, "trained_method", lambda run: pytest.fail("asked again"))
    assert L.ask_left_out(asked) == [row] == json.loads(Path(asked.record).read_text(encoding="utf8"))["rows"]


def test_the_command_says_a_mistake_in_a_line(asked, monkeypatch):
    monkeypatch.setattr("sys.argv", ["left_out", "--runs", *asked.runs, "--data", asked.data, "--group", "nobody"])
    with pytest.raises(SystemExit, match="finds nothing in any path"):
        L.main()


def rows_of(steps=(5, 9), seeds=(0, 1), groups="abc"):
    rng = random.Random(0)
    return [dict(run=f"{arm}{n}{seed}", rung="r", arm=arm, seed=seed, steps=n, change=["queue=1", f"n={n}"],
                 groups={group: {key: rng.random() for key in ("probe", "r1", "still")} for group in groups})
            for n in steps for seed in seeds for arm in ("moco", "be", "distractor")]


def test_leads_are_differences_of_partners():
    rows = rows_of()
    found = L.leads(random.sample(rows, len(rows)), "r1")
    assert set(found) == {("r", 5, "queue=1", "n=5"), ("r", 9, "queue=1", "n=9")}
    known = {(r["arm"], r["steps"], r["seed"]): r["groups"] for r in rows}
    for (_, steps, *_), pairs in found.items():
        for seed, each in pairs.items():
            for group, points in each.items():
                be, moco = (known[arm, steps, seed][group]["r1"] for arm in ("be", "moco"))
                assert points == pytest.approx(100 * (be - moco))


def test_persons_are_what_is_counted():
    "Copies of a seed change nothing, groups that were chosen on do not count."
    pairs = {0: {"a": 1.0, "b": 3.0, "c": 900.0}, 1: {"a": 3.0, "b": -5.0, "c": 900.0}}
    told = L.over_groups(pairs, ("c",))
    assert told["seeds"] == {0: 2.0, 1: -1.0} and (told["ahead"], told["groups"]) == (1, 2)
    assert told["interval"][0] == pytest.approx(0.5)
    assert L.over_groups(pairs | {2: pairs[0], 3: pairs[1]}, ("c",))["interval"] == told["interval"]


def test_the_table_names_what_is_not_shared():
    lines = L.lead_table(rows_of(), ("c",)).splitlines()
    assert len(lines) == 4 and "queue=1" not in lines[2] and "| n=5 |" in lines[2] and "of 2 |" in lines[2]


def test_every_pair_is_a_dot_for_every_group():
    picture = L.draw_leads(rows_of(steps=(5,)), ("a",))
    for axes in picture.axes:
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert sum(len(line.get_xdata()) for line in dots) == 2 * 3
    assert [label.get_text() for label in picture.axes[1].get_xticklabels()] == ["b", "c", "a\nchosen"]


def test_videos_must_be_named(asked):
    with pytest.raises(ValueError, match="--data FOLDER"):
        L.ask_left_out(L.LeftOutConfig(runs=asked.runs))
