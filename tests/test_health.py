"""What is watched: closed forms, a poisoned step, a disk found full before the first one; watching changes nothing."""
import math
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import test_train
from conftest import needs_bf16
from test_train import SMALL, assert_same_run, small

import be_nb.train as T
from be_nb.config import override
from be_nb.data.clips import ClipDataset
from be_nb.data.scenebias import SceneBias
from be_nb.data.sources import build_loader, build_source, knn_sources
from be_nb.methods import METHODS
from be_nb.methods.base import Batch, build_method
from be_nb.moco import MoCo
from be_nb.saving.checkpoint import list_checkpoints, read_checkpoint
from be_nb.settings import PretrainConfig
from be_nb.train import pretrain
from be_nb.training import preflight as P
from be_nb.training import watch as H
from be_nb.training.divergence import Diverged, reproduce
from be_nb.training.step import build_optimizer, seed_of

CONFIG = PretrainConfig(**SMALL)

straight = test_train.straight  # a fixture


def test_alignment_uniformity_and_spread_by_loops():
    x, y = (F.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1) for _ in range(2))
    pairs = [(i, j) for i in range(7) for j in range(i)]
    square = lambda a, b: sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist()))
    assert math.isclose(H.alignment(x, y), sum(map(square, x, y)) / 7, rel_tol=1e-9)
    mean = sum(math.exp(-2 * square(x[i], x[j])) for i, j in pairs) / len(pairs)
    assert math.isclose(H.uniformity(x), math.log(mean), rel_tol=1e-9)
    deviations = [np.std(x[:, k].tolist(), ddof=1) for k in range(5)]
    assert math.isclose(H.spread(x), np.mean(deviations) * 5**.5, rel_tol=1e-9)


def test_the_monitors_are_in_the_history_and_say_what_the_embeddings_are(straight):
    import json
    rows = [json.loads(line) for line in (straight / "history.jsonl").read_text().splitlines()]
    assert all({"alignment", "uniformity", "spread", "queue_age"} <= row.keys() for row in rows)
    assert [row["queue_age"] for row in rows] == [min(row["step"], 32 / 8) for row in rows]
    assert all(0 <= row["alignment"] <= 4 and -4.1 < row["uniformity"] <= 0 and row["spread"] >= 0 for row in rows)
    assert H.embedding_health(torch.nn.Linear(2, 2), 5, 8) == {}  # a method that shows nothing


@pytest.mark.parametrize("method", ["simclr", "triplet"])
def test_the_monitors_need_no_queue(tmp_path, method):
    "Alignment, uniformity and spread are those of two views; without a queue no key has an age, and collapse is told."
    settings = {key: value for key, value in SMALL.items() if key != "queue_size"}
    config = PretrainConfig(method=method, **settings | dict(steps=4))
    rows = pretrain(config, progress=False, out=str(tmp_path), name="run").history
    assert all({"alignment", "uniformity", "spread"} <= row.keys() and "queue_age" not in row for row in rows)
    assert all(0 <= row["alignment"] <= 4 and -4.1 < row["uniformity"] <= 0 and row["spread"] >= 0 for row in rows)
    late = config.warmup_steps + 51
    assert "collapsed" in H.collapse_warning({"step": late, "spread": .01}, config)
    assert H.collapse_warning({"step": late - 1, "spread": .01}, config) == ""


def test_a_method_that_shows_nothing_is_not_watched(tmp_path):
    row, = pretrain(method="rotnet", progress=False, out=str(tmp_path), steps=1, data_size=16, batch_size=4, size=16,
                    frames=4).history
    assert not {"alignment", "uniformity", "spread", "queue_age"} & row.keys()


def test_collapse_is_told_when_it_is_late_enough():
    late = int(CONFIG.warmup_steps + 2 * CONFIG.queue_size / CONFIG.batch_size) + 1
    assert "collapsed" in H.collapse_warning({"step": late, "spread": .01}, CONFIG)
    for row in ({"step": late - 1, "spread": .01}, {"step": late, "spread": .2}, {"step": late}):
        assert H.collapse_warning(row, CONFIG) == ""


class Poisoned(MoCo):
    "MoCo whose loss or gradient is ruined by one step's batch. Which step it is, is read off the randomness."

    ruin, kind = 7, "loss"

    @classmethod
    def from_config(cls, config, backbone):
        method = super().from_config(config, backbone)
        method.seed = seed_of(config.seed, cls.ruin)
        return method

    def forward(self, batch):
        loss, metrics = super().forward(batch)
        now = batch.draw.initial_seed() == self.seed
        if now and self.kind == "loss":
            loss = loss * float("nan")
        if now and self.kind == "gradient":
            loss = loss + (self.backbone.stages[0][0].weight.sum() * 0).sqrt()  # 0, with an infinite slope
        return loss, metrics


@pytest.mark.parametrize("kind, ruin", [("loss", 7), ("gradient", 4), ("loss", 1), ("gradient", 11)])
def test_a_nan_is_traced_to_its_step_and_videos(tmp_path, monkeypatch, kind, ruin):
    monkeypatch.setattr(Poisoned, "ruin", ruin), monkeypatch.setattr(Poisoned, "kind", kind)
    monkeypatch.setitem(METHODS, "poisoned", Poisoned)
    with pytest.raises(Diverged) as caught:
        small(tmp_path, method="poisoned", log_every=5)
    config, message = override(CONFIG, method="poisoned"), str(caught.value)
    loader = build_loader(config, build_method(config).windows(config), build_source(config), ruin)
    batch = next(iter(loader))["index"].tolist()
    names = [build_source(config).names[i] for i in batch]
    assert message.startswith(f"Step {ruin} ") and all(name in message for name in names)
    path = tmp_path / "run" / f"diverged-step-{ruin:08d}.pt"
    assert caught.value.path == path and read_checkpoint(path)["index"] == batch
    for saved in [*list_checkpoints(tmp_path / "run"), path]:
        learned = [v for k, v in read_checkpoint(saved)["method"].items() if "running" not in k]
        assert all(v.isfinite().all() for v in learned), saved
    kept = [f"step-{s:08d}.pt" for s in range(3, ruin + 1, 3)][-2:]
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == kept
    assert math.isnan(reproduce(path, "cpu")) == (kind == "loss")
    with pytest.raises(Diverged, match=f"Step {ruin} "):
        small(tmp_path, method="poisoned", log_every=5, resume=True)


def test_a_failure_that_does_not_come_again_is_told_as_one(tmp_path, monkeypatch):
    done = []

    def once(method, clips, optimizer, step, config, real=T.train_step):
        metrics = real(method, clips, optimizer, step, config)
        if step == 4 and not done:
            done.append(step)
            metrics["loss"] = metrics["loss"] * float("nan")
        return metrics
    monkeypatch.setattr(T, "train_step", once)
    with pytest.raises(Diverged, match="does not compute the same twice") as caught:
        small(tmp_path)
    assert caught.value.path is None


def test_other_videos_cannot_reproduce(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "poisoned", Poisoned)
    with pytest.raises(Diverged) as caught:
        small(tmp_path, method="poisoned")
    with pytest.raises(ValueError, match="does not hold the videos"):
        reproduce(caught.value.path, "cpu", data_size=40)


def ready():
    method, source = build_method(CONFIG).train(), build_source(CONFIG)
    dataset = ClipDataset(source, CONFIG.frames, windows=2, min_offset=4)
    return method, build_optimizer(CONFIG, method), dataset


def test_preflight_leaves_no_trace_and_is_not_needed(straight, tmp_path):
    method, optimizer, dataset = ready()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    quiet = override(CONFIG, queue_size=32)  # nothing is said of so few
    lines = P.preflight(method, optimizer, dataset, tmp_path / "new", quiet)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items()) and not (tmp_path / "new").exists()
    assert torch.__version__ in lines[0] and "64 videos" in lines[1]
    for negative, size, crowded in (("intra_video", 32, False), ("intra_video", 33, True), ("intra_video", 320, True),
                                    ("none", 64, False), ("none", 65, True)):
        asked = override(CONFIG, queue_size=size, negative=negative)
        more = P.preflight(method, optimizer, dataset, tmp_path / "new", asked)[2:]
        assert [line for line in more if "queue_size" in line] == more and bool(more) == crowded
        assert not more or f"{size / 64:.1f} times" in more[0]
    many = ClipDataset(SceneBias("pretrain", size=256), CONFIG.frames, windows=2)
    for size, crowded in ((64, False), (65, True)):  # a quarter of the videos
        more = P.preflight(method, optimizer, many, tmp_path / "new", override(CONFIG, queue_size=size))[2:]
        assert bool(more) == crowded and all("queue_size=64 is" in line for line in more)
    small(tmp_path, checks=False)
    assert_same_run(straight, tmp_path / "run")


class OfLengths:
    "Videos of these lengths that nobody looks at."

    def __init__(self, *lengths):
        self.lengths, self.labels, self.names = lengths, [0] * len(lengths), [str(i) for i in range(len(lengths))]

    def __len__(self):
        return len(self.lengths)

    def num_frames(self, index):
        return self.lengths[index]

    def read(self, index, frames):
        return torch.zeros(len(frames), 3, 20, 20, dtype=torch.uint8)


@pytest.mark.parametrize("short", ["loop", "clamp"])
@pytest.mark.parametrize("frames, stride, offset", [(4, 1, 4), (4, 3, 2), (8, 2, 40)])
def test_how_much_a_negative_repeats_its_window(frames, stride, offset, short):
    "Counted frame by frame from the windows that the run itself gets."
    source = OfLengths(*range(3, 63))
    dataset = ClipDataset(source, frames, stride, 2, offset, short)
    found, span = [], (frames - 1) * stride + 1
    for i, length in enumerate(source.lengths):
        a, b = dataset[0, i]["starts"].tolist()
        film = list(range(length)) * (2 + span)  # played in a circle
        first, second = set(film[a:a + span]), set(film[b:b + span])
        found.append(sum(frame in second for frame in first) / len(first))
    assert P.shared_share(dataset) == pytest.approx(np.mean(found))


def test_a_negative_that_repeats_its_window_is_told(tmp_path):
    method, optimizer, _ = ready()
    def said(length, negative="intra_video"):
        config = override(CONFIG, negative=negative)
        dataset = ClipDataset(OfLengths(*[length] * 64), config.frames, windows=2, min_offset=4)
        return [line for line in P.preflight(method, optimizer, dataset, tmp_path / "new", config) if "again" in line]
    assert not said(40) and not said(4, "none") and len(said(4)) == 1 and "negative='none'" in said(4)[0]


def test_a_full_disk_is_found_before_the_first_step(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 0, 9 * 10**6))
    with pytest.raises(ValueError, match=r"3 checkpoints of 0\.00 GB.*keep.*checks=False"):
        small(tmp_path)
    assert not any(tmp_path.iterdir())
    small(tmp_path, keep=1)
    assert "room" not in P.check_room(tmp_path / "run", 8 * 10**6, override(CONFIG, keep=1))  # one is there already


def test_the_size_of_a_checkpoint_is_known_before(straight):
    method, optimizer, _ = ready()
    real = list_checkpoints(straight)[-1].stat().st_size
    assert abs(P.checkpoint_bytes(method, optimizer) / real - 1) < .05


def test_the_last_video_is_read_before_the_first_step(tmp_path, monkeypatch):
    source, real = SceneBias("pretrain", size=64), SceneBias.read
    def read(self, index, frames):
        if index == len(source) - 1:
            raise OSError("the last one is broken")
        return real(self, index, frames)
    monkeypatch.setattr(SceneBias, "read", read)
    with pytest.raises(OSError, match="last one"):
        small(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_number_format_that_changes_the_loss_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(P, "precision_gap", lambda *_: (2., .4))
    with pytest.warns(UserWarning, match="40%"):
        small(tmp_path, steps=1)
    monkeypatch.setattr(P, "precision_gap", lambda *_: (float("nan"), 0))
    with pytest.raises(ValueError, match="untouched network is nan"):
        small(tmp_path, steps=1, name="other")


@needs_bf16
def test_precision_gap_is_that_of_the_losses():
    method, _, dataset = ready()
    batch = Batch(P.sample_clips(dataset, 4)["clips"])
    loss, gap = P.precision_gap(method, batch, "bf16")
    assert P.precision_gap(method, batch, "fp32") == (loss, 0) and 0 < gap < .1


def test_dropout_is_not_taken_for_rounding():
    config = override(CONFIG, method="opn", negative="none", distractor="none", frames=4, short="drop")
    method = build_method(config).train()
    batch = Batch(torch.randint(256, (4, 1, 40, 3, 30, 30), dtype=torch.uint8))
    before = torch.get_rng_state()
    loss, gap = P.precision_gap(method, batch, "fp32")
    assert gap == 0 and P.precision_gap(method, batch, "fp32")[0] == loss
    assert torch.equal(torch.get_rng_state(), before)


def test_knn_takes_labelled_videos_and_at_most_so_many(tmp_path):
    assert knn_sources(CONFIG) == ()
    assert [len(s) for s in knn_sources(override(CONFIG, knn_every=1, knn_videos=700))] == [700, 512]
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 -1\n")
    with pytest.raises(ValueError, match="1 videos have no label"):
        knn_sources(override(CONFIG, knn_every=1, data=str(tmp_path)))
    with pytest.raises(ValueError, match="no split 'prob'"):
        knn_sources(override(CONFIG, knn_every=1, knn_train="prob"))


def test_online_knn_is_the_knn_of_the_extracted_features():
    from be_nb.judging.features import extract_features
    from be_nb.judging.judges import knn
    config = override(CONFIG, knn_every=1, knn_videos=30)
    sources, method = knn_sources(config), build_method(config).train()
    found = [extract_features(method.backbone, s, 1, config.frames, size=config.size, progress=False) for s in sources]
    expected = knn(found[0].features, found[0].labels, found[1].features, found[1].labels, k=20).accuracy
    assert H.online_knn(method, sources, config) == expected and method.backbone.training
