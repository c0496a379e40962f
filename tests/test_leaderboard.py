"""The leaderboard: equal work, cells done once, judges that give a known answer, and a page that can be read."""
import json
import math
import random
import re
import shlex
import subprocess
import sys

import browser
import numpy as np
import pytest
import torch
from conftest import ROOT

from be_nb import cli
from be_nb.backbones import create_backbone
from be_nb.data.scenebias import FlowFrames, SceneBias
from be_nb.judging.bias.exam import make_exam
from be_nb.judging.bias.page import reaches_out
from be_nb.judging.bias.score import score_network
from be_nb.judging.features import extract_features
from be_nb.methods import find_method, METHODS
from be_nb.methods.base import build_method, Windows
from be_nb.settings import BiasConfig, LeaderboardConfig, PretrainConfig
from be_nb.studies import cells as C
from be_nb.studies import leaderboard as B
from be_nb.studies.miniature import keep_cell, StillFrames
from be_nb.training.run import run_folder
from be_nb.training.watch import effective_rank

SMALL = dict(steps=1, videos=24, seeds=(0,))


# what is run

@pytest.mark.parametrize("name", METHODS)
def test_arms_are_the_halves_of_be(name):
    row, method = C.find_row(name), find_method(name)
    runs = {arm: C.cell_settings(row, arm, 0, LeaderboardConfig()) for arm in C.BE_ARMS
            if C.arm_settings(row, arm) is not None}
    assert runs["plain"].distractor == runs["plain"].negative == "none"
    assert runs["both"].distractor == "intra_frame"
    assert ("negative" in runs) == ("negative" in method.uses) == (runs["both"].negative == "intra_video")
    if "negative" in runs:
        assert (runs["negative"].distractor, runs["negative"].negative) == ("none", "intra_video")
        assert (runs["distractor"].distractor, runs["distractor"].negative) == ("intra_frame", "none")
    assert len({run.name for run in runs.values()}) == len(runs)
    told = [{key: value for key, value in vars(run).items() if key not in ("name", "steps")} for run in runs.values()]
    assert all(a != b for i, a in enumerate(told) for b in told[:i]), "two arms are the same run"


def test_every_row_does_the_same_work():
    yardstick = 400 * 64 * 7
    for _, row, arm in B.wanted(LeaderboardConfig(seeds=(0,))):
        run = C.cell_settings(row, arm, 0, LeaderboardConfig())
        step = run.batch_size * C.work_of(run, row.method)
        assert run.steps == 0 if row.method == "untrained" else abs(run.steps * step - yardstick) <= step / 2
    wide = PretrainConfig(size=48, frames=16)
    assert C.work_of(wide) == 8 * C.work_of(PretrainConfig()) == 8 * 7


def test_rows_are_checked():
    for name, words in (("moko", "moco"), ("order-damped", "clips anyway"), ("untrained-damped", "learns nothing"),
                        ("untrained-vit-damped", "learns nothing"), ("untrained-vitt", "vit")):
        with pytest.raises(ValueError, match=words):
            B.leaderboard(LeaderboardConfig(rows=(name,)))
    with pytest.raises(ValueError, match="distractor"):
        B.wanted(LeaderboardConfig(arms=("distracter",)))
    bare, learned = (C.cell_settings(C.find_row(name), "plain", 0, LeaderboardConfig())
                     for name in ("untrained-vit", "videomae"))
    assert bare.backbone == learned.backbone and bare.steps == 0 < learned.steps
    damped = C.cell_settings(C.find_row("moco-damped"), "plain", 0, LeaderboardConfig())
    assert damped.damping == C.DAMPING == C.cell_settings(C.find_row("order"), "plain", 0, LeaderboardConfig()).damping


HOLD = """import sys, time
from be_nb.machine.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)"""


def test_a_claimed_cell_is_passed_over_and_a_kill_gives_it_back(tmp_path):
    file = tmp_path / "cell" / "cell.json"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".claims" / "cell")], stdout=subprocess.PIPE,
                             cwd=ROOT)
    try:
        assert other.stdout is not None and other.stdout.readline().strip() == b"held"
        assert keep_cell(file, lambda: pytest.fail("two processes at one cell")) is None
    finally:
        other.kill()
        other.wait()
    def stop():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        keep_cell(file, stop)
    assert not file.exists()
    row = keep_cell(file, lambda: {"a": 1})
    assert row["a"] == 1 and row.keys() == {"a", "commit", "date"} and keep_cell(file, stop) == row


def test_a_learning_rate_is_chosen_for_each_row(tmp_path, monkeypatch):
    config, row = LeaderboardConfig(**SMALL, lrs=(0.1, 0.2, 0.3), out=str(tmp_path)), C.find_row("simclr")
    known, made = {0.1: 0.5, 0.2: 0.7, 0.3: None}, []
    monkeypatch.setattr(C, "biased_knn", lambda settings, row, asked: {"knn": known[settings.lr]})
    monkeypatch.setattr(C, "make_cell", lambda row, arm, seed, lrs, settings, asked: made.append(settings) or {})
    for arm, seed in (("plain", 0), ("both", 1)):
        C.run_cell(row, arm, seed, config, None)
    assert [settings.lr for settings in made] == [0.2, 0.2] and made[1].seed == 1
    assert (run_folder(made[0]) / "knn.json").is_file() and not (run_folder(made[1]) / "knn.json").exists()
    monkeypatch.setattr(C, "keep_cell", lambda file, make: None)  # another process is choosing
    assert C.run_cell(row, "plain", 0, config, None) is None
    assert C.best_lr({}) == 0 and C.best_lr({0.1: 0.4, 0.2: 0.4}) == 0.1


# what is asked

def test_effective_rank_in_closed_form():
    q = torch.linalg.qr(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double())[0]
    for s in ([1.0] * 8, [1.0, 1.0, 0, 0, 0, 0, 0, 0], [4.0, 2.0, 1.0, 1.0, 0, 0, 0, 0], [3.0] + [0.0] * 7):
        p = np.array(s) / sum(s)
        wanted = np.exp(-sum(x * np.log(x) for x in p if x))
        assert effective_rank(7 * q @ torch.diag(torch.tensor(s).double()) @ turn).item() == pytest.approx(wanted)
    assert effective_rank(torch.zeros(5, 3)) == 0


def test_both_forms_of_a_video_are_asked_about_together():
    torch.manual_seed(0)
    same = torch.randn(40, 30)  # knows every video by heart, and nothing about its form
    assert abs(C.pair_probe(same, same) - 0.5) < 1e-9
    assert C.pair_probe(same, same + torch.eye(30)[3] * 20) == 1
    for frames in (4, 5, 8):
        once, fast, back = (C.centred_windows(40, frames, speed) for speed in (1, 3, -3))
        assert once.shape == (2, frames) and 0 <= fast.min() and fast.max() < 40
        assert np.abs(once.mean(1) - fast.mean(1)).max() <= 0.5 and (np.diff(once) == 1).all()
        assert np.abs(fast[:, ::-1] - back).max() <= 1 and (np.diff(back) == -3).all()


def test_conflict_is_that_of_the_bias_exam():
    torch.manual_seed(0)
    net, settings = create_backbone("tiny").eval(), dict(frames=8, stride=1, size=24)
    source, config = SceneBias("test", size=18), BiasConfig(checkpoint=("-",), lams=(), resamples=10)
    train = extract_features(net, SceneBias("probe", size=60), 2, **settings, progress=False)
    part = score_network(net, train, make_exam(config, source, settings), settings, config, progress=False)[0]
    found = C.conflict(net, train, source)
    assert round(found["actor_share"], 4) == part["conflict"]["actor_share"][0]
    assert round(found["preference"], 4) == part["preference"][0]


class Spy(torch.nn.Module):
    "A method that shows what it is asked."

    def __init__(self):
        super().__init__()
        self.weight, self.asked = torch.nn.Parameter(torch.zeros(())), []

    def windows(self, config):
        return Windows(2, frames=6, stride=2)

    def forward(self, batch):
        self.asked.append((batch.clips, batch.index.tolist(), batch.progress, self.training))
        return torch.tensor(float(len(self.asked))), {"accuracy": torch.tensor(0.5)}


def test_own_task_is_asked_moving_and_stopped():
    spy, config = Spy(), PretrainConfig(batch_size=8)
    assert C.held_out(spy, SceneBias("unbiased", size=20), config) == {"loss": 1.5, "accuracy": 0.5}  # two batches
    C.held_out(spy, SceneBias("unbiased", size=20), config, stopped=True)
    moving, stopped = spy.asked[0][0], spy.asked[2][0]
    assert moving.shape == stopped.shape == (8, 2, 6, 3, 30, 30) and spy.asked[0][1] == list(range(8))
    assert (stopped == stopped[:, :, :1]).all() and not (moving == moving[:, :, :1]).all()
    assert torch.equal(stopped[:, :, 0], moving[:, :, 3]) and not any(training for *_, training in spy.asked)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_asked_for_its_own_task(name):
    "Whatever it sees of a video, flow or labels; with time stopped flow is none."
    config = PretrainConfig(method=name, **{**find_method(name).mini, "batch_size": 4})
    method = build_method(config)
    for stopped in (False, True):
        told = C.held_out(method, SceneBias("unbiased", size=4, damping=config.damping), config, stopped)
        assert math.isfinite(told["loss"])


def test_stopped_flow_is_none():
    source = SceneBias("unbiased", size=2)
    moving, still = (FlowFrames(each).read(0, np.arange(8))[:, 3:] for each in (source, StillFrames(source, 8)))
    assert (still == 128).all() and not (moving == 128).all()


def test_a_real_cell(tmp_path, capsys):
    config = LeaderboardConfig(rows=("order",), arms=("plain", "negative"), out=str(tmp_path), **SMALL)
    record = B.leaderboard(config)
    [cell] = record["cells"]  # clip order has no negative
    assert set(B.COLUMNS) - set(cell["scores"]) == {"motion_gain", "bias_gap", "work", "minutes"}
    assert all(0 <= cell["scores"][key] <= 1 for key in cell["scores"] if key.endswith(("probe", "_share", "own")))
    assert cell["work"] == cell["steps"] * 24 * 9 and cell["settings"]["damping"] == 3
    assert "gamma" not in cell["settings"]  # it is the default
    before = (tmp_path / cell["run"] / "cell.json").stat().st_mtime_ns
    assert B.leaderboard(config, progress=False) == record == json.loads((tmp_path / "leaderboard.json").read_text())
    assert (tmp_path / cell["run"] / "cell.json").stat().st_mtime_ns == before
    with_others = [*SMALL.items(), ("steps", 2), ("rows", ("order",)), ("page_only", True), ("out", str(tmp_path))]
    assert B.leaderboard(LeaderboardConfig(**dict(with_others)))["cells"] == []  # other work is another cell
    [command] = record["commands"]  # gives the record again
    words = [*shlex.split(command)[2:], "--out", str(tmp_path)]
    assert cli.parse("leaderboard", LeaderboardConfig, words, "") == config
    cli.main(["leaderboard", "--rows", "order", "--seeds", "0", "--steps", "1", "--videos", "24", "--page-only",
              "--out", str(tmp_path)])
    assert "page and record" in capsys.readouterr().out and "order" in (tmp_path / "leaderboard.html").read_text()


def test_a_record_is_a_place_to_go_on_from(tmp_path, monkeypatch):
    asked = dict(rows=("untrained", "simclr"), arms=("plain",), steps=1, videos=24)
    first = B.leaderboard(LeaderboardConfig(**asked, seeds=(0,), out=str(tmp_path / "a")), progress=False)
    assert all(cell["commit"] and cell["date"] for cell in first["cells"])
    record, ran = str(tmp_path / "a/leaderboard.json"), []

    def run_cell(row, arm, seed, config, asked):
        ran.append((row.name, seed))

    monkeypatch.setattr(B, "run_cell", run_cell)
    again = B.leaderboard(LeaderboardConfig(**asked, seeds=(0,), record=record, out=str(tmp_path / "b")), False)
    assert again == first and ran == []  # on another machine, in an empty folder
    B.leaderboard(LeaderboardConfig(**asked, seeds=(0, 1), record=record, out=str(tmp_path / "c")), False)
    assert ran == [("untrained", 1), ("simclr", 1)]
    for other in (dict(steps=2), dict(videos=32), dict(lrs=(1e-3, 2e-3))):  # is another cell
        ran.clear()
        config = LeaderboardConfig(**asked | other, seeds=(0,), record=record, out=str(tmp_path / "d"))
        B.leaderboard(config, progress=False)
        assert ("simclr", 0) in ran
    [cell] = [cell for cell in first["cells"] if cell["row"] == "simclr"]
    row, config = C.find_row("simclr"), LeaderboardConfig(**asked, seeds=(0,))
    assert C.is_asked_for(cell, row, config)
    for changed in ({"gamma": 0.5}, {"seed": 1}):  # what is no default in one of the two makes them differ
        assert not C.is_asked_for(cell | {"settings": cell["settings"] | changed}, row, config)
    old = [{key: value for key, value in cell.items() if key not in ("commit", "date")}]  # before cells named them
    assert "unknown" in B.board_page(first | {"cells": old})
    (tmp_path / "no.json").write_text('{"cells": 3}')
    for wrong in ("no.json", "nowhere.json"):
        with pytest.raises(ValueError, match="is no record with cells"):
            B.leaderboard(LeaderboardConfig(**asked, seeds=(0,), record=str(tmp_path / wrong)), progress=False)


# what is made of it

def made(row, arm="plain", seed=0, **scores):
    "A cell by hand."
    scores = dict(motion_probe=0.4, still_probe=0.2, probe_test=0.9, probe_swapped=0.3, actor_share=0.5, preference=0.4,
                  scene_probe=0.9, speed_probe=0.6, arrow_probe=0.5, spread=0.3, effective_rank=20.0,
                  largest_class=0.17, own=0.6, own_still=0.5, own_loss=1.0, own_loss_still=1.5,
                  own_reference=4.0) | scores
    return {"row": row, "arm": arm, "seed": seed, "run": f"{row}-{arm}", "title": row.upper(), "damped": False,
            "steps": 9, "batch_size": 2, "lr": 0.1, "lrs": {}, "work": 1234, "scores": scores, "failed": "",
            "train_minutes": 1.5, "judge_minutes": 0.5, "machine": "a <machine>", "settings": {"steps": 9},
            "videos": 2048, "commit": "0123abc", "date": "2026-01-31"}


def record_of(cells):
    return {"asked": {"steps": 400, "lrs": []}, "wanted": 9, "expected": B.EXPECTATION, "machine": "a <machine>",
            "cells": cells}


CELLS = [made("untrained", own=None, own_still=None, own_loss=None, own_loss_still=None),
         *(made("moco", arm, seed, motion_probe=0.4 + gain) for seed, gain in enumerate((0.2, 0.1, 0.3))
           for arm, gain in (("plain", 0.0), ("both", gain))),
         made("byol", own=None, own_still=None), made("byol", "both", motion_probe=0.3, spread=0.001),
         made("pace", own=0.26, own_chance=0.25)]


def test_gates_say_why():
    assert not any(map(B.marks, CELLS[:-2]))
    assert "collapsed: spread 0.001" in B.marks(CELLS[-2])[0]
    assert "own task at chance: 26.0 %, a guess has 25.0 %" in B.marks(CELLS[-1])[0]
    assert not B.marks(made("pace", own=0.30, own_chance=0.25))
    assert "loss 4.10" in B.marks(made("vicreg", own=None, own_loss=4.1))[0]
    assert "largest class" in B.marks(made("x", probe_test=0.17))[0]
    assert "rank 1.2" in B.marks(made("x", effective_rank=1.2))[0]
    assert B.marks(made("x") | {"scores": {}, "failed": "diverged: at once"}) == ["diverged: at once"]


def test_pairs_and_what_came_of_the_expectation():
    found = B.differences(CELLS)
    rounded = {row: [round(d) for d in seeds.values()] for row, seeds in found.items()}
    assert rounded == {"moco": [20, 10, 30], "byol": [-10]}
    assert B.signs(found["moco"]) == "3 of 3 up" and B.by_seed(found["byol"]) == "−10.0"
    assert B.verdict("moco", found["moco"]) == "helps: as expected"
    assert B.verdict("moco-damped", {0: 20, 1: 10, 2: -1}) == "helps: falsified"
    assert B.verdict("pace", {0: 6, 1: 9, 2: 4}) == "changes little: falsified"
    assert B.verdict("rspnet", {0: -6, 1: 4, 2: 4}) == "may hurt: as expected"
    assert "1 of 3 pairs run" in B.verdict("byol", found["byol"]) and B.verdict("tcn", {0: 9}) == "no forecast"
    values = B.values(CELLS[0])
    assert values["motion_gain"] == pytest.approx(0.2) and values["bias_gap"] == pytest.approx(0.6)
    assert values["own"] is None and B.values(CELLS[7])["own"] == 0.75  # of BYOL's loss three quarters are gone
    table = B.headline_table(record_of(CELLS)).splitlines()
    assert table[3] == "| MOCO | 40.0 | 60.0 | +20.0, +10.0, +30.0 | 3 of 3 up | +0.0 | helps: as expected |"
    assert table[4].startswith("| BYOL ⚠ |") and len(table) == 6


def test_the_page_stands_alone_and_every_number_leads_to_its_record():
    document = B.board_page(record_of([made("moco") | {"title": "<b>"}, *CELLS]))
    assert reaches_out(document) == ["<script"] and "<b>" not in document.split("<table")[2].split("</th>")[1]
    assert document.index("to be falsified") < document.index("All numbers")
    links, places = set(re.findall(r'href="#([^"]+)"', document)), set(re.findall(r'id="([^"]+)"', document))
    assert links == places and "moco-both" in links
    heads = re.findall(r"<button[^>]*>([^<]*)", document)
    assert heads[1:6] == ["motion probe", "still probe", "motion − still", "swapped", "bias gap"] and len(heads) == 17
    assert json.loads(B.record_text(record_of(CELLS))) == record_of(CELLS)
    assert B.board_page(record_of([]))  # nothing is there yet


def test_the_page_is_sorted_in_a_browser(tmp_path):
    pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if browser.chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one by CHROMIUM=/path/to/chromium")
    path = tmp_path / "leaderboard.html"
    path.write_text(B.board_page(record_of(CELLS)), encoding="utf8")
    with browser.open_page() as page:
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for width in (400, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            names = lambda: page.eval_on_selector_all("table.board tbody th", "x => x.map(e => e.dataset.value)")
            column = lambda k: page.eval_on_selector_all("table.board tbody tr",
                                                         f"x => x.map(e => e.cells[{k}].dataset.value)")
            before = names()
            page.click("table.board thead button >> nth=1")
            assert [float(v) for v in column(1)] == sorted(map(float, column(1)), reverse=True)
            page.click("table.board thead button >> nth=1")
            assert names()[0] == "BYOL both"
            page.click("table.board thead button >> nth=11")
            assert column(11)[-1] == "" and names()[-1] == "UNTRAINED plain"  # what is not known comes last
            page.click("table.board thead button >> nth=0")
            assert names() == sorted(before)
            page.click("table.board tbody tr >> nth=0 >> a >> nth=2")
            assert page.url.endswith("#byol-both") and page.locator("details#byol-both table").is_visible()
        assert complaints == []


def test_extremes_are_both_ends_and_means_are_sorted():
    names = [f"row{k}" for k in range(11)]
    cells = [{"row": row, "arm": arm, "seed": seed, "work": 1, "train_minutes": 1, "scores": {
        "motion_probe": 0.3 + (arm == "both") * (11 - k + seed) / 100, "still_probe": 0.2, "probe_test": 0.8,
        "probe_swapped": 0.2}} for k, row in enumerate(names) for arm in ("plain", "both") for seed in (0, 1)]
    random.Random(0).shuffle(cells)
    found = B.means(B.differences(cells))
    assert list(found) == names and all(found[f"row{k}"] == pytest.approx(11.5 - k) for k in range(11))
    assert B.extremes(cells, 2) == ("row0", "row1", "row9", "row10") and B.extremes(cells, 6) == tuple(names)
    lonely = [*cells, dict(next(c for c in cells if c["arm"] == "both"), row="alone")]  # without its plain half
    assert B.extremes(lonely, 2) == B.extremes(cells, 2)
