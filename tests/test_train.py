"""The trainer under ill treatment: killed at any moment, resumed, misused, short of disk, fed with real videos."""
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import needs_bf16
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import be_nb.train as T
from be_nb.config import annotations, override
from be_nb.data.decode import VideoError
from be_nb.data.sources import build_loader, build_source
from be_nb.methods import METHODS
from be_nb.methods.base import Batch, build_method, Method, Views, Windows
from be_nb.saving.checkpoint import CheckpointError, list_checkpoints, read_checkpoint
from be_nb.saving.weights import load
from be_nb.settings import PretrainConfig
from be_nb.train import pretrain
from be_nb.training.run import History, MAY_CHANGE, run_folder
from be_nb.training.step import build_optimizer, learning_rate, seed_of, train_step

# A run of half a second. Rows every second step and checkpoints every third: a checkpoint also falls between two rows.
SMALL = dict(data_size=64, batch_size=8, queue_size=32, size=16, frames=4, steps=12, warmup_steps=3, log_every=2,
             checkpoint_every=3)


def small(out, name="run", **changes):
    return pretrain(PretrainConfig(**SMALL), progress=False, out=str(out), name=name, **changes)


def rows(folder):
    "The history as stored, without the clock."
    lines = (Path(folder) / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "clips_per_second"} for line in lines]


def assert_same(a, b, where=""):
    "Nested structures of tensors and plain values, bit for bit; a NaN equals itself."
    assert type(a) is type(b), where
    if torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_same(a[k], b[k], f"{where}/{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert a == b or a != a, where


def assert_same_run(a, b):
    "Two folders hold the same last checkpoint (except for how it was run) and the same history."
    one, other = (read_checkpoint(list_checkpoints(folder)[-1]) for folder in (a, b))
    for part in ("step", "method", "optimizer", "meter"):
        assert_same(one[part], other[part], part)
    assert_same(rows(a), rows(b), "history")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "A run that nothing happens to; read only."
    return small(tmp_path_factory.mktemp("straight")).checkpoint.parent


class Stop(Exception):
    "Something goes wrong in the middle of a run."


@contextlib.contextmanager
def breaking_at(monkeypatch, step, error=Stop):
    "Let the training step of this number raise."
    def broken(method, clips, optimizer, number, config, real=train_step):
        if number == step:
            raise error
        return real(method, clips, optimizer, number, config)
    with monkeypatch.context() as patch:
        patch.setattr(T, "train_step", broken)
        with pytest.raises(error):
            yield


# Runs forked from one warm process: each continues the run and is killed after a random time, or inside a write.
KILLER = """
import os, random, signal, sys, time
import torch
from be_nb.settings import PretrainConfig
from be_nb.train import pretrain
settings, out, seed = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3])
go = lambda: pretrain(PretrainConfig(**settings), progress=False, out=out, name="run", resume=True)
pretrain(PretrainConfig(**settings), progress=False, out=out, name="warm")
began = time.perf_counter()
pretrain(PretrainConfig(**settings), progress=False, out=out, name="timed")
duration, rng = time.perf_counter() - began, random.Random(seed)

def die_in_write(state, path):
    whole(state, path)
    os.truncate(path, os.path.getsize(path) * 2 // 3)
    os.kill(os.getpid(), signal.SIGKILL)

whole, killed = torch.save, 0
for attempt in range(6):
    child = os.fork()
    if child == 0:
        if attempt == 2:
            torch.save = die_in_write
        try:
            go()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    if attempt != 2:
        time.sleep(rng.uniform(0.15, 0.8) * duration)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "a resumed run failed"
    killed += os.WIFSIGNALED(status)
go()
print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the interpreter")
def test_killed_at_random_moments_and_resumed_gives_the_same_bits(straight, tmp_path):
    seed = str(np.random.SeedSequence().entropy % 1000)  # new moments in every test run
    done = subprocess.run([sys.executable, "-c", KILLER, repr(SMALL), str(tmp_path), seed], capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    assert int(done.stdout) >= 1, f"seed {seed}: no run was killed in time"
    assert_same_run(straight, tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*")), "a temporary file was left behind"


@pytest.mark.parametrize("step", [0, 1, 3, 8, 11])
def test_an_exception_leaves_a_closed_run_that_can_be_resumed(straight, tmp_path, monkeypatch, step):
    error = (Stop, KeyboardInterrupt)[step % 2]
    with breaking_at(monkeypatch, step, error):
        small(tmp_path)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(2, step + 1, 2))
    assert len(list_checkpoints(tmp_path / "run")) == min(2, step // 3)
    small(tmp_path, resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_number_of_workers_changes_nothing(straight, tmp_path, monkeypatch):
    small(tmp_path, name="two", workers=2)
    assert_same_run(straight, tmp_path / "two")
    with breaking_at(monkeypatch, 7):
        small(tmp_path, workers=2)
    assert not multiprocessing.active_children(), "loader processes were left behind"
    small(tmp_path, resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_a_damaged_newest_checkpoint_is_passed_over_and_set_aside(straight, tmp_path, monkeypatch):
    with breaking_at(monkeypatch, 10):
        small(tmp_path)
    older, newest = list_checkpoints(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-200])
    with pytest.warns(UserWarning, match=newest.name):
        result = small(tmp_path, resume=True, checkpoint_every=4, keep=1)
    assert_same_run(straight, tmp_path / "run")
    assert list_checkpoints(tmp_path / "run") == [result.checkpoint] and result.checkpoint.name == "step-00000012.pt"
    assert newest.with_name(newest.name + ".damaged").exists()


def test_nothing_starts_anew_in_silence(tmp_path):
    "Checkpoints of which none can be read are an error: weeks may lie in them."
    small(tmp_path, steps=3)
    for path in list_checkpoints(tmp_path / "run"):
        path.write_bytes(os.urandom(3000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match="None of the 1"):
            small(tmp_path, steps=3, resume=True)
    assert len(rows(tmp_path / "run")) == 2


def test_full_disk_leaves_the_old_checkpoint(straight, tmp_path, monkeypatch):
    whole = torch.save

    def full(state, path):
        if state["step"] == 9:
            Path(path).write_bytes(b"PK and a little more")
            raise OSError(28, "No space left on device")
        whole(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space"):
            small(tmp_path)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000003.pt", "step-00000006.pt"]
    assert not list((tmp_path / "run").glob(".*"))
    small(tmp_path, resume=True)
    assert_same_run(straight, tmp_path / "run")


def test_resuming_with_other_settings_names_them(straight):
    for wrong in (dict(lr=1e-4), dict(steps=24), dict(data_seed=1), dict(crop=(.5, 1.)),
                  dict(gamma=.2, temperature=.1)):
        with pytest.raises(ValueError, match="→") as caught:
            small(straight.parent, resume=True, **wrong)
        assert all(f"{key}: " in str(caught.value) for key in wrong)
        assert str(caught.value).count("→") == len(wrong)


def test_what_may_change_may_change(straight):
    before = rows(straight)
    result = small(straight.parent, resume=True, log_every=5, checkpoint_every=7, keep=3, workers=1, cache=True)
    assert rows(straight) == before and result.history[-1]["step"] == 12
    assert result.checkpoint == list_checkpoints(straight)[-1]
    known = set().union(*(annotations(type(PretrainConfig(method=name))) for name in METHODS))
    assert known >= MAY_CHANGE, "a setting was renamed"


def test_a_checkpoint_older_than_a_setting_can_be_resumed(tmp_path, straight):
    "A setting that the library did not have yet had the value that is its default now."
    path = list_checkpoints(straight)[-1]
    state = read_checkpoint(path)
    del state["config"]["clip_grad"], state["config"]["flip"]
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / path.name)
    assert small(tmp_path, resume=True).checkpoint.name == path.name
    with pytest.raises(ValueError, match="flip: 0.0 → 0.5"):
        small(tmp_path, resume=True, flip=.5)


def test_an_existing_run_is_not_overwritten(straight):
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("*")}
    with pytest.raises(ValueError, match="exists.*resume=True"):
        small(straight.parent)
    assert before == {p: p.stat().st_mtime_ns for p in straight.rglob("*")}


@pytest.mark.parametrize("name", ["..", ".", "../run", "/elsewhere/run", "a/b", "a/", "a\\b", "..\\run", "a\0b"])
def test_run_names_stay_inside(tmp_path, name):
    with pytest.raises(ValueError, match="one folder name"):
        small(tmp_path / "out", name=name)
    assert not any(tmp_path.iterdir())


def test_names_made_from_settings_differ_between_methods(tmp_path):
    configs = [PretrainConfig(out=str(tmp_path), seed=seed, distractor=d, negative=n)
               for seed in (0, 1) for d in ("none", "intra_frame") for n in ("none", "intra_video", "other_video")]
    folders = {run_folder(config) for config in configs}
    assert len(folders) == len(configs) and {f.parent for f in folders} == {tmp_path}


def test_wrong_settings_and_data_are_found_before_anything_is_written(tmp_path):
    for wrong in (dict(backbone="tinny"), dict(method="mocco"), dict(distractor="intra_fram"), dict(negative="some"),
                  dict(data=str(tmp_path / "no")), dict(leraning_rate=1), dict(device="cuda:99"),
                  dict(frames=99, short="drop")):
        with pytest.raises((ValueError, OSError)):
            small(tmp_path, **wrong)
    with pytest.raises(ValueError, match="scenebias-be"):
        pretrain("scenebias-bee", out=str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_no_steps_give_the_untrained_network(tmp_path):
    result = small(tmp_path, steps=0)
    config = PretrainConfig(**SMALL | dict(steps=0))
    assert result.checkpoint.name == "step-00000000.pt" and result.history == []
    assert_same(dict(load(result.checkpoint).state_dict()), dict(build_method(config).backbone.state_dict()))
    again = small(tmp_path, steps=0, resume=True)
    assert again.checkpoint == result.checkpoint


@pytest.mark.parametrize("settings", [
    dict(optimizer="sgd", schedule="step", lr=.01, head="linear"),
    dict(schedule="constant", clip_grad=.1, warmup_steps=0),
    dict(bn_groups=2, negative="none"),
    dict(negative="other_video", distractor="video_cutmix"),
    dict(amp="fp32", distractor="none"),
    pytest.param(dict(amp="bf16", queue_size=5, batch_size=7, distractor="inter_frame"), marks=needs_bf16),
    dict(short="clamp", frames=16, stride=4, momentum=0.),
], ids=lambda d: "-".join(map(str, d.values())))
def test_every_kind_of_run_trains(tmp_path, settings):
    result = small(tmp_path, **dict(steps=4) | settings)
    config = PretrainConfig(**SMALL | dict(steps=4) | settings)
    state = read_checkpoint(result.checkpoint)["method"]
    assert [row["step"] for row in result.history] == [2, 4]
    assert all(math.isfinite(v) for row in result.history for v in row.values())
    assert ("extra_negative" in result.history[0]) == (config.negative != "none")
    assert ("grad_norm" in result.history[0]) == (config.clip_grad > 0)
    assert state["queue.keys"].shape == (config.queue_size, config.dim)
    assert state["queue.pointer"] == 4 * config.batch_size % config.queue_size
    fresh = build_method(config).state_dict()
    assert any(not torch.equal(fresh[k], state[k]) for k in fresh if k.startswith("backbone.") and "weight" in k)
    if config.momentum == 0:
        weights = [k for k in state if k.startswith("backbone.") and "weight" in k]
        assert all(torch.equal(state["key_" + k], state[k]) for k in weights)
    assert not result.backbone.training


def test_gradients_reach_the_query_encoder_and_nothing_else():
    config = PretrainConfig(**SMALL | dict(clip_grad=.01))
    method = build_method(config).train()
    optimizer = build_optimizer(config, method)
    frozen = {k: p.detach().clone() for k, p in method.named_parameters() if k.startswith("key_")}
    batch = next(iter(build_loader(config, method.windows(config), build_source(config))))
    loss, metrics = method(Batch(batch["clips"], torch.Generator().manual_seed(0)))
    loss.backward()
    assert all(torch.equal(v, method.state_dict()[k]) for k, v in frozen.items()), "keys moved before the step"
    for name, p in method.named_parameters():
        learns = name.startswith(("backbone.", "head."))
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) == learns, name
        assert p.requires_grad == learns, name
    assert not any(v.requires_grad for v in metrics.values())
    train_step(method, batch, optimizer, 0, config)
    norm = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm()
    assert norm <= .01 * 1.001


def test_a_step_depends_on_its_number_and_the_seed_not_on_what_was_drawn_before():
    def loss(step, seed=0, noise=0):
        config = PretrainConfig(**SMALL | dict(seed=seed))
        method = build_method(override(config, seed=0)).train()
        draw = torch.Generator().manual_seed(9)
        batch = torch.randint(0, 256, (8, 2, 4, 3, 30, 30), dtype=torch.uint8, generator=draw)
        torch.rand(noise), np.random.rand(noise)  # noqa: NPY002
        return train_step(method, {"clips": batch}, build_optimizer(config, method), step, config)["loss"].item()
    assert loss(3) == loss(3, noise=5)
    assert len({loss(3), loss(4), loss(3, seed=1)}) == 3
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900


@pytest.mark.parametrize("steps, warmup", [(1, 0), (1, 5), (10, 10), (10, 50), (37, 4), (500, 0)])
def test_learning_rate_properties(steps, warmup):
    make = lambda **kw: PretrainConfig(steps=steps, warmup_steps=warmup, lr=.3, **kw)
    shapes = {name: [learning_rate(make(schedule=name), s) for s in range(steps)]
              for name in ("cosine", "step", "constant")}
    for name, rates in shapes.items():
        assert all(0 < r <= .3 * (1 + 1e-12) for r in rates), name
        rise = rates[:warmup]
        assert np.allclose(np.diff([0, *rise]), .3 / max(warmup, 1)), "linear from zero"
        fall = rates[warmup:]
        assert all(b <= a for a, b in itertools.pairwise(fall)) and (not fall or fall[0] == pytest.approx(.3))
    fall = shapes["cosine"][warmup:]
    assert np.allclose([a + b for a, b in zip(fall[1:], fall[:0:-1])], .3), "the cosine is symmetric about its middle"
    counts = [sum(math.isclose(r, .3 * .1**k) for r in shapes["step"][warmup:]) for k in range(3)]
    assert sum(counts) == max(0, steps - warmup)
    assert set(shapes["constant"][warmup:]) <= {.3}


def test_history_and_tensorboard_agree(tmp_path, monkeypatch):
    "Also after a resume: every step once, no piece of a curve doubled or lost."
    with breaking_at(monkeypatch, 8):
        small(tmp_path)
    history = small(tmp_path, resume=True).history
    assert [row["step"] for row in history] == [2, 4, 6, 8, 10, 12]
    assert [{k: v for k, v in row.items() if k != "clips_per_second"} for row in history] == rows(tmp_path / "run")
    similarities = {"positive", "queue", "extra_negative"}
    monitors = {"alignment", "uniformity", "spread", "queue_age"}
    assert set(history[0]) == {"step", "loss", "accuracy", "lr", "clips_per_second"} | similarities | monitors
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    for key in set(history[0]) - {"step"}:
        curve = {event.step: event.value for event in board.Scalars(f"pretrain/{key}")}
        assert list(curve) == [row["step"] for row in history] == [e.step for e in board.Scalars(f"pretrain/{key}")]
        if key != "clips_per_second":
            assert np.allclose(list(curve.values()), [row[key] for row in history])


def test_a_start_from_nothing_clears_the_curves_of_a_run_that_never_got_to_a_checkpoint(tmp_path, monkeypatch):
    for resume in (False, True, False):
        with breaking_at(monkeypatch, 2):
            small(tmp_path, resume=resume)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert [row["step"] for row in rows(tmp_path / "run")] == [2]


def test_history_survives_torn_lines(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    history = History(tmp_path, 5)
    history.add({"step": 4, "loss": .5})
    history.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [1, 2, 4]


def test_messages_say_what_a_user_needs(tmp_path, capsys, monkeypatch):
    settings = PretrainConfig(**SMALL | dict(out=str(tmp_path), name="run"))
    with breaking_at(monkeypatch, 5, KeyboardInterrupt):
        pretrain(settings)
    said = capsys.readouterr().out
    assert "run" in said and "12 steps of 8" in said and f"{math.log(1 + 32 + 1):.3f}" in said and "resume=True" in said
    pretrain(settings, resume=True)
    assert "resuming at step 3" in capsys.readouterr().out
    pretrain(settings, resume=True, progress=False)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def write_video(path, frames, seed):
    "A small real video: a square that moves over noise."
    rng = np.random.default_rng(seed)
    back, colour = rng.integers(0, 200, (48, 64, 3)), rng.integers(100, 256, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            picture = back.copy()
            x = int(24 + 20 * math.sin(t / 4 + seed))
            picture[16:32, x:x + 16] = colour
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_real_videos(tmp_path, monkeypatch):
    folder = tmp_path / "videos [real] #1"
    folder.mkdir()
    names = [f"clip {i} [x]#.mp4" for i in range(6)]
    for i, name in enumerate(names):
        write_video(folder / name, 12 + 3 * i, i)
    (folder / "train.txt").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    settings = dict(data=str(folder), frame_size=(32, 40), steps=4, batch_size=4, log_every=1)
    small(tmp_path, name="straight", **settings)
    with breaking_at(monkeypatch, 3):
        small(tmp_path, **settings)
    result = small(tmp_path, **settings, resume=True, cache=True, workers=1)
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    assert all(math.isfinite(row["loss"]) for row in result.history)
    (folder / names[2]).write_bytes(b"no video")
    with pytest.raises(VideoError, match="clip 2"):
        small(tmp_path, name="broken", **settings)
    assert not (tmp_path / "broken").exists()
    with pytest.warns(UserWarning, match="1 of 6"):
        small(tmp_path, name="skipping", **settings | dict(steps=1), on_error="skip")


class Counting(Method):
    "A method of a stranger: three windows, dropout and a buffer; it knows neither queue nor key."

    def __init__(self, backbone, views=None):
        super().__init__()
        self.views, self.backbone, self.drop = Views() if views is None else views, backbone, torch.nn.Dropout(.5)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @classmethod
    def windows(cls, config):
        return Windows(3, apart=2)

    def reference_loss(self, batch_size):
        return 1.

    def forward(self, batch):
        assert batch.clips.shape[1:3] == (3, 4) and batch.clips.dtype == torch.uint8
        assert batch.starts.shape == (len(batch), 3) and len(batch.index) == len(batch)
        assert batch.progress in (0., self.steps / 6)  # 0: the look before a resumed run goes on
        found = [self.drop(self.backbone(self.views.clean(batch, window)).float()) for window in range(3)]
        return torch.stack(found).square().mean(), {"seen": self.steps.float()}

    def after_step(self, progress=0.):
        self.steps += 1
        assert progress == (self.steps - 1) / 6


def test_a_method_that_the_trainer_has_never_heard_of(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "counting", Counting)
    small = lambda **changes: pretrain(override(COUNTING, **changes), progress=False, out=str(tmp_path))
    COUNTING = PretrainConfig(method="counting",
                              **{k: v for k, v in SMALL.items() if k != "queue_size"} | dict(steps=6))
    small(name="straight")
    with breaking_at(monkeypatch, 4):
        small(name="run")
    result = small(name="run", resume=True)
    assert_same_run(tmp_path / "straight", tmp_path / "run")
    assert result.history[-1]["seen"] == 4.5 and read_checkpoint(result.checkpoint)["method"]["steps"] == 6
    assert load(result.checkpoint).feature_dim == result.backbone.feature_dim


def test_everything_that_scripts_import_from_the_roof_is_there():
    assert {"pretrain", "finetune", "train_step", "METHODS", "Diverged", "Stopped", "PretrainResult",
            "reproduce"} == set(T.__all__)
    assert all(hasattr(T, name) for name in T.__all__) and T.METHODS is METHODS and T.train_step is train_step


@pytest.mark.parametrize("method, halves",
                         [("triplet", dict(negative="none")), ("simclr", {}), ("simclr", dict(distractor="none")),
                                            ("pace", {}), ("order", dict(gap=1))], ids=str)
def test_a_method_is_chosen_by_a_keyword(tmp_path, method, halves):
    result = pretrain(method=method, progress=False, out=str(tmp_path),
                      **dict(steps=2, data_size=16, batch_size=8, size=16, frames=4, log_every=1) | halves)
    assert [row["step"] for row in result.history] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in result.history)
    saved = read_checkpoint(result.checkpoint)["config"]
    assert saved["method"] == method and halves.items() <= saved.items() and "queue_size" not in saved
