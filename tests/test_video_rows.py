"""Both ends of the leaderboard on real video: which rows they are, that no cell is done twice, what is read of them."""
import json
import random
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from be_nb.backbones import create_backbone
from be_nb.data.scenebias import SceneBias
from be_nb.data.videos import VideoFolder, write_folder
from be_nb.judging.features import extract_features
from be_nb.judging.judges import linear_probe
from be_nb.machine.files import locked
from be_nb.recipes import passes
from be_nb.settings import LeaderboardConfig
from be_nb.studies import video_rows as V
from be_nb.studies.cells import cell_settings, find_row
from be_nb.training.divergence import Diverged
from be_nb.training.run import run_folder


def cell(row, arm, seed, **scores):
    "A cell of `video_rows`, judged on one folder."
    return {"row": row, "title": row.upper(), "arm": arm, "seed": seed, "learned": "here", "judged": ["here"],
            "work": 9, "failed": "", "scores": {"here": {"probe": 0.5, "r1": 0.5, "still": 0.5} | scores}}


def board(**differences):
    "Cells of a leaderboard where BE does so much to the rows, in points."
    rest = {"still_probe": 0.2, "probe_test": 0.8, "probe_swapped": 0.2}
    return [{"row": row, "arm": arm, "seed": 0, "work": 1, "train_minutes": 1,
             "scores": rest | {"motion_probe": 0.5 + (arm == "both") * points / 100}}
            for row, points in differences.items() for arm in ("plain", "both")]


@pytest.mark.parametrize("name", ["moco", "simclr", "triplet", "opn", "puzzles", "vicreg", "fame", "speednet"])
def test_a_cell_is_that_of_the_leaderboard_on_other_videos(name):
    config = V.VideoRowsConfig(footage="footage")
    plain, both = (V.video_run(name, arm, 3, config) for arm in ("plain", "both"))
    for arm, run in (("plain", plain), ("both", both)):
        same = cell_settings(find_row(name), arm, 3, LeaderboardConfig())
        changed = {key for key in vars(run) if vars(run)[key] != vars(same)[key]}
        assert changed <= {"data", "split", "frame_size", "cache", "stride", "damping", "out", "name"}
        assert (run.seed, run.steps, run.lr, run.method) == (3, same.steps, same.lr, name)
        assert run.data == "footage/ucf101-6" and run.damping == 0
    work = [run.steps * run.batch_size * passes(run) for run in (plain, both)]
    assert abs(work[0] / work[1] - 1) < 0.01
    assert run_folder(plain) != run_folder(both)


def load(settings):
    "A network of the run's own, without training."
    torch.manual_seed(zlib.crc32(settings.name.encode()))
    return create_backbone("tiny").eval()


@pytest.fixture
def study(tmp_path, monkeypatch):
    "A study of two rows on two small folders, without training."
    for number, name in enumerate(("here", "there")):
        lists = {f"{split}.txt": SceneBias(kind, seed=number, size=12) for split, kind in
                 (("train", "probe"), ("val", "test"))}
        write_folder(tmp_path / name, lists)
    seen = []

    def pretrain(settings, **more):
        assert more["resume"]
        seen.append(settings)
        if len(seen) == stop_at[0]:
            raise stopped[0]
        return types.SimpleNamespace(checkpoint=settings)

    stop_at, stopped = [0], [KeyboardInterrupt]
    monkeypatch.setattr(V, "pretrain", pretrain)
    monkeypatch.setattr(V, "load", load)
    config = V.VideoRowsConfig(footage=str(tmp_path), rows=("simclr", "vicreg"), learned="here",
                               judged=("here", "there"), seeds=(0, 1), steps=2, out=str(tmp_path / "out"))
    return types.SimpleNamespace(config=config, seen=seen, stop_at=stop_at, stopped=stopped, folder=tmp_path)


def changed(config, **settings):
    return V.VideoRowsConfig(**vars(config) | settings)


def test_only_what_is_missing_is_run(study, tmp_path):
    study.stop_at[0] = 4
    with pytest.raises(KeyboardInterrupt):
        V.video_rows(study.config)
    assert [row is None for row in V.find_cells(study.config).values()].count(True) == 5
    study.stop_at[0] = 0
    study.seen.clear()
    rows = V.video_rows(study.config)
    assert len(study.seen) == 5 and len(rows) == 8 and [s.seed for s in study.seen] == [0, 1, 1, 1, 1]
    assert V.video_rows(study.config) == rows and len(study.seen) == 5
    moved = changed(study.config, out=str(tmp_path / "new"), record=str(tmp_path / "out/rows.json"))
    assert V.video_rows(moved) == rows and len(study.seen) == 5  # what it wrote is a record, too


def test_another_question_is_another_cell(study):
    V.video_rows(study.config)
    for other in ({"steps": 9}, {"learned": "there"}, {"judged": ("here",)}):
        assert all(row is None for row in V.find_cells(changed(study.config, **other)).values()), other


def test_scores_are_those_of_the_judges(study):
    rows = V.video_rows(changed(study.config, seeds=(1,)))
    lists = [VideoFolder(study.folder / "there", split, frame_size=(30, 40)) for split in
             ("train.txt", "val.txt")]
    for row in rows:
        backbone = load(V.video_run(row["row"], row["arm"], 1, changed(study.config, seeds=(1,))))
        x = [extract_features(backbone, each, clips=2, frames=8, stride=3, size=24, batch_size=256, progress=False)
             for each in lists]
        probe = linear_probe(x[0].features, x[0].labels, x[1].features, x[1].labels).accuracy
        assert row["scores"]["there"]["probe"] == pytest.approx(probe, abs=1e-4)
    assert len({str(row["scores"]) for row in rows}) > 1


def test_a_run_that_diverges_does_not_stop_the_study(study):
    study.stop_at[0], study.stopped[0] = 1, Diverged("loss is nan at step 1")
    rows = V.video_rows(changed(study.config, seeds=(0,)))
    assert [bool(row["failed"]) for row in rows] == [True, False, False, False]
    assert "simclr" not in V.video_gains(rows, "here") and "vicreg" in V.video_gains(rows, "here")
    assert V.video_table(rows, board(simclr=3), "here").splitlines()[2].startswith("| SimCLR | +3.0 | – | ")


def test_a_cell_of_another_process_is_passed_over_and_told(study, capsys):
    config = changed(study.config, seeds=(0,))
    name = run_folder(V.video_run("vicreg", "both", 0, config)).name
    with locked(Path(config.out, ".claims", name)):
        assert len(V.video_rows(config)) == 3
    assert "1 cells were left to other processes" in capsys.readouterr().out
    assert len(V.video_rows(config)) == 4


def test_an_arm_that_a_row_lacks_is_left_out(study):
    config = changed(study.config, arms=("plain", "negative", "both"), seeds=(0,))
    assert list(V.find_cells(config)) == [("simclr", "plain", 0), ("simclr", "negative", 0), ("simclr", "both", 0),
                                          ("vicreg", "plain", 0), ("vicreg", "both", 0)]


@pytest.mark.parametrize("settings, error, words", [
    ({"learned": "nowhere"}, FileNotFoundError, r"nowhere with train\.txt and val\.txt"),
    ({"footage": ""}, ValueError, "here needs footage"),
    ({"rows": ()}, ValueError, "Name rows, or a board"),
    ({"rows": ("simcrl",)}, ValueError, "simclr"),
    ({"rows": ("moco", "supervised")}, ValueError, "supervised needs labels"),
    ({"rows": ("moco", "moco-damped")}, ValueError, "moco-damped needs labels or clips that are drawn"),
    ({"rows": ("moco", "flow_regression")}, ValueError, "flow_regression cannot learn from here"),
    ({"rows": ("moco", "opn")}, ValueError, "opn cannot learn from here: .*118 frames"),
])
def test_mistakes_are_told_before_any_run(study, settings, error, words):
    with pytest.raises(error, match=words):
        V.video_rows(changed(study.config, **settings))
    assert not study.seen


def test_a_record_of_another_study_is_refused(study, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"rows": [{"rung": "scenes", "probe": 1.0}]}))
    with pytest.raises(ValueError, match="no record of this study: a row has no 'row'"):
        V.video_rows(changed(study.config, record=str(tmp_path / "other.json")))


def test_the_command_says_a_mistake_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["video_rows", "--footage", str(tmp_path), "--rows", "moco"])
    with pytest.raises(SystemExit, match="needs"):
        V.main()


def test_gains_are_differences_of_one_seed():
    rng = random.Random(1)
    rows = [cell(row, arm, seed, probe=rng.random(), r1=rng.random()) for row in "abc" for arm in ("plain", "both")
            for seed in range(3)] + [cell("alone", "both", 0)]
    shuffled = rng.sample(rows, len(rows))
    for key in ("probe", "r1"):
        found = V.video_gains(shuffled, "here", key)
        naive = {row: {seed: 100 * (next(r["scores"]["here"][key] for r in rows
                                         if (r["row"], r["arm"], r["seed"]) == (row, "both", seed))
                                    - next(r["scores"]["here"][key] for r in rows
                                           if (r["row"], r["arm"], r["seed"]) == (row, "plain", seed)))
                       for seed in range(3)} for row in "abc"}
        assert found.keys() == naive.keys()
        assert all(found[row] == pytest.approx(naive[row]) for row in naive)


def test_carried_is_the_correlation_of_the_ranks():
    rng = np.random.default_rng(0)
    known, here = rng.permutation(9).astype(float), rng.permutation(9)
    names = [f"row{k}" for k in range(9)]
    rows = [cell(name, arm, 0, probe=0.2 + (arm == "both") * value / 100) for name, value in zip(names, here)
            for arm in ("plain", "both")]
    by_ranks = 1 - 6 * ((known - here) ** 2).sum() / (9 * (81 - 1))  # of permutations, that is: of ranks
    assert V.carried(rows, board(**dict(zip(names, known))), "here") == pytest.approx(by_ranks)


def test_two_rows_have_no_rank_correlation():
    rows = [cell(row, arm, 0) for row in "ab" for arm in ("plain", "both")]
    with pytest.raises(ValueError, match="three rows .* here are 2"):
        V.carried(rows, board(a=1.0, b=2.0, c=3.0), "here")


def test_every_row_is_a_line_and_a_cross_with_its_bars():
    rows = [cell(row, arm, seed, probe=0.5 + 0.02 * seed * (arm == "both"), still=0.48)
            for row in "ab" for arm in ("plain", "both") for seed in (0, 1)]
    table = V.video_table(rows, board(a=7.0), "here").splitlines()
    assert len(table) == 4 and table[3].startswith("| B | – | 50.0 |")
    assert table[2] == "| A | +7.0 | 50.0 | 51.0 | +0.0, +2.0 | +1.0 | +0.0, +0.0 | +2.5 |"
    axes = V.draw_carried(rows, board(a=7.0, b=-3.0)).axes
    crosses = [line for line in axes[0].lines if line.get_marker() == "x"]
    assert sorted(float(line.get_xdata()[0]) for line in crosses) == pytest.approx([-3, 7])
    assert all(float(line.get_ydata()[0]) == pytest.approx(1) for line in crosses)
    upright = [sorted(map(float, line.get_ydata())) for line in axes[0].lines
               if line.get_linewidth() == 2 and line.get_xdata()[0] == line.get_xdata()[1]
               and line.get_ydata()[0] != line.get_ydata()[1]]
    assert upright == [pytest.approx([0, 2])] * 2


def test_without_rows_there_is_nothing_to_show():
    for show in (lambda: V.draw_carried([], board(a=1.0)), lambda: V.video_table([], board(a=1.0), "here")):
        with pytest.raises(ValueError, match="No cell is there yet"):
            show()
    with pytest.raises(ValueError, match="Nothing was judged on 'there'; choose one of here"):
        V.video_table([cell("a", "plain", 0)], board(a=1.0), "there")
