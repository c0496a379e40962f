"""The plan of a run: a step on paper against a real one, the ledger of every batch, and what follows from it."""
import contextlib
import io
import json

from pathlib import Path

import numpy as np
import pytest
import torch

from be_nb import cli
from be_nb.backbones import create_backbone
from be_nb.backbones.measure import describe
from be_nb.config import override
from be_nb.data.sets import set_of
from be_nb.methods import METHODS
from be_nb.recipes import recipe, RECIPES
from be_nb.settings import FinetuneConfig, PretrainConfig
from be_nb.studies import plan as planning
from be_nb.studies.plan import (CARDS, loader_processes, measured_rates, pack_bytes, plan, PRIME, room, step_seconds,
                                trace)
from be_nb.training.run import restore
from be_nb.training.step import train_step

MINI = dict(device="cpu", amp="fp32", memory_order="channels_last")
SMALL = MINI | dict(data="videos", frame_size=(64, 85), batch_size=2, queue_size=64)


def measured_peak(config):
    """Bytes at the worst moment of a real step on the CPU.

    PyTorch's profiler hears of every block that the allocator gives and takes back, temporary ones inside a kernel
    too. It knows nothing of what was there before, so weights, moments, buffers and clips are added.
    """
    run = restore(config, Path(), torch.device("cpu"), None)
    asked = run.method.windows(config)
    shape = (config.batch_size, asked.count, asked.frames or config.frames, 3, *planning.frame_of(config))
    clips = torch.zeros(shape, dtype=torch.uint8)
    found = {"clips": clips, "index": torch.arange(len(clips)), "starts": torch.zeros(shape[:2], dtype=torch.long)}
    train_step(run.method, found, run.optimizer, 0, config)
    run.optimizer.zero_grad()
    moments = [s for state in run.optimizer.state.values() for s in state.values() if torch.is_tensor(s)]
    kept = [*run.method.parameters(), *run.method.buffers(), *moments, clips]
    resident = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        train_step(run.method, found, run.optimizer, 1, config)
    events = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert len(events) > 500
    return resident + np.cumsum(events).max()


@pytest.fixture
def one_thread():
    "A convolution on a CPU takes room of its own for each thread, which is no part of a plan for a GPU."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("settings", [
    MINI | dict(batch_size=32, activations="recompute"), MINI | dict(batch_size=32, accumulate=2, bn_groups=2),
    MINI | dict(method="order", distractor="intra_frame", batch_size=16),
    SMALL | dict(backbone="r3d18", size=48, optimizer="sgd")],
    ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items() if k not in MINI))
def test_peak_on_paper_is_the_measured_one(settings):
    config = PretrainConfig(**settings)
    assert trace(config).peak(config.batch_size) == pytest.approx(measured_peak(config), rel=0.15)


@pytest.mark.parametrize("settings", [
    MINI | dict(activations="recompute", optimizer="sgd", queue_size=4096), MINI | dict(accumulate=2, clip_grad=1.0),
    MINI | dict(method="triplet")], ids=lambda s: " ".join(f"{k}={v}" for k, v in s.items() if k not in MINI))
def test_one_trace_tells_of_every_batch(settings, monkeypatch):
    """The ledger of 12 videos, calculated from the trace of a prime number, is that of a trace of 12."""
    config = PretrainConfig(**settings)
    found = trace(config)
    with monkeypatch.context() as change:
        change.setattr(planning, "PRIME", 12 // planning.pieces_of(config))
        direct = trace(config)
    assert direct.traced == 12 and direct.during.sum() > 0
    alike = np.cumsum(direct.during) + direct.before.sum()
    assert found.peak(12) == pytest.approx(alike.max(), rel=0.002)
    assert np.array_equal(found.memory(12).shape, alike.shape)
    assert found.work(12) == pytest.approx(direct.flops.sum(), rel=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_trace(name):
    config = PretrainConfig(method=name, amp="bf16")
    found = trace(config)
    assert 0 < found.peak(8) < found.peak(16) and found.work(8) > 0
    assert found.before.sum() == pytest.approx(found.before.sum() + found.during.sum(), rel=0.2)  # a step leaves little


def test_fine_tuning_has_a_plan():
    config = FinetuneConfig(amp="fp32")
    whole, frozen = trace(config), trace(override(config, freeze=True))
    assert frozen.peak(8) < whole.peak(8) and frozen.work(8) < 0.4 * whole.work(8)
    run = recipe("finetune-hmdb51")
    assert list(planning.variants(run)) == ["bf16", "fp32"] and planning.videos_seen(run) == 50 * 3570


@pytest.fixture(scope="module")
def found():
    return plan("scenebias-be")


def test_number_formats_and_recomputation_do_what_they_are_for(found):
    """And the work is that of the passes, but for the gradient with respect to the clips, which nobody needs."""
    found = found.traces
    expected = 2 * 7 * describe(create_backbone("tiny"), 8, 24).macs  # 3 for query and negative each, 1 for the key
    assert 0.93 * expected < found["fp32"].work(1) <= 1.005 * expected
    assert list(found) == ["bf16", "bf16, recompute", "fp32", "fp32, recompute"]
    assert all(found[f"{a}, recompute"].peak(32) < found[a].peak(32) for a in ("bf16", "fp32"))
    assert found["bf16"].peak(32) < found["fp32"].peak(32)
    in_bf16 = found["bf16"].flops[found["bf16"].bf16].sum()  # all but the loss
    assert 0.999 * found["bf16"].flops.sum() < in_bf16 < found["bf16"].flops.sum()
    assert not found["fp32"].bf16.any()
    assert found["bf16"].flops.sum() == found["fp32"].flops.sum()
    more = found["bf16, recompute"].work(4) / found["bf16"].work(4)
    assert more == pytest.approx((7 + 2) / 7, rel=0.05)  # query and negative forward once more, of seven passes


def test_largest_batch_fits_and_one_more_does_not(found):
    for t in found.traces.values():
        for card in CARDS:
            most = t.largest(room(card.gib))
            assert t.peak(most) <= room(card.gib) < t.peak(most + 1)
        assert t.largest(0) == 0
        assert t.largest(room(8), 48) % 48 == 0 and 0 <= t.largest(room(8)) - t.largest(room(8), 48) < 48


def test_a_roofline_is_below_what_is_assumed(found):
    t = found.traces["bf16"]
    for card in CARDS:
        best, assumed = step_seconds(t, 64, card)
        assert best >= t.work(64) / card.bf16 and best >= (t.moved @ [1, 64 / t.traced]).sum() / card.copy * 0.5
        assert best < assumed <= best / planning.MATRIX_SHARE
        twice = step_seconds(t, 64, card._replace(bf16=2 * card.bf16, fp32=2 * card.fp32, copy=2 * card.copy))
        assert twice == pytest.approx((best / 2, assumed / 2))


def test_a_record_gives_hours(found, tmp_path):
    path, network = tmp_path / "bench.json", found.about["backbone"]
    about = {"machine": "M", "frames": 8, "size": 24, "numbers": "fp32", "backbone": network}
    report = {"about": about, "parts": [{"macs": 3000}, {"macs": 2000}], "step_seconds": 0.5}
    path.write_text(json.dumps(report))
    assert measured_rates(path, network) == {"M, 8×24², fp32": 20000.0}
    path.write_text(json.dumps({"bench": {"one": report, "two": report | {"about": about | {"backbone": "i3d"}}}}))
    assert len(measured_rates(path, "i3d")) == 1
    hours = planning.Plan(found.about, found.traces, measured_rates(path, network)).measured_hours()
    assert list(hours.values()) == [found.traces["bf16"].work(found.about["videos"]) / 20000 / 3600]
    with pytest.raises(ValueError, match="has no r3d34, only i3d, tiny"):
        measured_rates(path, "r3d34")
    for bad in ("no JSON", "[]", "{}", '{"bench": {"a": 1}}'):
        path.write_text(bad)
        with pytest.raises(ValueError, match="is no report of"):
            measured_rates(path, network)


def test_a_plan_leaves_the_machine_as_it_was(found):
    assert planning.decides._cpu_has.__name__ == "_cpu_has"
    with pytest.raises(RuntimeError, match="inside"), planning.as_on_a_gpu():
        raise RuntimeError("inside")
    assert planning.decides._cpu_has.__name__ == "_cpu_has"


def test_disk_and_loader(found):
    whole = pack_bytes("ucf101", 128, 171) / 9537 * 13320
    assert whole == pytest.approx(22e9, rel=0.15)  # as 5_data/05_pack_format has it
    assert pack_bytes("ucf101", 256, 342) < 4 * pack_bytes("ucf101", 128, 171)
    assert {set_of(r.config.data) for r in RECIPES.values()} - {None} <= planning.MEAN_FRAMES.keys()
    t = found.traces["fp32"]
    clips = 64 * 2 * 8 * 30 * 30
    assert loader_processes(t, 64, clips / planning.DECODED / 2.5) == 3


def test_the_command(capsys, tmp_path):
    cli.main(["plan", "--out", str(tmp_path / "plan.json")])
    out = capsys.readouterr().out
    assert out.startswith("recipe miniature backbone tiny") and "80 GB" in out and "assumed: 15%" in out
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["about"]["batch_size"] == 64
    assert set(record["variants"]["bf16"]["largest"]) == {"8", "16", "24", "40", "80"}
    cli.main(["recipes", "i3d-k400-be"])
    assert "be-nb plan i3d-k400-be" in capsys.readouterr().out
    for line, told in (("plan xyzzy", "Unknown recipe"), ("plan --record nowhere.json", "nowhere.json")):
        with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as err:
            cli.main(line.split())
        assert told in err.getvalue() and err.getvalue().count("\n") == 1


def test_the_classifier_of_a_recipe_is_planned():
    "The authors' head of I3D reads three times of 32 frames; weights and two moments of AdamW are in the book."
    how = dict(backbone="i3d", frames=32, size=32, frame_size=(40, 40), data="videos", classes=101, amp="fp32")
    known = {kind: trace(FinetuneConfig(classifier=kind, **how)).before for kind in ("linear", "authors")}
    fixed = {kind: int(sizes[sizes % PRIME != 0].sum()) for kind, sizes in known.items()}
    assert fixed["authors"] - fixed["linear"] == 3 * 4 * (3 * 1024 * 101 - (1024 * 101 + 101))
