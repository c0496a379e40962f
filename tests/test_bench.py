"""What is measured is the trainer's step, its work is counted right, and the benchmark's opponent does the same."""
import importlib.util
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_train import write_video

from be_nb.backbones import create_backbone
from be_nb.backbones.measure import describe
from be_nb.cli import main
from be_nb.config import override
from be_nb.data.clips import ClipDataset
from be_nb.data.sources import build_loader, build_source
from be_nb.methods import find_method
from be_nb.recipes import recipe, varied
from be_nb.settings import BenchConfig, PlanConfig, PretrainConfig
from be_nb.studies.bench import bench, BenchReport, Ceilings, measure, PARTS, RandomVideos, StepPart, Stopwatch
from be_nb.training.run import restore
from be_nb.training.step import train_step

SHARED = dict(batch_size=4, frames=4, size=16, device="cpu", amp="fp32")
SMALL = PretrainConfig(queue_size=16, dim=8, **SHARED)


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_name(config, source=None):
    parts, whole, best = measure(config, 1, source)
    assert whole > 0 and min(best) > 0
    return {part.name: part for part in parts}


def test_parts_are_positive_and_make_up_the_step():
    parts = by_name(SMALL)
    assert list(parts) == list(PARTS)
    assert all(0 < part.seconds < math.inf and math.isfinite(part.share) for part in parts.values())


def test_stopwatch_loses_no_time(monkeypatch):
    now = iter([0., 1., 3., 6., 10.])
    monkeypatch.setattr("be_nb.studies.bench.time.perf_counter", lambda: next(now))
    watch = Stopwatch(torch.device("cpu"))
    for part in ("a", "b", "a", None, None):
        watch.switch(part)
    assert dict(watch.seconds) == {"a": 1 + 3, "b": 2}


@pytest.mark.parametrize("changes, forward, backward", [
    ({}, 3, 4), (dict(negative="none"), 2, 2), (dict(joint=True), 3, 4), (dict(activations="recompute"), 3, 6),
    (dict(accumulate=2), 3, 4), (dict(bn_groups=2), 3, 4)], ids=str)
def test_work_is_what_the_shapes_say(changes, forward, backward):
    "Multiply-accumulates in clips of `describe`, and every byte by hand; 30×30 pixels is SceneBias."
    config, parts = override(SMALL, **changes), by_name(override(SMALL, **changes))
    macs = 4 * describe(create_backbone("tiny"), 4, 16).macs
    assert (parts["forward"].macs, parts["backward"].macs) == (forward * macs, backward * macs)
    window, view = 4 * 4 * 3 * 30 * 30, 4 * 4 * 3 * 16 * 16 * 4
    views = 2 + (config.negative == "intra_video")
    assert parts["augment"].bytes == views * (window + view) and parts["distractor"].bytes == 2 * view
    assert parts["loader"].bytes == window * (views - 1) and parts["transfer"].bytes == 0
    assert all((part.macs > 0) == (part.name in ("forward", "backward")) for part in parts.values())


@pytest.mark.parametrize("optimizer, states", [("sgd", 1), ("adamw", 2)])
def test_update_bytes(optimizer, states):
    "Three times the weights and twice each state for those that learn, three times for those that follow."
    config = override(SMALL, optimizer=optimizer)
    numbers = sum(p.numel() for p in create_backbone("tiny").parameters()) + (64 * 64 + 64) + (64 * 8 + 8)
    assert by_name(config)["optimiser"].bytes == 4 * numbers * (3 + 2 * states + 3)


def test_without_a_distractor_there_is_nothing_to_read_or_write():
    assert by_name(override(SMALL, distractor="none"))["distractor"].bytes == 0
    parts = by_name(PretrainConfig(method="rotnet", **SHARED | dict(distractor="none")))
    macs = 4 * 4 * describe(create_backbone("tiny"), 4, 16).macs  # each clip in four directions
    assert (parts["forward"].macs, parts["backward"].macs) == (macs, 2 * macs) and "distractor" not in parts


@pytest.mark.parametrize("method", ["simclr", "triplet", "rotnet", "order", "pace"])
@pytest.mark.parametrize("distractor", ["none", "intra_frame"])
def test_methods_of_any_kind_can_be_measured(method, distractor):
    "What is counted on the way through their networks is the work that they name for the cost of recipes."
    config = PretrainConfig(method=method, **SHARED | dict(distractor=distractor, short="loop"))
    parts = by_name(config)
    assert set(parts) | {"distractor"} == set(PARTS)
    assert all(0 < part.seconds < math.inf and math.isfinite(part.share) for part in parts.values())
    macs = 4 * describe(create_backbone("tiny"), 4, 16).macs
    assert parts["forward"].macs + parts["backward"].macs == find_method(method).passes(config) * macs
    window = find_method(method).windows(config)
    assert parts["loader"].bytes == 4 * window.count * (window.frames or 4) * 3 * 30 * 30


def test_what_was_measured_was_not_changed_by_measuring():
    "The steps with and without the watch are steps of one training: its losses are those of the trainer's own."
    from be_nb.studies import bench as module

    losses = []
    record = lambda *args: losses.append(train_step(*args)["loss"].item())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_step", record)
        measure(SMALL, 2)
    config = override(SMALL, steps=1000, data_size=8)
    run = restore(config, ROOT, torch.device("cpu"), None)
    loader = iter(build_loader(config, run.method.windows(config), build_source(config)))
    first = [next(loader) for _ in range(4)]
    batches = first + first[:2]  # the loader begins anew for the watched steps
    expected = [train_step(run.method, batch, run.optimizer, k, config)["loss"].item()
                for k, batch in enumerate(batches)]
    assert losses == expected


def test_the_bottleneck_takes_longest():
    parts = [StepPart(name, seconds, 0, 10, 5.)
             for name, seconds in (("loader", .5), ("augment", 2.), ("optimiser", 1.))]
    report = BenchReport({"machine": "a machine", "batch_size": 8}, parts, 4., Ceilings(1., 1., 1., 1.))
    assert report.bottleneck is parts[1] and report.as_dict()["bottleneck"] == "augment"
    assert parts[1].rate == 5 and parts[1].share == 1 and report.as_dict()["clips_per_second"] == 2
    assert "bottleneck: augment, 57% of the step, at 100.0% of its ceiling" in str(report)


def test_random_videos_are_a_source():
    source = RandomVideos(3, 10, 8, 12)
    item = ClipDataset(source, frames=4, windows=2, min_offset=2)[0, 1]
    assert item["clips"].shape == (2, 4, 3, 8, 12) and item["clips"].dtype == torch.uint8
    start = int(item["starts"][0])
    assert torch.equal(item["clips"][0], source.read(2, range(start, start + 4)))


def test_command_writes_a_complete_record(tmp_path, capsys):
    out = tmp_path / "step.json"
    main("bench i3d-ucf101-be --backbone tiny --noise --batch-size 2 --frames 4 --size 16 --repeats 1 --device cpu "
         f"--out {out}".split())
    record = json.loads(out.read_text())
    assert set(record) == {"about", "ceilings", "parts", "step_seconds", "clips_per_second", "bottleneck"}
    assert record["about"] | {"machine": ""} == {
        "machine": "", "recipe": "i3d-ucf101-be", "method": "moco", "backbone": "tiny", "frames": 4, "size": 16,
        "batch_size": 2, "numbers": record["about"]["numbers"], "data": "random frames", "repeats": 1}
    assert [part["name"] for part in record["parts"]] == list(PARTS)
    assert set(record["ceilings"]) == set(Ceilings._fields)
    assert all({"seconds", "macs", "bytes", "ceiling", "rate", "share"} <= set(part) for part in record["parts"])
    slowest = max(record["parts"], key=lambda part: part["seconds"])["name"]
    assert record["bottleneck"] == slowest and f"bottleneck: {slowest}" in capsys.readouterr().out


@pytest.mark.parametrize("changes, told", [
    (dict(recipe="scenebias-finetune"), "be-nb finetune"), (dict(recipe="scenebias-eb"), "scenebias-be"),
    (dict(backbone="tinny"), "tiny"), (dict(repeats=0), "repeats"), (dict(size=-1), "size"), (dict(amp="fp16"), "fp16"),
    (dict(device="gpu"), "device"), (dict(out="."), "folder"), (dict(repeat=3), "repeats")])
def test_wrong_settings_are_told(changes, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=told):
        bench(**changes)


def test_missing_videos_are_told_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="UCF101"):
        bench(recipe="i3d-ucf101-be", backbone="tiny", device="cpu")


def test_measure_refuses_what_it_cannot():
    with pytest.raises(ValueError, match="compile"):
        measure(override(SMALL, compile=True))
    with pytest.raises(ValueError, match="repeats"):
        measure(SMALL, 0)


def test_what_is_not_asked_for_is_the_recipes():
    assert varied(BenchConfig("video-be-mini")) == recipe("video-be-mini") and varied(PlanConfig()) == PretrainConfig()
    changes = dict(backbone="c3d", frames=5, size=40, batch_size=3)
    assert varied(BenchConfig("video-be-mini", **changes)) == recipe("video-be-mini", **changes)
    assert varied(PlanConfig("", "vicreg"), amp="bf16") == PretrainConfig(method="vicreg", amp="bf16")
    with pytest.raises(ValueError, match="be-nb finetune"):
        varied(BenchConfig("scenebias-finetune"), PretrainConfig)


# The benchmark's opponent


@pytest.mark.parametrize("changes", [dict(degrees=10., hue=.5, brightness=.5, flip=.5),
                                     dict(optimizer="sgd", lr=.05, head="linear")], ids=str)
def test_reference_step_has_our_loss(changes):
    "Five steps, so that its update, momentum encoder and queue are ours as well; every clip of its own draw."
    step = script("step")
    config = override(SMALL, warmup_steps=0, momentum=.9, **changes)
    cpu = torch.device("cpu")
    reference, ours = step.ReferenceStep(config, cpu), step.OurStep(config, cpu)
    loader = build_loader(config, ours.method.windows(config), build_source(override(config, data_size=16)))
    pairs = [(ours(batch["clips"], k), reference(batch["clips"], k)) for k, batch in zip(range(5), loader)]
    assert len(pairs) == 5 and len({round(a, 4) for a, _ in pairs}) == 5
    assert [b for _, b in pairs] == pytest.approx([a for a, _ in pairs], abs=2e-3)
    assert pairs[0][1] == pytest.approx(pairs[0][0], abs=1e-5)
    assert reference.pointer == int(ours.method.queue.pointer) == 4
    assert torch.allclose(reference.queue, ours.method.queue.keys, atol=5e-2)


def test_loops_give_our_pixels():
    step = script("step")
    ours = step.OurStep(override(SMALL, degrees=10., hue=.5, contrast=.5, saturation=.5, flip=.5), torch.device("cpu"))
    clips = torch.randint(0, 256, (3, 4, 3, 30, 40), dtype=torch.uint8)
    augment, distractor = ours.method.views.augment, ours.method.views.distractor
    drawn = augment.sample(3, 30, 40)
    views = augment.view(clips, drawn)
    assert torch.allclose(step.augment_by_loops(clips, drawn, 16), views, atol=2e-3)
    draw = distractor.sample(views)
    assert torch.allclose(step.distract_by_loops(views, draw), distractor.mix(views, draw), atol=1e-5)


def test_every_contestant_starts_from_the_same_loss():
    step = script("step")
    with pytest.raises(ValueError, match="with joint"):
        step.contestants(SMALL, torch.device("cpu"), ["joint"])
    rows = step.compare(override(SMALL, data_size=16), torch.device("cpu"), 1, ["with compile"])
    losses = {row["step"]: row["first_loss"] for row in rows}
    assert {"ours", "reference", "channels-last", "default order"} <= set(losses) and "with compile" not in losses
    near = {name: abs(loss - losses["ours"]) for name, loss in losses.items()}
    assert all(gap < (.05 if "bf16" in name else 1e-4) for name, gap in near.items()), near


def test_reference_refuses_other_methods():
    with pytest.raises(ValueError, match="reference"):
        script("step").ReferenceStep(override(SMALL, distractor="none"), torch.device("cpu"))


def test_cases():
    config = script("step").parse_case("r3d18:2x8×48")
    assert (config.backbone, config.batch_size, config.frames, config.size) == ("r3d18", 2, 8, 48)
    assert min(config.frame_size) > 48


def test_transfer_study_goes_on_where_it_stopped(tmp_path):
    "Two classes of made videos: rows for both sets, the same from the records of the runs, no path in the report."
    for number in range(16):
        path = tmp_path / "videos" / "ab"[number % 2] / f"v {number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, 40, number)
    lines = [f"{path.relative_to(tmp_path / 'videos')} {int(path.parent.name == 'b')}\n"
             for path in sorted((tmp_path / "videos").rglob("*.mp4"))]
    for name, some in (("train.txt", lines[::2] + lines[1::4]), ("val.txt", lines[3::4])):
        (tmp_path / "videos" / name).write_text("".join(some))
    transfer, folder = script("transfer"), str(tmp_path / "videos")
    changes = dict(batch_size=4, queue_size=8, size=16, frame_size=(20, 24), steps=2, warmup_steps=1, stride=1,
                   negative_offset=8, frames=4)
    options = SimpleNamespace(seeds=[0], arms=["random", "be"], data=folder, judge=[folder],
                              runs=str(tmp_path / "runs"), device="cpu")
    rows = transfer.study(options, **changes)
    assert [(row["arm"], row["data"], row["queries"], row["gallery"]) for row in rows] == [
        ("random", "videos", 4, 12), ("be", "videos", 4, 12)]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("R@1", "R@10", "chance R@1", "linear probe", "knn"))
    assert "R@20" not in rows[0], "the gallery has 12 videos"
    assert transfer.study(options, **changes) == rows
