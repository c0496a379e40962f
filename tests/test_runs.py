"""Runs under attack: poisoned, locked, signalled as a group, moved, renamed; and checkpoints that lie."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings, strategies as st

import be_nb.training.finetune as FT
from be_nb.backbones import create_backbone
from be_nb.machine.files import FolderInUse, locked
from be_nb.saving.checkpoint import (CheckpointError, list_checkpoints, newest_checkpoint, read_checkpoint,
                                     save_checkpoint)
from be_nb.saving.weights import find_weights, load
from be_nb.settings import FinetuneConfig
from be_nb.train import Diverged, finetune
from be_nb.training.run import read_history, short_name

TINY = dict(data_size=36, test_size=12, batch_size=8, size=16, frames=4, steps=6, warmup_steps=2, log_every=2,
            checkpoint_every=2, validate_every=3, clips=1, amp="fp32", validation=0.2)


def a_state(step=4, **more):
    return {"step": step, "config": {"backbone": "tiny"}, "method": {"w": torch.ones(3)}, **more}


def test_fine_tuning_never_writes_a_nan(tmp_path, monkeypatch):
    real = FT.finetune_step
    def poisoned(model, augment, clips, labels, optimizer, step, config):
        found = real(model, augment, clips, labels, optimizer, step, config)
        if step == 4:
            model.head.weight.data[0] = float("nan")
        return found
    monkeypatch.setattr(FT, "finetune_step", poisoned)
    with pytest.raises(Diverged, match="no numbers"):
        finetune(FinetuneConfig(**TINY), progress=False, out=str(tmp_path), name="run")
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000002.pt", "step-00000004.pt"]
    read_checkpoint(tmp_path / "run" / "step-00000004.pt")
    monkeypatch.undo()
    result = finetune(FinetuneConfig(**TINY), progress=False, out=str(tmp_path), name="run", resume=True)
    assert result.history[-1]["step"] == 6


def test_a_poisoned_or_renamed_checkpoint_does_not_win(tmp_path):
    save_checkpoint(tmp_path, a_state(2), 5)
    save_checkpoint(tmp_path, a_state(4, method={"w": torch.tensor([1., float("nan")])}), 5)
    save_checkpoint(tmp_path, a_state(1), 5).rename(tmp_path / "step-00000900.pt")
    with pytest.warns(UserWarning, match="not what its name says|poisoned") as caught:
        path, state = newest_checkpoint(tmp_path)
    assert state["step"] == 2
    assert "not what its name says" in str(caught[0].message) and "poisoned" in str(caught[1].message)


def test_one_writer_and_a_kill_gives_the_folder_back(tmp_path):
    code = ("from be_nb.machine.files import *; import time\n"
            f"with locked({str(tmp_path / 'run')!r}): print('in', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(FolderInUse, match=f"process {other.pid}.*another name"), locked(tmp_path / "run"):
        pass
    other.kill(), other.wait()
    with locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.glob("run/.*"))


def test_a_signal_to_the_whole_group_leaves_the_checkpoint(tmp_path):
    code = ("from be_nb.train import pretrain\n"
            f"pretrain(out={str(tmp_path)!r}, name='run', data_size=64, batch_size=8, queue_size=32, size=16, "
            "frames=4, steps=100000, log_every=1, checkpoint_every=100000, workers=2, checks=False, progress=False)")
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           start_new_session=True)
    while not (tmp_path / "run" / "history.jsonl").exists() or not (tmp_path / "run" / "history.jsonl").read_text():
        assert run.poll() is None, run.stderr.read()
        time.sleep(.1)
    os.killpg(run.pid, signal.SIGTERM)
    out, err = run.communicate()
    assert run.returncode == 0 and "checkpoint written" in out, err
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_names_of_videos_do_not_depend_on_spelling(tmp_path):
    assert {short_name(n, str(tmp_path))
            for n in ("./a.mp4", "a.mp4", "x/../a.mp4", str(tmp_path / "a.mp4"))} == {"a.mp4"}


@pytest.mark.parametrize("settings_", [dict(frames=10**9), dict(stride=-1), dict(size="x"), dict(size=10**7),
                                       dict(frames=[[]])])
def test_settings_of_a_checkpoint_are_claims(tmp_path, settings_):
    with pytest.raises(CheckpointError, match="settings that cannot be used"):
        read_checkpoint(save_checkpoint(tmp_path, a_state(config=settings_), 1))


class Eater:
    def __reduce__(self):
        return bytearray, (10**12,)


def test_names_tensors_and_memory(tmp_path):
    huge = torch.ones(1).expand(10**12)
    for thing in (Eater(), huge, torch.ones(3).to_sparse()):
        path = tmp_path / "x.pt"
        torch.save(a_state(method={"w": thing}), path)
        with pytest.raises(CheckpointError, match="dense"):
            read_checkpoint(path)
    torch.save(a_state(method={"w": Eater()}), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="bytearray"):
        read_checkpoint(tmp_path / "old.pt")


def test_state_dicts_of_other_trainers_are_unwrapped(tmp_path):
    backbone = create_backbone("tv_r3d18")
    method = {f"module.backbone.{k}": v for k, v in create_backbone("tiny").state_dict().items()}
    load(save_checkpoint(tmp_path, a_state(method=method), 1))
    from torchvision.models import get_model
    state = get_model("r3d_18", weights=None).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "x.pth")
    assert find_weights(tmp_path / "x.pth").backbone == "tv_r3d18" and backbone.feature_dim == 512


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 10**6))
def test_any_bytes_are_a_checkpoint_or_a_checkpoint_error(tmp_path_factory, noise, where):
    path = save_checkpoint(tmp_path_factory.mktemp("x"), a_state(), 1)
    content = bytearray(path.read_bytes())
    where %= len(content)
    content[where:where + len(noise)] = noise
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                      lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3),
                      max_leaves=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(values.map(json.dumps) | st.text(max_size=20) | st.builds(lambda s: f'{{"step": {s}, "loss": 1.0}}',
                                                                          st.integers()),
                max_size=6))
@pytest.mark.filterwarnings("ignore")
def test_any_lines_are_a_history(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("h") / "history.jsonl"
    path.write_text("\n".join(lines), encoding="utf8", errors="replace")
    rows = read_history(path)
    assert [r["step"] for r in rows] == sorted({r["step"] for r in rows})


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["step", "config", "method", "format"]), values)
def test_any_state_is_a_checkpoint_or_a_checkpoint_error(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("s") / "x.pt"
    torch.save({"format": 2, **a_state()} | {key: value}, path)
    with contextlib.suppress(CheckpointError):
        load(path)
