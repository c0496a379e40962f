"""CoCLR against loops: several positives, mining, the flow that travels with the clips, and labels as upper bound."""
import math

import pytest
import torch

from be_nb.data.scenebias import FlowFrames, SceneBias
from be_nb.data.sources import build_loader, build_source
from be_nb.losses import info_nce, unit
from be_nb.methods.base import Batch, build_method, Windows
from be_nb.methods.coclr import CoCLR, nearest, several_nce
from be_nb.settings import PretrainConfig
from be_nb.training.run import build
from be_nb.training.step import build_optimizer, train_step

SMALL = dict(method="coclr", data_size=12, batch_size=4, frames=4, size=16, dim=8, queue_size=8, steps=8,
             warmup_steps=0)


def random(*shape, seed=0):
    return unit(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def test_without_further_positives_it_is_info_nce():
    query, key, queue, extra = random(5, 8), random(5, 8, seed=1), random(7, 8, seed=2), random(5, 2, 8, seed=3)
    none = torch.zeros(5, 7, dtype=torch.bool)
    assert torch.allclose(several_nce(query, key, queue, none, extra, .1)[0], info_nce(query, key, queue, extra, .1))
    assert several_nce(query, key, queue, ~none, None, .1)[0].abs() < 1e-6


def test_several_positives_are_one_sum():
    query, key, queue, extra = random(5, 8), random(5, 8, seed=1), random(7, 8, seed=2), random(5, 2, 8, seed=3)
    also = torch.rand(5, 7, generator=torch.Generator().manual_seed(4)) < .4
    loss, accuracy = several_nce(query, key, queue, also, extra, .2)
    losses, hits = [], []
    for i in range(5):
        good = [float(query[i] @ key[i]), *(float(query[i] @ k) for j, k in enumerate(queue) if also[i, j])]
        bad = [*(float(query[i] @ k) for j, k in enumerate(queue) if not also[i, j]), *(extra[i] @ query[i]).tolist()]
        top, rest = sum(math.exp(x / .2) for x in good), sum(math.exp(x / .2) for x in bad)
        losses.append(-math.log(top / (top + rest)))
        hits.append(max(good) > max(bad))
    assert loss.item() == pytest.approx(sum(losses) / 5, rel=1e-5) and accuracy.item() == pytest.approx(sum(hits) / 5)


def test_mining_is_a_sort():
    keys, queue, real = random(6, 8), random(20, 8, seed=1), torch.arange(20) % 3 > 0
    found = nearest(keys, queue, real, 4)
    for i in range(6):
        order = sorted((j for j in range(20) if real[j]), key=lambda j: -float(keys[i] @ queue[j]))
        assert found[i].nonzero().flatten().tolist() == sorted(order[:4])


def test_noise_is_never_mined():
    "Two steps of four clips in a queue of twelve: the last four rows are its random start."
    config = PretrainConfig(**SMALL | dict(queue_size=12, alone=0.0, nearest=12))
    method = build_method(config).train()
    optimizer = build_optimizer(config, method)
    found = list(build_loader(config, CoCLR.windows(config), build_source(config)))
    counts = [train_step(method, found[k], optimizer, k, config)["right"].item() for k in range(3)]
    assert counts == [0, 4, 8]
    for k in range(3):
        rows = method.whose.keys[4 * k:4 * k + 4]
        assert rows[:, 0].tolist() == found[k]["index"].tolist() and rows[:, 1].tolist() == found[k]["label"].tolist()


@pytest.mark.parametrize("progress, alone", [(.4, .5), (.6, .5)])
def test_each_is_told_by_the_other(progress, alone):
    method = build_method(PretrainConfig(**SMALL, alone=alone, nearest=2))
    method.whose.keys[:, 0], method.whose.keys[:, 1] = torch.arange(8), -1
    keys, mine = [random(3, 8, seed=5), random(3, 8, seed=6)], torch.tensor([[100., -1], [5, -1], [101, -1]])
    frames, flow = method.choose(keys, mine, progress)
    if progress < alone:
        assert not frames.any() and not flow.any()
        return
    everything, same = torch.ones(8, dtype=torch.bool), mine[:, :1] == torch.arange(8)
    assert torch.equal(frames, same | nearest(keys[1], method.flow.queue.keys, everything, 2))
    assert torch.equal(flow, same | nearest(keys[0], method.queue.keys, everything, 2))
    assert frames[1, 5] and flow[1, 5]  # an older key of the same video


def test_labels_are_the_right_answers():
    config = PretrainConfig(**SMALL, positives="labels")
    found = list(build_loader(config, CoCLR.windows(config), build_source(config)))
    method = build_method(config).train()
    optimizer = build_optimizer(config, method)
    for k in range(2):
        train_step(method, found[k], optimizer, k, config)
    known = torch.cat([found[0]["label"], found[1]["label"]])
    expected = (found[2]["label"][:, None] == known).sum(1).float().mean()
    assert train_step(method, found[2], optimizer, 2, config)["right"] == expected
    for wrong in (dict(label=None), dict(label=torch.tensor([0, -1, 2, 3])), dict(index=None, label=found[0]["label"])):
        with pytest.raises(ValueError, match="label for each"):
            method(Batch(found[0]["clips"], **dict(index=found[0]["index"]) | wrong))


def test_flow_pictures_are_the_flow():
    source = SceneBias("pretrain", size=4)
    seen, flow = FlowFrames(source), source.flow(2)
    found = seen.read(2, [0, 7, 39, 38])
    assert found.shape == (4, 6, 30, 30) and torch.equal(found[:, :3], source.read(2, [0, 7, 39, 38]))
    for row, number in ((0, 0), (1, 7), (2, 38), (3, 38)):  # of the last frame nothing follows
        back = (found[row, 3:5].float() - 128) * 30 / 4 / 127
        inside = flow[number].abs() < 7.4
        assert (back - flow[number])[inside].abs().max() < .03 + 1e-4 and inside.float().mean() > .8
    assert (found[:, 5] == 128).all() and len(seen) == 4 and seen.num_frames(1) == 40
    with pytest.raises(ValueError, match="differences"):
        FlowFrames(object())


def test_clips_of_a_run_carry_their_flow():
    config = PretrainConfig(**SMALL)
    asked, source = CoCLR.windows(config), build_source(config)
    assert asked == Windows(2, apart=4, flow=True)
    assert not CoCLR.windows(PretrainConfig(**SMALL, second="differences")).flow
    found = next(iter(build_loader(config, asked, source)))
    one = FlowFrames(source).read(int(found["index"][1]), torch.arange(4) + found["starts"][1, 1])
    assert torch.equal(found["clips"][1, 1], one)


def test_differences_need_no_flow():
    config = PretrainConfig(**SMALL, second="differences")
    method = build_method(config).train()
    clips = torch.randint(0, 256, (4, 2, 4, 3, 20, 20), generator=torch.Generator().manual_seed(0)).byte()
    loss, _ = method(Batch(clips, torch.Generator().manual_seed(0), torch.arange(4)))
    assert loss.isfinite()
    seen = []
    method.flow.backbone.stages.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    method(Batch(clips[:, :, :1].expand_as(clips), index=torch.arange(4)))
    assert seen[0].abs().max() == 0  # where nothing moves there is nothing to see


@pytest.mark.parametrize("joint", [False, True])
def test_the_knobs_of_moco_are_there(joint):
    "Several negatives of the frames, in one pass with the query or in a pass of their own; none for the flow."
    config = PretrainConfig(**SMALL, negatives=2, joint=joint)
    assert CoCLR.windows(config) == Windows(3, apart=4, flow=True) and CoCLR.passes(config) == 8 + 2 * 3
    method, seen = build(config).train(), []
    for network in (method.backbone, method.flow.backbone):
        network.stages.register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    loss, metrics = method(Batch(next(iter(build_loader(config, CoCLR.windows(config), build_source(config))))["clips"],
                                 torch.Generator().manual_seed(0), torch.arange(4)))
    assert loss.isfinite() and seen == ([12, 4] if joint else [4, 8, 4])
    assert method.reference_loss(4) == pytest.approx((math.log(1 + 8 + 2) + math.log(1 + 8)) / 2)
