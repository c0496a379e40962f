"""Stopped by signals, a full disk or another list of videos: what is left must be good, and going on exact."""
import os
import resource
import signal
import warnings

import pytest
import torch
import test_train
from ranks import fork
from test_train import SMALL, assert_same_run, small, write_video

import be_nb.train as T
from be_nb.saving.checkpoint import (CheckpointError, list_checkpoints, newest_checkpoint, read_checkpoint,
                                     save_checkpoint)
from be_nb.saving.weights import load
from be_nb.training.run import Stopped
from be_nb.training.step import train_step

straight = test_train.straight  # a fixture


def signalled_at(monkeypatch, step, number):
    "Let the process get a signal in the middle of a step."
    def step_and_signal(method, clips, optimizer, now, config, real=train_step):
        if now == step:
            os.kill(os.getpid(), number)
        return real(method, clips, optimizer, now, config)
    monkeypatch.setattr(T, "train_step", step_and_signal)


@pytest.mark.parametrize("step, name", [(4, "SIGTERM"), (5, "SIGUSR1"), (0, "SIGTERM")])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(straight, tmp_path, monkeypatch, capsys, step, name):
    before = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patch:
        signalled_at(patch, step, getattr(signal, name))
        with pytest.raises(SystemExit) as stop:
            small(tmp_path)
    assert stop.value.code == 0 and isinstance(stop.value, Stopped) and stop.value.step == step + 1
    assert f"checkpoint written after step {step + 1}" in capsys.readouterr().out
    assert list_checkpoints(tmp_path / "run")[-1].name == f"step-{step + 1:08d}.pt"
    assert signal.getsignal(getattr(signal, name)) == before, "a handler was left behind"
    small(tmp_path, resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_signal_in_the_last_step_is_too_late(straight, tmp_path, monkeypatch):
    signalled_at(monkeypatch, SMALL["steps"] - 1, signal.SIGTERM)
    small(tmp_path)
    assert_same_run(straight, tmp_path / "run")


def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(straight, tmp_path, monkeypatch):
    "A real limit of the system: no file may grow beyond 1 MB, and a checkpoint is larger."
    signalled_at(monkeypatch, 3, signal.SIGTERM)
    with pytest.raises(Stopped):
        small(tmp_path)
    monkeypatch.undo()
    said = tmp_path / "said"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        try:
            small(tmp_path, resume=True)
        except OSError as error:
            said.write_text(str(error))

    os.waitpid(fork(limited, 0, 1, 0, tmp_path / "nothing"), 0)
    message = said.read_text()
    assert "checkpoint of step 6" in message and "untouched" in message and "resume=True" in message
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000003.pt", "step-00000004.pt"]
    assert not list((tmp_path / "run").glob(".*"))
    small(tmp_path, resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_changed_list_of_videos_is_not_continued(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(4):
        write_video(folder / f"{i}.mp4", 12 + i, i)
    lines = [f"{i}.mp4 {i % 2}\n" for i in range(4)]
    (folder / "train.txt").write_text("".join(lines))
    settings = dict(data=str(folder), frame_size=(32, 40), steps=4, batch_size=4)
    signalled_at(monkeypatch, 1, signal.SIGTERM)
    with pytest.raises(Stopped):
        small(tmp_path, **settings)
    monkeypatch.undo()
    for changed in (lines[:3], lines[::-1], [*lines[:3], "3.mp4 0\n"]):
        (folder / "train.txt").write_text("".join(changed))
        with pytest.raises(ValueError, match="videos are not those"):
            small(tmp_path, resume=True, **settings)
    write_video(folder / "2.mp4", 25, 2)  # the same name, another length
    (folder / "train.txt").write_text("".join(lines))
    with pytest.raises(ValueError, match="videos are not those"):
        small(tmp_path, resume=True, **settings)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000002.pt"]
    write_video(folder / "2.mp4", 14, 2)
    assert small(tmp_path, resume=True, **settings).checkpoint.name == "step-00000004.pt"


def test_a_checkpoint_without_fingerprint_can_be_continued(straight, tmp_path, monkeypatch):
    "Those of the first version have none."
    signalled_at(monkeypatch, 4, signal.SIGTERM)
    with pytest.raises(Stopped):
        small(tmp_path)
    monkeypatch.undo()
    path = list_checkpoints(tmp_path / "run")[-1]
    state = read_checkpoint(path)
    del state["videos"], state["best"]
    torch.save(state, path)
    small(tmp_path, resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_the_best_checkpoint_is_that_of_the_best_knn(straight, tmp_path, monkeypatch):
    "It survives `keep`, a kill and damage; watching changes no weight."
    scores = {2: .3, 4: .5, 6: .4, 8: .45, 10: .5, 12: .2}
    monkeypatch.setattr(T, "online_knn", lambda method, sets, config: scores[state_step()])
    seen = []
    def counted(method, clips, optimizer, step, config, real=train_step):
        seen.append(step + 1)
        return real(method, clips, optimizer, step, config)
    state_step = lambda: seen[-1]
    watched = dict(knn_every=2, knn_videos=12, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(T, "train_step", counted)
        result = small(tmp_path, name="whole", **watched)
    folder = tmp_path / "whole"
    assert [p.name for p in sorted(folder.glob("*.pt"))] == ["best.pt", "step-00000012.pt"]
    best = read_checkpoint(folder / "best.pt")
    assert best["step"] == 4 and best["best"] == {"step": 4, "knn": .5}  # not step 10: equal is not better
    assert {row["step"]: row["knn"] for row in result.history if "knn" in row} == scores
    assert load(folder / "best.pt").feature_dim == result.backbone.feature_dim
    weights = [read_checkpoint(list_checkpoints(f)[-1])["method"] for f in (folder, straight)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with monkeypatch.context() as patch:  # stopped after step 6 and continued
        def stopping(method, clips, optimizer, step, config):
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return counted(method, clips, optimizer, step, config)
        patch.setattr(T, "train_step", stopping)
        with pytest.raises(Stopped):
            small(tmp_path, **watched)
        patch.setattr(T, "train_step", counted)
        small(tmp_path, resume=True, **watched)
    again = read_checkpoint(tmp_path / "run" / "best.pt")
    assert again["step"] == 4 and all(torch.equal(v, best["method"][k]) for k, v in again["method"].items())


def test_without_a_knn_test_there_is_no_best(straight):
    assert not (straight / "best.pt").exists() and read_checkpoint(list_checkpoints(straight)[-1])["best"] == {}


def test_the_best_is_written_before_the_checkpoint_that_says_so(tmp_path, monkeypatch):
    state = lambda step: {"step": step, "config": {}, "weights": torch.full((3,), float(step))}
    save_checkpoint(tmp_path, state(1), 1, best=True)
    monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError("this disk has no links")))
    save_checkpoint(tmp_path, state(2), 1, best=True)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == read_checkpoint(tmp_path / "step-00000002.pt")["step"] == 2
    monkeypatch.setattr("be_nb.saving.checkpoint.twin",
                        lambda *names: (_ for _ in ()).throw(OSError("the power fails")))
    with pytest.raises(OSError, match="power"):
        save_checkpoint(tmp_path, state(3), 1, best=True)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 3
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002.pt"]


def test_a_checkpoint_cut_short_at_any_byte_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, {"step": 1, "config": {}}, 5)
    whole = save_checkpoint(tmp_path, {"step": 2, "config": {}, "w": torch.ones(40)}, 5).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 12)):
        (tmp_path / "step-00000002.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / "step-00000002.pt")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path, state = newest_checkpoint(tmp_path)
        assert state["step"] == 1 and "step-00000002" in str(caught[0].message)
