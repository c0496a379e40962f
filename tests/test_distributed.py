"""Several ranks: the layout must not matter, errors must be heard by all, and nobody waits for the dead."""
import math
import os
import signal
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import exit_codes, free_port, joined, on_ranks

import be_nb.train as T
import be_nb.training.run as R
from be_nb.config import override
from be_nb.data.scenebias import SceneBias
from be_nb.data.sources import build_loader, build_source
from be_nb.machine.device import average_, gather, own_rows, rank
from be_nb.machine.distributed import gather_objects, on_main, process_group, wrap
from be_nb.methods.base import Batch, build_method
from be_nb.saving.checkpoint import list_checkpoints, read_checkpoint
from be_nb.settings import PretrainConfig
from be_nb.train import pretrain
from be_nb.training.step import accumulate_gradient, as_batch, build_optimizer, seed_of, train_step
from be_nb.training.watch import shared_features

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the interpreter")

SMALL = PretrainConfig(data_size=64, batch_size=4, queue_size=14, size=16, frames=4, steps=20, warmup_steps=3,
                       log_every=1, checkpoint_every=8, amp="fp32", optimizer="sgd", lr=0.02, bn_groups=2, dim=16)


def same_run(one, other):
    "Two runs agree up to the last bits of sums."
    a, b = (read_checkpoint(list_checkpoints(folder)[-1]) for folder in (one, other))
    assert a["step"] == b["step"]
    assert a["config"] == b["config"] | {k: a["config"][k] for k in ("name", "out", "resume")}
    assert a["videos"] == b["videos"] and a["method"].keys() == b["method"].keys()
    for name, value in a["method"].items():
        assert torch.allclose(value, b["method"][name], atol=2e-5, rtol=1e-4), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "20 steps in one process."
    folder = tmp_path_factory.mktemp("alone")
    return pretrain(SMALL, progress=False, out=str(folder), name="alone")


def test_two_ranks_are_one_process_with_two_groups(alone, tmp_path):
    "1×4 and 2×2: losses, metrics, queue and its order, weights, running statistics."
    def run():
        result = pretrain(SMALL, progress=False, out=str(tmp_path), name="two")
        return result.history, str(result.checkpoint)
    (history, path), (other, same_path) = on_ranks(2, run, tmp_path)
    assert path == same_path and len(history) == len(other) == len(alone.history) == 20
    for rows in zip(alone.history, history, other):
        for key in rows[0].keys() - {"clips_per_second"}:
            assert all(math.isclose(rows[0][key], row[key], rel_tol=1e-4, abs_tol=1e-5)
                       for row in rows[1:]), (key, rows)
        assert abs(rows[0]["loss"] - rows[1]["loss"]) < 1e-5
    same_run(alone.checkpoint.parent, tmp_path / "two")
    assert len((tmp_path / "two" / "history.jsonl").read_text().splitlines()) == 20  # one writer
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("changes", [dict(negative="other_video", distractor="inter_frame", batch_size=8, bn_groups=4),
                                     dict(joint=True, distractor="video_cutmix"),
                                     dict(activations="recompute", clip_grad=.5)],
                         ids=["borrowing", "one pass", "recompute"])
def test_every_kind_of_step_is_the_same_on_two_ranks(tmp_path, changes):
    run = lambda name: pretrain(SMALL, progress=False, out=str(tmp_path), name=name, steps=4, checks=False, **changes)
    run("one")
    on_ranks(2, lambda: run("two") and None, tmp_path)
    same_run(tmp_path / "one", tmp_path / "two")


def loader_of(config):
    method = build_method(config)
    return build_loader(config, method.windows(config), build_source(config))


def without_bn(config):
    "A method in which a clip does not hear of its neighbours."
    method = R.build(config).train()
    for net in (method.backbone, method.key_backbone):
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm3d):
                layer.eval()
    return method


def steps_of(config, count=3):
    "Weights and queue after a few steps, in however many ranks and parts."
    method = without_bn(config)
    wrapped, optimizer = wrap(method), build_optimizer(config, method)
    losses = [train_step(wrapped, batch, optimizer, step, config)["loss"].item()
              for step, batch in zip(range(count), loader_of(config))]
    return losses, {k: v.numpy() for k, v in method.state_dict().items()}


def test_parts_and_ranks_are_the_whole_batch(tmp_path):
    "Without BatchNorm: 1×8, 8 in two parts, and 2 ranks × 2 parts × 2 clips."
    whole = override(SMALL, batch_size=8)
    losses, state = steps_of(whole)
    cut = override(whole, accumulate=2)
    for other, found in (steps_of(cut), *on_ranks(2, joined(lambda: steps_of(cut)), tmp_path)):
        assert np.allclose(losses, other, atol=1e-5)
        assert state.keys() == found.keys()
        for name, value in state.items():
            assert np.allclose(value, found[name], atol=1e-5), name


def test_with_batch_norm_a_part_is_a_group(tmp_path):
    "The gradient of two parts is the mean of the gradients of two halves, each with half of the draw."
    config = override(SMALL, batch_size=8, bn_groups=1)
    found = next(iter(loader_of(config)))
    method = build_method(config).train()
    for part in as_batch(found, 0, config).cut(2):
        accumulate_gradient(method, part, 0, config)
    ours = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
    halves = []
    for k, part in enumerate(found["clips"].chunk(2)):
        fresh = build_method(config).train()
        draw = torch.Generator().manual_seed(seed_of(config.seed, 0))
        fresh(Batch(part, draw, part=k, parts=2))[0].backward()
        halves.append(torch.cat([p.grad.flatten() for p in fresh.parameters() if p.grad is not None]))
    assert torch.allclose(ours, sum(halves) / 2, atol=1e-5)
    assert method.backbone.stages[0][1].num_batches_tracked == 4  # query and negative, twice


Pair = namedtuple("Pair", "numbers seed")


@given(pieces=st.integers(1, 4), rows=st.integers(1, 5), seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_pieces_of_a_draw_are_the_draw(pieces, rows, seed):
    def draw(part, parts, count):
        batch = Batch(torch.zeros(count, 1), torch.Generator().manual_seed(seed), part=part, parts=parts)
        return batch.rows(lambda n, generator: Pair(torch.rand(n, 3, generator=generator), 5))
    whole = draw(0, 1, rows * pieces)
    found = [draw(k, pieces, rows) for k in range(pieces)]
    assert torch.equal(torch.cat([f.numbers for f in found]), whole.numbers) and {f.seed for f in found} == {5}


def test_messages_between_three_ranks(tmp_path):
    def talk():
        mine = torch.arange(2.) + 10 * rank()
        everyone, objects = gather(mine), gather_objects("x" * rank())
        a, b = torch.full((2, 2), float(rank())), torch.tensor(3. * rank())
        average_([a, b])
        with pytest.raises(ValueError, match="only rank 0 knows"):
            on_main(lambda: (_ for _ in ()).throw(ValueError("only rank 0 knows")))
        known = on_main(os.getpid)
        return everyone.tolist(), own_rows(everyone).tolist() == mine.tolist(), objects, a.tolist(), b.item(), known
    found = on_ranks(3, joined(talk), tmp_path)
    expected = ([0, 1, 10, 11, 20, 21], True, ["", "x", "xx"], [[1, 1], [1, 1]], 3.0)
    assert all(f[:-1] == expected for f in found) and len({f[-1] for f in found}) == 1


def test_uneven_features_are_all_there_once(tmp_path):
    config, source = override(SMALL, frames=4), SceneBias("probe", size=7)
    features = lambda: shared_features(build_method(config).backbone, source, config)
    x, y = features()
    assert len(x) == 7 and y.tolist() == [int(source.labels[i]) for i in range(7)]
    for a, b in on_ranks(2, joined(features), tmp_path):
        assert torch.equal(b, y) and torch.allclose(a, x, atol=1e-5)


@pytest.mark.parametrize("changes, ranks, says", [
    (dict(batch_size=6), 4, "8 can"), (dict(accumulate=3), 1, "6 can"),
    (dict(bn_groups=3, batch_size=6), 2, "multiple of"), (dict(bn_groups=4, accumulate=2), 1, "at most the 2"),
    (dict(accumulate=2, negative="other_video"), 1, "borrows"),
    (dict(accumulate=2, distractor="video_mixup"), 1, "borrows"),
    (dict(compile=True, activations="recompute"), 1, "use it without")])
def test_a_batch_that_cannot_be_cut_is_refused(monkeypatch, changes, ranks, says):
    monkeypatch.setattr(R, "world_size", lambda: ranks)
    with pytest.raises(ValueError, match=says):
        R.fit_to_ranks(override(SMALL, **changes))


def test_groups_are_never_fewer_than_ranks(monkeypatch):
    monkeypatch.setattr(R, "world_size", lambda: 4)
    assert R.fit_to_ranks(override(SMALL, bn_groups=1)).bn_groups == 4
    assert R.fit_to_ranks(override(SMALL, bn_groups=8, batch_size=8)).bn_groups == 8


def signalled_in_rank_1(folder, at, number):
    "A run whose second rank gets a signal in the middle of a step; call it in each rank."
    def run():
        def step_and_signal(method, batch, optimizer, step, config):
            if step == at and rank() == 1:
                os.kill(os.getpid(), number)
            return train_step(method, batch, optimizer, step, config)
        T.train_step = step_and_signal  # in this process, which ends with the run
        pretrain(SMALL, progress=False, out=str(folder), name="run", checks=False)
    return run


def test_a_rank_that_dies_takes_the_others_along_and_the_next_start_goes_on(alone, tmp_path):
    codes, _ = exit_codes(2, signalled_in_rank_1(tmp_path, 10, signal.SIGKILL), tmp_path)  # it returns
    assert codes == [1, -signal.SIGKILL]
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000008.pt"]
    pretrain(SMALL, progress=False, out=str(tmp_path), name="run", resume=True)  # now in one process
    same_run(alone.checkpoint.parent, tmp_path / "run")


def test_a_wish_to_stop_is_shared(tmp_path):
    codes, _ = exit_codes(2, signalled_in_rank_1(tmp_path, 4, signal.SIGTERM), tmp_path)
    assert codes == [0, 0] and [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000005.pt"]


def leave_by(way):
    "A little learning in a group that is left in good order, or by an exception; call it in each rank."
    def run():
        with process_group("cpu"):
            wrapped = wrap(torch.nn.Linear(50, 50))
            wrapped(torch.ones(4, 50)).sum().backward()
            if way == "exit":
                raise SystemExit(0)
        assert wrapped.reducer is None
    return run


@pytest.mark.parametrize("way", ["return", "exit"])
def test_leaving_the_group_never_hangs(tmp_path, way):
    "What a wrapped module holds of the group must go before the group, or its threads and Python wait for each other."
    for _ in range(15):
        assert exit_codes(2, leave_by(way), tmp_path)[0] == [0, 0]


def test_torchrun_starts_the_command_line(tmp_path):
    words = ("pretrain --data-size 16 --batch-size 4 --queue-size 8 --size 16 --frames 4 --steps 2 --warmup-steps 1 "
             "--name run")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
               "-m", "be_nb.cli", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint: runs/run/step-00000002.pt") == 1 and "2 ranks" in done.stdout
    assert read_checkpoint(tmp_path / "runs/run/step-00000002.pt")["config"]["bn_groups"] == 2
    assert "destroy_process_group" not in done.stderr  # PyTorch's complaint about a group that was left open
