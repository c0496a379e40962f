"""The one call on a GPU machine, rehearsed: every part, the record whole after each of them, and its tables."""
import json
import subprocess
import sys
from itertools import product

import pytest
from conftest import ROOT
from test_bench import script
from test_train import write_video

from be_nb.studies.plan import measured_rates


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    "Two sets as `gpu_footage.py` gathers them; the first one is learned from."
    root = tmp_path_factory.mktemp("footage")
    for name in ("one", "two"):
        (root / name / "videos").mkdir(parents=True)
        for k in range(6):
            write_video(root / name / "videos" / f"v{k}.mp4", 12 + k, k)
        for part, rows in (("train", range(4)), ("val", range(4, 6))):
            (root / name / f"{part}.txt").write_text("".join(f"v{k}.mp4 {k % 2}\n" for k in rows))
    call = ["--sets", str(root / "one"), str(root / "two"), "--learn", "1", "--out", str(root / "small")]
    assert script("gpu_footage").main(call) == 0
    with pytest.raises(SystemExit, match="is there already"):
        script("gpu_footage").main(call)
    assert "take fewer sets" in script("gpu_footage").main([*call[:-1], str(root / "large"), "--megabytes", "0.001"])
    return root / "small"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = script("gpu")
    monkeypatch.setitem(module.PARTS, "tests", lambda session: iter(()))  # has a test of its own
    return module


def test_footage_is_gathered(footage):
    assert (footage / "pretrain.txt").read_text() == "".join(f"one/v{k}.mp4 0\n" for k in range(4))
    assert (footage / "two-val.txt").read_text() == "two/v4.mp4 0\ntwo/v5.mp4 1\n"
    assert json.loads((footage / "frames.json").read_text())["two/v5.mp4"] == 17


def test_rehearsal(footage, gpu, tmp_path, monkeypatch):
    out, states = tmp_path / "gpu.json", []
    write = gpu.write_atomically

    def look(*args):
        write(*args)
        states.append(json.loads(out.read_text()))  # what a machine that stops now would leave
    monkeypatch.setattr(gpu, "write_atomically", look)
    assert gpu.main(["--rehearse", "--footage", str(footage), "--out", str(out)]) == 0
    record = states[-1]
    assert record["done"] == list(gpu.PARTS) and not record["failed"] and not record["left_out"]
    assert len(states) >= 12 and all("about" in state and state["rehearsal"] for state in states)
    assert record["pack"]["videos"] == 12 and not record["pack"]["other_lengths"] and not record["pack"]["problems"]
    rows = {row["step"]: row for row in record["speed"]["tiny:4x4x16"]["rows"]}
    assert rows["ours"]["first_loss"] == pytest.approx(rows["reference"]["first_loss"], rel=1e-3)
    assert [row["arm"] for row in record["pretraining"]["rows"]] == ["random", "moco", "be"]
    assert record["pretraining"]["videos"] == 4 and set(record["pretraining"]["rows"][0]["sets"]) == {"one", "two"}
    assert all(0 <= one["waiting"] <= 1 for one in record["loader"].values())
    assert min(measured_rates(out, "tiny").values()) > 0  # the record is one that `be-nb plan` takes
    text = script("gpu_read").page(record)
    headings = [line[4:].lower() for line in text.splitlines() if line.startswith("### ")]
    assert headings == ["about", "speed", "bench", "losses", "memory", "pack", "loader", "pretraining", "ladder",
                        "leaderboard"]
    rungs, arms = ("scenebias", "one", "two"), ("random", "be")
    assert not record["ladder"]["faults"] and sorted((row["rung"], row["arm"]) for row in record["ladder"]["rows"]) \
        == sorted(product(rungs, arms))
    assert not record["leaderboard"]["faults"]
    assert [cell["row"] for cell in record["leaderboard"]["board"]["cells"]] == ["untrained", "moco"]
    assert "a rehearsal" in text and "| two, be | 1 |" in text


def test_what_fails_or_does_not_fit_is_said(gpu, tmp_path, monkeypatch):
    def broken(session):
        session.record["speed"] = {}
        yield
        raise RuntimeError("no such kernel")
    monkeypatch.setitem(gpu.PARTS, "speed", broken)
    monkeypatch.setattr(gpu.Session, "left", lambda session: 3.0)
    options = ["--parts", "speed", "memory", "loader", "--rehearse", "--out", str(tmp_path / "gpu.json")]
    whole = gpu.Session.allows
    monkeypatch.setattr(gpu.Session, "allows", lambda session, what, seconds: (
        setattr(session, "rehearse", False), whole(session, what, seconds), setattr(session, "rehearse", True))[1])
    assert gpu.main(options) == 1
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["done"] == ["about", "memory"] and list(record["failed"]) == ["speed"] and not record.get("memory")
    assert record["left_out"]["loader"] == "no --footage was given"
    assert record["left_out"]["memory tiny:4x4x16 bf16"] == "wants 15 s, 3 s are left"
    text = script("gpu_read").page(record)
    assert "**failed**: speed: RuntimeError: no such kernel" in text and "left out: loader" in text


def test_targets_are_judged():
    "Numbers made up so that one of each pair is met and the other missed."
    read = script("gpu_read")
    rows = lambda ratio: [{"step": "ours", "wall_ms": 10, "wall_ratio": 1, "first_loss": 1.0},
                          {"step": "reference", "wall_ms": 10 * ratio, "wall_ratio": ratio, "first_loss": 1.0}]
    case = lambda ratio, share: {"rows": rows(ratio), "flop_per_second": 1e14, "of_matrix": share}
    speed = read.read_speed({"speed": {"c3d:16x16x112": case(5, 0.2), "i3d:32x16x112": case(3, 0.1)}})
    assert [line.split(":")[0] for line in speed if line.startswith("-")] == ["- met", "- **missed**", "- **missed**"]
    part = lambda name, seconds, moved: {"name": name, "seconds": seconds, "bytes": moved, "share": 0.5}
    parts = [part("augment", 0.03, 50), part("distractor", 0.01, 20), part("forward", 0.96, 0)]
    bench = read.read_bench({"bench": {"i3d:8x16x224": {"parts": parts, "ceilings": {"copy": 2000}}}})
    assert "met" in bench[1] and "88%" in bench[1] and "met" in bench[2] and "4.0%" in bench[2]
    memory = read.read_memory({"memory": {"a": {"planned": 120, "allocated": 100, "reserved": 130, "besides": 1}}})
    assert "**missed**" in memory[1] and "20% off" in memory[1]
    assert read.spread([0.5, 0.7]) == "60.0 ± 14.1" and read.spread([0.5]) == "50.0"


NO_AV = """
import runpy, sys
sys.modules["av"] = sys.modules["tyro"] = None
runpy.run_path(sys.argv[1], run_name="gpu")
assert sys.modules["av"].__version__ == "0"

"""


def test_it_starts_without_pyav_and_tyro(tmp_path):
    done = subprocess.run([sys.executable, "-c", NO_AV, str(ROOT / "benchmarks/gpu.py")], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tests_for_a_gpu_are_marked(gpu):
    "Whatever is left out without a GPU has the mark by which `gpu.py` finds it."
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text(encoding="utf8")
        if "skipif(not torch.cuda.is_available()" in text and path.name != "test_gpu_call.py":
            assert "pytest.mark.cuda" in text, path.name
