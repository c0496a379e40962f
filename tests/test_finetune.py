"""Fine-tuning: the ten-clip test by hand, frozen means frozen, resumed means equal, wrong lists mean no work."""
import json
import os
import shutil
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

import be_nb.training.finetune as FT
from be_nb.augment import CenterCrop
from be_nb.backbones import create_backbone
from be_nb.saving.checkpoint import CheckpointError, list_checkpoints, read_checkpoint
from be_nb.saving.weights import load
from be_nb.config import override
from be_nb.recipes import recipe
from be_nb.training.classifier import (build_classifier, Classifier, draw_confusion, in_top, predict, score,
                                       TimeHead)
from be_nb.settings import FinetuneConfig
from be_nb.training.finetune import finetune, finetune_step
from be_nb.data.lists import group_of, hold_out
from be_nb.methods.base import augmentation
from be_nb.training.step import build_optimizer, learning_rate
from be_nb.train import pretrain

SMALL = dict(data_size=36, test_size=12, batch_size=8, size=16, frames=4, steps=9, warmup_steps=2, log_every=2,
             checkpoint_every=2, validate_every=3, clips=2, amp="fp32")


def small(out, name="run", **changes):
    return finetune(FinetuneConfig(**SMALL | changes), progress=False, out=str(out), name=name)


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return small(tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    "A checkpoint of pretraining, without training."
    return pretrain(steps=0, out=str(tmp_path_factory.mktemp("start")), name="start", progress=False).checkpoint


class Movies:
    "A source of random videos that are wider than high, some shorter than a clip."

    def __init__(self, lengths, classes=7):
        rng = np.random.default_rng(0)
        self.videos = [torch.from_numpy(rng.integers(0, 256, (n, 3, 18, 30), dtype=np.uint8)) for n in lengths]
        self.labels = np.arange(len(lengths)) % classes
        self.names, self.classes = [f"v{i}" for i in range(len(lengths))], [str(k) for k in range(classes)]

    def __len__(self):
        return len(self.videos)

    def num_frames(self, i):
        return len(self.videos[i])

    def read(self, i, frames):
        return self.videos[i][torch.as_tensor(frames)]


def by_hand(model, source, clips, frames, stride, size, boxes):
    "Softmax of every clip, one video, one clip, one crop at a time."
    found, last_frame = [], (frames - 1) * stride
    for video in source.videos:
        room = max(0, len(video) - last_frame - 1)
        for c in range(clips):
            first = room * c // (clips - 1)
            clip = torch.stack([video[(first + k * stride) % len(video)] for k in range(frames)])
            opinions = [model(CenterCrop(size)(clip[None, ..., a:b])).double().softmax(1)[0] for a, b in boxes]
            found.append(sum(opinions) / len(boxes))
    return torch.stack(found).unflatten(0, (len(source), clips))


@pytest.mark.parametrize("crops, boxes", [(1, [(0, 30)]), (3, [(0, 18), (0, 30), (12, 30)])])
def test_the_ten_clip_test_is_averaging_by_hand(crops, boxes):
    torch.manual_seed(0)
    model, source = Classifier(create_backbone("tiny"), 7, dropout=.5).eval(), Movies([25, 11, 3, 12, 40, 13, 14, 30])
    model.head.weight.data *= 30  # opinions that differ
    with torch.no_grad():
        want = by_hand(model, source, 10, 6, 2, 16, boxes)
    scores = predict(model.train(), source, 10, 6, 2, 16, crops, batch_size=7, amp="fp32")
    assert model.training and torch.allclose(scores.probabilities.double(), want, atol=1e-5)
    result, y, videos = score(scores), source.labels, want.mean(1).numpy()
    assert result.videos == 8 and result.clips == 10
    assert result.top1 == pytest.approx((videos.argmax(1) == y).mean())
    assert result.clip_top1 == pytest.approx((want.flatten(0, 1).argmax(1).numpy() == y.repeat(10)).mean())
    assert result.top5 == pytest.approx(top_k_accuracy_score(y, videos, k=5, labels=range(7)))
    clips5 = top_k_accuracy_score(y.repeat(10), want.flatten(0, 1).numpy(), k=5, labels=range(7))
    assert result.clip_top5 == pytest.approx(clips5)
    assert result.confusion.tolist() == confusion_matrix(y, videos.argmax(1), labels=range(7)).tolist()


def test_ties_do_not_make_hits():
    flat = torch.full((6, 6), 1 / 6)
    assert in_top(flat, torch.arange(6), 1).tolist() == [True] + [False] * 5
    assert in_top(flat, torch.arange(6), 5).tolist() == [True] * 5 + [False]


def test_scores_that_are_not_finite_are_an_error():
    model = Classifier(create_backbone("tiny"), 7)
    model.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        predict(model, Movies([9, 9]), 2, 4, 1, 16)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_the_formula(smoothing):
    config = FinetuneConfig(**SMALL | dict(dropout=0.0, label_smoothing=smoothing, crop=(1.0, 1.0), brightness=0.0,
                                           contrast=0.0, saturation=0.0, hue=0.0))
    torch.manual_seed(1)
    model = Classifier(create_backbone("tiny"), 6).train()
    clips, labels = torch.randint(0, 256, (5, 4, 3, 20, 20), dtype=torch.uint8), torch.tensor([0, 5, 3, 3, 1])
    with torch.no_grad():
        p = model(CenterCrop(16)(clips)).double().softmax(1)
    target = torch.full((5, 6), smoothing / 6, dtype=torch.double)
    target[range(5), labels] += 1 - smoothing
    found = finetune_step(model, augmentation(config), clips, labels, build_optimizer(config, model), 0, config)
    assert found["loss"].item() == pytest.approx(-(target * p.log()).sum(1).mean().item(), abs=1e-4)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_backbone_does_not_change(tmp_path, start, freeze):
    before, result = load(start).state_dict(), small(tmp_path, checkpoint=str(start), freeze=freeze, validation=0.0)
    after = result.model.backbone.state_dict()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert not changed if freeze else any("running_mean" in k for k in changed) and any("weight" in k for k in changed)
    fresh = small(tmp_path, "untrained", checkpoint=str(start), steps=0).model.head.weight
    assert not torch.equal(fresh, result.model.head.weight)
    assert same(load(result.checkpoint).state_dict(), dict(after))


class Stop(Exception):
    "Something goes wrong in the middle of a run."


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_resumed_run_is_the_same_run(straight, tmp_path, monkeypatch, step):
    def broken(model, augment, clips, labels, optimizer, number, config, real=finetune_step):
        if number == step:
            raise Stop
        return real(model, augment, clips, labels, optimizer, number, config)

    with monkeypatch.context() as patch:
        patch.setattr(FT, "finetune_step", broken)
        with pytest.raises(Stop):
            small(tmp_path)
    resumed = small(tmp_path, resume=True)
    one, other = (read_checkpoint(list_checkpoints(r.checkpoint.parent)[-1]) for r in (straight, resumed))
    assert all(same(one[k], other[k]) for k in ("step", "method", "optimizer", "meter", "best"))
    assert straight.history == resumed.history and straight.best == resumed.best
    assert {k: v.confusion.tolist() for k, v in straight.tests.items()} == \
        {k: v.confusion.tolist() for k, v in resumed.tests.items()}
    with pytest.raises(ValueError, match="exists"):
        small(tmp_path)
    with pytest.raises(ValueError, match="dropout"):
        small(tmp_path, resume=True, dropout=0.1)


def test_a_signal_leaves_a_checkpoint_and_exits_with_0(straight, tmp_path, monkeypatch, capsys):
    def signalled(model, augment, clips, labels, optimizer, number, config, real=finetune_step):
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, augment, clips, labels, optimizer, number, config)

    with monkeypatch.context() as patch:
        patch.setattr(FT, "finetune_step", signalled)
        with pytest.raises(SystemExit) as stop:
            small(tmp_path)
    assert stop.value.code == 0 and "after step 5;" in capsys.readouterr().out
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-00000005.pt"
    resumed = small(tmp_path, resume=True)
    one, other = (read_checkpoint(list_checkpoints(r.checkpoint.parent)[-1]) for r in (straight, resumed))
    assert same(one["method"], other["method"]) and straight.history == resumed.history


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun"):
        small(tmp_path)


def test_the_best_weights_are_those_of_the_best_validation(straight):
    looks = [(row["val_accuracy"], -row["step"]) for row in straight.history if "val_accuracy" in row]
    assert [-step for _, step in looks] == [3, 6, 9]
    assert (straight.best["accuracy"], -straight.best["step"]) == max(looks)
    assert read_checkpoint(straight.checkpoint)["step"] == straight.best["step"]


def test_the_test_videos_choose_nothing(straight, tmp_path):
    other = small(tmp_path, test_splits=("unbiased",), test_size=20, clips=1, crops=3)
    one, two = (read_checkpoint(r.checkpoint) for r in (straight, other))
    assert same(one["method"], two["method"]) and straight.best == other.best and straight.history == other.history


def test_what_is_written_down(straight):
    stored = json.loads((straight.checkpoint.parent / "results.json").read_text())
    assert stored["videos"] == {"learned from": 30, "held out": 6, "test": 12, "swapped": 12}
    for split, test in straight.tests.items():
        assert stored["tests"][split]["top1"] == test.top1 and sum(map(sum, stored["tests"][split]["confusion"])) == 12
    assert straight.confusion().png().startswith(b"\x89PNG")
    draw_confusion({"many": torch.eye(101)}, [str(k) for k in range(101)]).png()


UCF = [f"{c}/v_{c}_g{g:02}_c{k:02}.avi" for c in ("Archery", "Biking") for g in range(1, 9)
       for k in range(1, 3 + g % 4)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_groups_stay_together_and_classes_on_both_sides(share, seed):
    labels = np.array([name.startswith("Biking") for name in UCF], dtype=int)
    learn, held = hold_out(UCF, labels, share, seed)
    assert sorted([*learn, *held]) == list(range(len(UCF)))
    assert not {group_of(UCF[i]) for i in learn} & {group_of(UCF[i]) for i in held}
    for label in (0, 1):
        assert (labels[learn] == label).any()
        assert abs((labels[held] == label).sum() - share * (labels == label).sum()) <= 2.5  # half of the largest group
    single = hold_out([f"{i}.mp4" for i in range(len(UCF))], labels, share, seed)[1]
    assert np.bincount(labels[single], minlength=2) == pytest.approx(share * np.bincount(labels), abs=0.51)


def test_groups_of_hmdb51():
    one, two = "Film_2_brush_hair_u_nm_np1_ba_goo_0.avi", "Film_2_brush_hair_f_cm_np2_fr_bad_11.avi"
    assert group_of(one) == group_of(two) == "Film_2_brush_hair"
    assert group_of("anything.mp4") == "anything.mp4"


def test_the_schedule_of_the_paper():
    config = override(recipe("finetune-ucf101"), steps=100)  # two steps an epoch
    drops = [s / 2 for s in range(1, 100) if learning_rate(config, s) < learning_rate(config, s - 1)]
    assert drops == [10, 20, 25, 30, 35, 40, 45] and learning_rate(config, 0) == 1e-3
    assert learning_rate(config, 99) == pytest.approx(1e-3 * .3**7)
    assert (config.frames, config.stride, config.size, config.dropout, config.clips) == (64, 1, 224, .5, 10)


def test_epochs_become_steps(tmp_path):
    result = small(tmp_path, epochs=0.5, clips=1)  # 30 videos to learn from, 8 a step
    assert result.history[-1]["step"] == 2


@pytest.mark.parametrize("changes, words", [
    (dict(classes=5), "classes=5"), (dict(backbone="r3d18"), "holds a tiny"), (dict(backbone="r3d"), "r3d"),
    (dict(test_splits=("probe",)), "trained on|in probe"), (dict(checkpoint="nowhere.pt"), "nowhere.pt"),
    (dict(crops=2), "crops"), (dict(data_size=6), "hold out"), (dict(name="../x"), "folder name")])
def test_nothing_is_begun_with_wrong_settings(tmp_path, start, changes, words):
    with pytest.raises((ValueError, CheckpointError), match=words):
        finetune(FinetuneConfig(**SMALL), progress=False, **dict(out=str(tmp_path), checkpoint=str(start)) | changes)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Twelve videos of two classes: bright and dark."
    root = tmp_path_factory.mktemp("videos")
    for i in range(12):
        with av.open(str(root / f"v_{i:02}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=Fraction(25))
            stream.width, stream.height = 48, 32
            for k in range(6 + i):
                image = np.full((32, 48, 3), 200 * (i % 2) + k, dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
    lines = [f"v_{i:02}.mp4 {i % 2}\n" for i in range(12)]
    for name, text in {"train.txt": lines[:8], "val.txt": lines[8:], "leak.txt": lines[7:9],
                       "more.txt": ["v_08.mp4 2\n"], "unknown.txt": ["v_08.mp4 -1\n"]}.items():
        (root / name).write_text("".join(text))
    return root


VIDEOS = dict(frame_size=(24, 32), crops=3, test_splits=())


def test_a_folder_of_videos(folder, tmp_path):
    result = small(tmp_path, data=str(folder), **VIDEOS)
    assert list(result.tests) == ["val.txt"] and result.tests["val.txt"].videos == 4
    assert result.tests["val.txt"].confusion.sum(1).tolist() == [2, 2]


@pytest.mark.parametrize("split, words", [("leak.txt", "1 videos are in"), ("more.txt", "label 2"),
                                          ("unknown.txt", "no label"), ("none.txt", "none.txt")])
def test_wrong_lists_are_found_before_the_work_starts(folder, tmp_path, split, words):
    with pytest.raises((ValueError, OSError), match=words):
        small(tmp_path, data=str(folder), **VIDEOS | dict(test_splits=(split,)))
    assert not list(tmp_path.iterdir())


# --- the authors' classifiers ---------------------------------------------------------------------------------------

def test_the_authors_classifiers():
    "I3D: average pool 2×7×7, then seven taps over time without bias. C3D and the ResNets: linear, no dropout."
    torch.manual_seed(0)
    head, maps = TimeHead(6, 5, 8), torch.randn(3, 6, 8, 7, 7)
    kernel = head.linear.weight.detach().unflatten(1, (6, 7))[..., None, None]
    naive = torch.nn.functional.conv3d(torch.nn.functional.avg_pool3d(maps, (2, 7, 7), 1), kernel).flatten(1)
    assert torch.allclose(head(maps), naive, atol=1e-5)
    assert not torch.allclose(head(maps.flip(2)), naive, atol=1e-3)
    assert TimeHead(6, 5, 1)(maps[:, :, :1]).shape == (3, 5)
    for name in ("c3d", "r3d18"):
        model = build_classifier(name, create_backbone("tiny"), 4, FinetuneConfig(classifier="authors"))
        assert model.dropout.p == 0 and isinstance(model.head, torch.nn.Linear) and not model.on_maps
    with pytest.raises(ValueError, match="classifier='authors' is known for c3d.*not for tiny"):
        build_classifier("tiny", create_backbone("tiny"), 4, FinetuneConfig(classifier="authors"))


def test_the_authors_i3d_classifier_trains_and_resumes(tmp_path):
    "Its number of weights depends on the clip, and it comes back from a checkpoint."
    how = dict(backbone="i3d", classifier="authors", frames=16, size=32, batch_size=2, data_size=8, steps=1, clips=1,
               validation=0.0, test_size=2, test_splits=("test",), out=str(tmp_path), name="run", workers=0, amp="fp32")
    result = finetune(FinetuneConfig(**how), progress=False)
    assert result.model.head.linear.weight.shape == (6, 1024)  # 16 frames leave two times, and one mean of neighbours
    again = finetune(FinetuneConfig(**how, resume=True), progress=False)
    assert torch.equal(again.model.head.linear.weight, result.model.head.linear.weight)


# --- the same videos, or not ----------------------------------------------------------------------------------------

def test_fine_tuning_goes_on_with_a_moved_folder_and_not_with_other_labels(folder, tmp_path):
    home, moved = tmp_path / "videos", tmp_path / "elsewhere"
    shutil.copytree(folder, home)
    how = dict(VIDEOS, steps=4, checkpoint_every=2, validate_every=2)
    straight = small(tmp_path / "a", data=str(home), **how)
    small(tmp_path / "b", data=str(home), **how)
    for last in list_checkpoints(tmp_path / "b/run")[1:]:
        last.unlink()  # as if it had been killed after step 2
    shutil.move(home, moved)
    resumed = small(tmp_path / "b", data=f"{moved}/../elsewhere", resume=True, **how)
    assert same(straight.model.state_dict(), resumed.model.state_dict())

    lines = (moved / "train.txt").read_text().splitlines()
    (moved / "train.txt").write_text("\n".join([lines[0][:-1] + "1", *lines[1:]]))
    kept = {path: path.read_bytes() for path in list_checkpoints(tmp_path / "b/run")}
    with pytest.raises(ValueError, match="names, labels or lengths .* have changed"):
        small(tmp_path / "b", data=str(moved), resume=True, **how)
    assert {path: path.read_bytes() for path in list_checkpoints(tmp_path / "b/run")} == kept
