"""Sweeps: a change is compared with the usual cells of its own seeds, whatever else stands in the record."""
import random

import numpy as np
import pytest

from be_nb.studies.sweeps import draw_sweep, find_sweep, HALVES, sweep_table

CHANGES = [(), ("gamma=0.7",), ("temperature=0.2",), ("distractor=inter_mean", "negatives=3"),
           ("crop=[0.3,1.0]", "gamma=0")]


def cell(arm, seed, change, probe, **other):
    return dict(rung="r", arm=arm, seed=seed, steps=500, change=list(change), videos=0, rho=0.9, probe=probe) | other


@pytest.fixture
def rows():
    "Every change with three seeds; MoCo is left out where the change belongs to Background Erasing alone."
    rng = np.random.default_rng(0)
    own = {change for change in CHANGES[1:] if {part.split("=")[0] for part in change} <= HALVES}
    return [cell(arm, seed, change, float(rng.random())) for change in CHANGES for seed in range(3)
            for arm in ("moco", "be", "supervised") if arm == "be" or change not in own]


def test_each_change_is_paired_by_seed(rows):
    probe = {(row["arm"], row["seed"], tuple(row["change"])): 100 * row["probe"] for row in rows}
    found = {turned.change: turned for turned in find_sweep(rows, "r")}
    assert set(found) == set(CHANGES)
    for change, turned in found.items():
        for seed in range(3):
            base = probe.get(("moco", seed, change), probe["moco", seed, ()])
            assert turned.gain[seed] == pytest.approx(probe["be", seed, change] - base)


def test_order_and_strangers_do_not_matter(rows):
    usual = find_sweep(rows, "r")
    others = dict(rung="q"), dict(steps=77), dict(videos=5), dict(rho=0)
    strangers = [cell("be", 0, (), 0.99, **other) for other in others]
    mixed = rows + strangers + [{k: v for k, v in cell("be", 9, (), 0.9).items() if k != "probe"}]
    random.Random(1).shuffle(mixed)
    assert find_sweep(mixed, "r") == usual


def test_a_seed_without_its_pair_has_no_gain(rows):
    lost = "moco", 2, ["temperature=0.2"]
    alone = [row for row in rows if (row["arm"], row["seed"], row["change"]) != lost]
    found = {turned.change: turned.gain for turned in find_sweep(alone, "r")}
    assert set(found["temperature=0.2",]) == {0, 1} and set(found["gamma=0.7",]) == {0, 1, 2}
    assert "| temperature=0.2 | 0, 1, 2 |" in sweep_table(alone, "r") and "–" in sweep_table(alone, "r")

    waiting = [row for row in rows if not (row["arm"] == "be" and row["change"] == ["temperature=0.2"])]
    assert "| temperature=0.2 | 0, 1, 2 |" in sweep_table(waiting, "r")  # MoCo's cells are shown before BE has any


def test_table_and_picture_show_every_change_once(rows):
    lines = sweep_table(rows, "r").splitlines()
    assert len(lines) == 2 + len(CHANGES) and len({line.count("|") for line in lines}) == 1
    axes, = draw_sweep(rows, "r").axes
    assert axes.get_yticklabels()[0].get_text() == "as it is"
    dots = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert len(dots) == 2 * 3 * len(CHANGES)
    low, high = sorted(axes.get_ylim())
    assert all(low < line.get_ydata()[0] < high for line in dots)


def test_a_rung_without_usual_cells_is_told(rows):
    with pytest.raises(ValueError, match="no cells of r without a change, 9 steps.*be-nb ladder --rungs r"):
        find_sweep(rows, "r", steps=9)
    with pytest.raises(ValueError, match="no cells of nowhere"):
        sweep_table(rows, "nowhere")
