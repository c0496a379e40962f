"""Checkpoints under ill treatment: torn, flipped, foreign, hostile, and on a full disk."""
import io
import os
import pickle
import random
import re
import tarfile
import warnings
import zipfile

import pytest
import torch

from be_nb.augment import Augment
from be_nb.backbones import create_backbone
from be_nb.config import override
from be_nb.machine.files import remove_leftovers, write_atomically
from be_nb.methods.base import Batch, Views
from be_nb.moco import MoCo
from be_nb.saving.checkpoint import (CheckpointError, FORMAT, list_checkpoints, modern_settings, newest_checkpoint,
                                     old_puzzle, read_checkpoint, save_checkpoint, step_of)
from be_nb.saving.weights import load
from be_nb.settings import PretrainConfig, saved_config
from be_nb.train import pretrain


def a_state(step=4, **more):
    tensors = {"queue.keys": torch.arange(300.), "queue.pointer": torch.tensor(step),
               "half": torch.ones(5, dtype=torch.bfloat16)}
    return {"step": step, "config": {"backbone": "tiny", "crop": (.6, 1.)}, "method": tensors, "meter": None, **more}


def same(a, b):
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def test_what_is_saved_is_read_back(tmp_path):
    path = save_checkpoint(tmp_path / "a new folder", a_state(), keep=1)
    state = read_checkpoint(path)
    assert state.pop("format") == FORMAT == 2 and same(a_state(), state)
    assert [p.name for p in path.parent.iterdir()] == ["step-00000004.pt"]


def test_everything_that_moco_remembers_is_in_its_state_dict():
    "A fresh instance that reads the state of a used one gives the same loss and the same next state."
    def make(seed):
        torch.manual_seed(seed)
        views = Views(Augment(20), negative="none")
        return MoCo(create_backbone("tiny", width=4), dim=8, queue_size=13, views=views).train()
    used, fresh = make(0), make(1)
    clips = torch.randint(0, 256, (6, 1, 4, 3, 20, 20), dtype=torch.uint8)
    batch = lambda: Batch(clips, torch.Generator().manual_seed(5))
    for _ in range(3):
        used(batch())
        used.after_step()
    fresh.load_state_dict(used.state_dict())
    losses = [m(batch())[0] for m in (used, fresh)]
    for m in (used, fresh):
        m.after_step()
    assert torch.equal(*losses) and same(dict(used.state_dict()), dict(fresh.state_dict()))


def test_a_failing_write_changes_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        def write(temporary, error=error):
            temporary.write_text("half of the n")
            raise error
        with pytest.raises(type(error)):
            write_atomically(path, write)
        assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_a_disk_that_is_really_full_leaves_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path, a_state(4), keep=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond 20 kB
    try:
        with pytest.raises((OSError, RuntimeError)):
            save_checkpoint(tmp_path, a_state(8, optimizer={"moments": torch.rand(100_000)}), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004.pt"]
    assert newest_checkpoint(tmp_path)[1]["step"] == 4


def test_leftovers_of_a_killed_write_are_swept_and_nothing_else(tmp_path):
    for name in (".step-00000008.pt.123.tmp", ".history.jsonl.9.tmp", "step-00000008.pt", "notes.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "notes.tmp", "step-00000008.pt"]
    remove_leftovers(tmp_path / "no such folder")


def test_order_is_by_step_and_lookalikes_are_ignored(tmp_path):
    folder = tmp_path / "a run [with brackets]*"
    folder.mkdir()
    for name in ("step-00000009.pt", "step-100000000.pt", "step-99999999.pt", "step-best.pt",
                 "step-00000009.pt.damaged", "step-00000010 copy.pt", "xstep-00000011.pt", "step--0000001.pt"):
        (folder / name).touch()
    assert [step_of(p) for p in list_checkpoints(folder)] == [9, 99_999_999, 100_000_000]
    assert list_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_last_ones_are_kept_and_the_new_one_always(tmp_path, keep):
    for step in range(4, 40, 4):
        save_checkpoint(tmp_path, a_state(step), keep)
        expected = list(range(4, step + 1, 4))[-keep:]
        assert [step_of(p) for p in list_checkpoints(tmp_path)] == expected
    save_checkpoint(tmp_path, a_state(2), keep)  # after falling back: what was just written is never what is deleted
    assert (tmp_path / "step-00000002.pt").exists()


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    "Flips in the padding between the parts change nothing; all others must be errors, never wrong numbers."
    path, rng = save_checkpoint(tmp_path, a_state(), keep=1), random.Random(0)
    content = path.read_bytes()
    noticed = 0
    for _ in range(150):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            state = read_checkpoint(path)
            del state["format"]
            assert same(a_state(), state)
        except CheckpointError as error:
            noticed += path.name in str(error)
    assert noticed > 50


def test_any_truncation_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, a_state(), keep=1)
    content = path.read_bytes()
    for end in [0, 1, 4, 100, *range(200, len(content), 397), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match="step-00000004.pt"):
            read_checkpoint(path)


class Bomb:
    "Unpickling it makes a folder."

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_foreign_and_hostile_files_are_refused_without_running_them(tmp_path):
    marker, bad = tmp_path / "marker", tmp_path / "bad"
    bad.mkdir()
    rng = random.Random(1)
    for size in (0, 1, 2, 30, 5000):
        (bad / f"noise-{size}").write_bytes(rng.randbytes(size))
    (bad / "text").write_text("path label\n")
    (bad / "zip").write_bytes(b"PK\x03\x04" + rng.randbytes(200))
    (bad / "pickle").write_bytes(pickle.dumps({"format": 1, "step": 1, "config": {}, "method": Bomb(marker)}))
    (bad / "bare").write_bytes(pickle.dumps(Bomb(marker)))
    torch.save(a_state(method=Bomb(marker)), bad / "torch")
    torch.save({"format": 1, **a_state(method=Bomb(marker))}, bad / "legacy", _use_new_zipfile_serialization=False)
    with tarfile.open(bad / "tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    torch.save(a_state(), bad / "no format")
    torch.save({"format": 99, **a_state()}, bad / "a later format")
    torch.save({"format": 0, **a_state()}, bad / "no such format")
    torch.save([1, 2], bad / "a list")
    torch.save({"format": 1, "step": 3}, bad / "no config")
    torch.save({"format": 1, "step": 3, "config": "tiny"}, bad / "config is text")
    for path in [*bad.iterdir(), bad, tmp_path / "missing", tmp_path / "missing" / "step-00000001.pt"]:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)
    assert not marker.exists()
    torch.load(bad / "torch", weights_only=False)
    assert marker.exists(), "the attack does not work even where it should: the test above shows nothing"


def test_compressed_parts_are_refused_before_they_are_unpacked(tmp_path):
    source = save_checkpoint(tmp_path, a_state(zeros=torch.zeros(300_000)), keep=1)
    with zipfile.ZipFile(source) as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert torch.load(tmp_path / "bomb.pt", weights_only=True)["zeros"].shape == (300_000,)
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(tmp_path / "bomb.pt")


def test_newest_intact_checkpoint_and_a_warning_for_each_other(tmp_path):
    for step in (4, 8, 12):
        save_checkpoint(tmp_path, a_state(step), keep=3)
    paths = list_checkpoints(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    paths[1].write_bytes(b"noise")
    with pytest.warns(UserWarning, match="step-") as caught:
        path, state = newest_checkpoint(tmp_path)
    assert path == paths[0] and state["step"] == 4
    assert len(caught) == 2
    assert all(path.name in str(warning.message) for path, warning in zip(paths[:0:-1], caught))
    paths[0].unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert newest_checkpoint(tmp_path) == (None, None)


def a_run(folder, name="tiny", **kwargs):
    backbone = create_backbone("tiny", **kwargs)
    method = {f"backbone.{k}": v for k, v in backbone.state_dict().items()} | {"head.weight": torch.zeros(2)}
    return backbone, save_checkpoint(folder, a_state(config={"backbone": name}, method=method), keep=1)


def test_load_takes_a_file_or_a_folder(tmp_path):
    torch.manual_seed(0)
    backbone, path = a_run(tmp_path)
    view = torch.randn(2, 3, 4, 16, 16)
    for place in (path, str(path), tmp_path, str(tmp_path)):
        loaded = load(place)
        assert not loaded.training and loaded.pretrain_config == {"backbone": "tiny"}
        assert torch.equal(loaded(view), backbone.eval()(view))


def test_load_says_what_is_wrong(tmp_path):
    def wrong(path, *words):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert all(word in str(caught.value) for word in (str(path), *words)), caught.value
    wrong(tmp_path / "nowhere", "no checkpoint")
    wrong(tmp_path, "no readable checkpoint")
    wrong(a_run(tmp_path / "width", width=8)[1], "tiny", "shape")
    wrong(a_run(tmp_path / "other", name="r3d18")[1], "r3d18", "missing", "unknown")
    wrong(a_run(tmp_path / "typo", name="tinny")[1], "tinny", "'tiny'")
    wrong(tmp_path, "no readable checkpoint", "one of its runs: other, typo, width.")
    with pytest.raises(CheckpointError, match=re.escape(f"at runs/nowhere (now in {os.getcwd()})")):
        load("runs/nowhere")
    wrong(save_checkpoint(tmp_path / "none", a_state(config={}), keep=1), "None")
    wrong(save_checkpoint(tmp_path / "empty", a_state(), keep=1), "missing")
    wrong(save_checkpoint(tmp_path / "text", a_state(method="weights"), keep=1), "missing")


# ---- checkpoints of format 1

OLD = {"dim": 8, "head": "mlp", "queue_size": 16, "momentum": 0.99, "temperature": 0.07, "beta": 0.0, "gap": 8,
       "joint": False, "distractor": "intra_frame", "gamma": 0.3, "negative": "intra_video", "negative_offset": 4}
THEN = {  # what format 1 had in its settings, one list for all methods → what has another value today
    "moco": (dict(method="moco", frames=4), {}),
    "plain moco": (dict(method="moco", frames=4, distractor="none", negative="other_video"), {}),
    "triplet": (dict(method="triplet", frames=4), {}),
    "triplet, negative ignored": (dict(method="triplet", frames=4, negative="none"), dict(negative="intra_video")),
    "rotnet": (dict(method="rotnet", frames=4, gamma=0.5, negative_offset=9),
               dict(distractor="none", gamma=0.3, negative="none", negative_offset=4, beta=1.0)),
    "rotnet with BE": (dict(method="rotnet", frames=4, beta=2.0, gamma=0.5), dict(negative="none")),
    "order": (dict(method="order", frames=18, gap=3), dict(frames=4, distractor="none", negative="none", beta=1.0)),
    "order with BE": (dict(method="order", frames=18, gap=3, beta=1.0), dict(frames=4, negative="none")),
    "puzzles": (dict(method="puzzles", frames=16), dict(frames=3, distractor="none", negative="none", beta=1.0)),
    "puzzles with BE": (dict(method="puzzles", frames=16, beta=1.0), dict(frames=3, negative="none")),
}
SMALL = dict(data_size=16, batch_size=4, size=16, steps=4, warmup_steps=1, checkpoint_every=2, log_every=1, amp="fp32",
             checks=False)


def as_old(path, then):
    "Write a checkpoint of today as format 1 wrote it: the same weights, all knobs of all methods in the settings."
    state = torch.load(path, weights_only=True)
    settings = OLD | state["config"] | then  # a knob that this method does not have today had its default
    torch.save(state | {"format": 1, "config": settings}, path)
    return settings


@pytest.mark.parametrize("name", THEN)
def test_an_old_run_is_loaded_and_goes_on_as_if_nothing_had_happened(tmp_path, name):
    then, today = THEN[name]
    config = saved_config(modern_settings(OLD | then))
    config = override(config, out=str(tmp_path), name="run", **SMALL)
    straight = pretrain(config, progress=False)
    first, last = list_checkpoints(tmp_path / "run")
    expected = read_checkpoint(last)
    settings = as_old(first, OLD | then)
    last.unlink()

    net = load(tmp_path / "run")
    now = net.pretrain_config
    assert {key: now[key] for key in today} == today
    assert {key for key in settings if now[key] != settings[key]} == set(today)
    assert now["frames"] == config.frames, "evaluation shows the network the clips that it knows"
    kept = torch.load(first, weights_only=True)["method"]
    assert same(dict(net.state_dict()),
                {k.removeprefix("backbone."): kept[k] for k in kept if k.startswith("backbone.")})

    again = pretrain(config, progress=False, resume=True)
    state = read_checkpoint(again.checkpoint)
    assert torch.load(again.checkpoint, weights_only=True)["format"] == FORMAT
    assert same(state["method"], expected["method"]) and same(state["optimizer"], expected["optimizer"])
    assert [row["loss"] for row in again.history] == [row["loss"] for row in straight.history]


def test_an_old_run_whose_windows_cannot_be_had_is_loaded_and_not_continued(tmp_path):
    "Boxes of 2 frames were cut from windows of 8 or of 12; today it is always 8."
    assert [old_puzzle(window) for window in (4, 5, 8, 12, 16, 17, 24, 48)] == [
        (1, 4), (1, 4), (2, 8), (2, 8), (3, 16), (3, 16), (4, 20), (9, 48)]
    config = PretrainConfig(method="puzzles", frames=2, distractor="none", out=str(tmp_path), name="run", **SMALL)
    pretrain(override(config, steps=2), progress=False)
    as_old(tmp_path / "run" / "step-00000002.pt", dict(frames=12, steps=4, beta=0.0))
    assert load(tmp_path / "run").pretrain_config["frames"] == 2
    with pytest.raises(ValueError, match="puzzles of 12 frames.* boxes of 2 frames have 8"):
        pretrain(config, progress=False, resume=True)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000002.pt"]


def test_a_later_format_is_told_from_a_file_that_is_none(tmp_path):
    path = save_checkpoint(tmp_path, a_state(), keep=1)
    torch.save({**a_state(), "format": FORMAT + 1}, path)
    with pytest.raises(CheckpointError, match="written by a newer one"):
        read_checkpoint(path)


def test_settings_of_format_1_made_by_hand_are_no_crash(tmp_path):
    for config in ({}, {"method": "order"}, {"method": "puzzles"}, {"method": "puzzles", "frames": 1},
                   {"method": "mine"}):
        torch.save({"format": 1, **a_state(config=config)}, tmp_path / "x.pt")
        assert read_checkpoint(tmp_path / "x.pt")["config"].get("method") == config.get("method")
