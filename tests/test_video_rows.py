"""Both ends of the leaderboard on real video: which rows they are, that no cell is done twice, what is read of them."""
import json
import random
import types

import numpy as np
import pytest
import torch

from be_nb.backbones import create_backbone
from be_nb.data.scenebias import SceneBias
from be_nb.data.videos import write_folder
from be_nb.recipes import passes
from be_nb.settings import LeaderboardConfig
from be_nb.studies import video_rows as V
from be_nb.studies.cells import cell_settings, find_row
from be_nb.training.run import run_folder


def cell(row, arm, seed, **scores):
    "A cell of `video_rows`, judged on one folder."
    return {"row": row, "title": row.upper(), "arm": arm, "seed": seed, "learned": "here", "work": 9,
            "scores": {"here": {"probe": 0.5, "r1": 0.5, "still": 0.5} | scores}}


def board(**differences):
    "Cells of a leaderboard where BE does so much to the rows, in points."
    rest = {"still_probe": 0.2, "probe_test": 0.8, "probe_swapped": 0.2}
    return [{"row": row, "arm": arm, "seed": 0, "work": 1, "train_minutes": 1,
             "scores": rest | {"motion_probe": 0.5 + (arm == "both") * points / 100}}
            for row, points in differences.items() for arm in ("plain", "both")]


def test_extremes_are_both_ends():
    names = [f"row{k}" for k in range(11)]
    cells = board(**dict(zip(names, range(11, 0, -1))))
    random.Random(0).shuffle(cells)
    assert V.extremes(cells, 2) == ("row0", "row1", "row9", "row10")
    assert V.extremes(cells, 6) == tuple(names)
    lonely = [*cells, board(alone=50)[1]]  # without its plain half
    assert V.extremes(lonely, 2) == V.extremes(cells, 2)


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
            raise KeyboardInterrupt
        return types.SimpleNamespace(checkpoint=settings)

    def load(settings):
        torch.manual_seed(settings.seed)
        return create_backbone("tiny").eval()

    stop_at = [0]
    monkeypatch.setattr(V, "pretrain", pretrain)
    monkeypatch.setattr(V, "load", load)
    config = V.VideoRowsConfig(footage=str(tmp_path), rows=("simclr", "opn"), learned="here", judged=("here", "there"),
                               seeds=(0, 1), steps=2, out=str(tmp_path / "out"))
    return types.SimpleNamespace(config=config, seen=seen, stop_at=stop_at, folder=tmp_path)


def test_only_what_is_missing_is_run(study, tmp_path):
    study.stop_at[0] = 4
    with pytest.raises(KeyboardInterrupt):
        V.video_rows(study.config)
    assert [row is None for row in V.find_cells(study.config).values()].count(True) == 5
    study.stop_at[0] = 0
    study.seen.clear()
    rows = V.video_rows(study.config)
    assert len(study.seen) == 5 and len(rows) == 8 and [s.seed for s in study.seen] == [0, 1, 1, 1, 1]
    assert json.loads((tmp_path / "out/rows.json").read_text()) == rows
    assert V.video_rows(study.config) == rows and len(study.seen) == 5
    assert {tuple(row["scores"]) for row in rows} == {("here", "there")}
    (tmp_path / "kept.json").write_text(json.dumps({"rows": rows}))
    elsewhere = {"out": str(tmp_path / "new"), "record": str(tmp_path / "kept.json")}
    moved = V.VideoRowsConfig(**vars(study.config) | elsewhere)
    strip = lambda found: [{k: v for k, v in row.items() if k not in ("commit", "date")} for row in found]
    assert strip(V.video_rows(moved)) == strip(rows) and len(study.seen) == 5
    more = V.VideoRowsConfig(**vars(moved) | {"steps": 3})
    assert all(row is None for row in V.find_cells(more).values())  # other work is another cell


def test_an_arm_that_a_row_lacks_is_left_out(study):
    config = V.VideoRowsConfig(**vars(study.config) | {"arms": ("plain", "negative", "both"), "seeds": (0,)})
    assert list(V.find_cells(config)) == [("simclr", "plain", 0), ("simclr", "negative", 0), ("simclr", "both", 0),
                                          ("opn", "plain", 0), ("opn", "both", 0)]


def test_mistakes_are_told_before_any_run(study, tmp_path):
    missing = V.VideoRowsConfig(**vars(study.config) | {"learned": "nowhere"})
    with pytest.raises(FileNotFoundError, match=r"nowhere with train\.txt and val\.txt"):
        V.video_rows(missing)
    with pytest.raises(ValueError, match="here needs footage"):
        V.video_rows(V.VideoRowsConfig(**vars(study.config) | {"footage": ""}))
    with pytest.raises(ValueError, match="Name rows, or a board"):
        V.video_rows(V.VideoRowsConfig(**vars(study.config) | {"rows": ()}))
    with pytest.raises(ValueError, match="simclr"):
        V.video_rows(V.VideoRowsConfig(**vars(study.config) | {"rows": ("simcrl",)}))
    assert not study.seen


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


def test_carried_is_one_for_the_same_order_and_minus_one_for_the_other():
    known = dict(a=30.0, b=2.0, c=-1.0, d=-8.0)
    rising = [cell(row, arm, 0, probe=0.5 + (arm == "both") * value / 1000) for row, value in known.items()
              for arm in ("plain", "both")]
    falling = [cell(row, arm, 0, probe=0.5 - (arm == "both") * value / 1000) for row, value in known.items()
               for arm in ("plain", "both")]
    assert V.carried(rising, board(**known), "here") == pytest.approx(1)
    assert V.carried(falling, board(**known), "here") == pytest.approx(-1)


def test_carried_is_the_correlation_of_the_ranks():
    rng = np.random.default_rng(0)
    known, here = rng.permutation(9).astype(float), rng.permutation(9)
    names = [f"row{k}" for k in range(9)]
    rows = [cell(name, arm, 0, probe=0.2 + (arm == "both") * value / 100) for name, value in zip(names, here)
            for arm in ("plain", "both")]
    by_ranks = 1 - 6 * ((known - here) ** 2).sum() / (9 * (81 - 1))  # of permutations, that is: of ranks
    assert V.carried(rows, board(**dict(zip(names, known))), "here") == pytest.approx(by_ranks)


def test_every_row_is_a_line_and_a_cross():
    rows = [cell(row, arm, seed, probe=0.5 + 0.01 * seed * (arm == "both")) for row in "ab" for arm in ("plain", "both")
            for seed in (0, 1)]
    table = V.video_table(rows, board(a=7.0)).splitlines()
    assert len(table) == 4
    assert table[2] == "| A | +7.0 | 50.0 | +0.0, +1.0 | +0.0, +0.0 |" and table[3].startswith("| B | – | 50.0 |")
    axes = V.draw_carried(rows, board(a=7.0, b=-3.0)).axes
    crosses = [line for line in axes[0].lines if line.get_marker() == "x"]
    assert sorted(float(line.get_xdata()[0]) for line in crosses) == pytest.approx([-3, 7])
    assert all(float(line.get_ydata()[0]) == pytest.approx(0.5) for line in crosses)
