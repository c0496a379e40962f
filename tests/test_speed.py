"""The switches of a step: the same step with and without. What needs a GPU is skipped where there is none."""
import functools

import pytest
import torch
from torch import nn

from be_nb.augment import Augment
from be_nb.backbones import create_backbone
from be_nb.config import override
from be_nb.data.sources import build_loader, build_source
from be_nb.machine.speed import compile_backbone, compile_method, keep_buffers, prefetch, recompute
from be_nb.methods.base import Batch, Views
from be_nb.moco import MoCo
from be_nb.settings import PretrainConfig
from be_nb.training.run import build
from be_nb.training.step import build_optimizer, train_step

SMALL = PretrainConfig(data_size=32, batch_size=4, queue_size=16, size=16, frames=4, steps=6, warmup_steps=2)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def batches(count):
    clips = lambda: torch.randint(0, 256, (2, 2, 4, 3, 20, 20)).byte()
    return [{"clips": clips(), "index": torch.tensor([i, i + 1])} for i in range(count)]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_prefetch_gives_the_loaders_batches(count, ahead, device):
    given = batches(count)
    found = list(prefetch(iter(given), torch.device(device), ahead))
    assert len(found) == count
    for a, b in zip(given, found):
        assert b["clips"].device.type == device and b["index"] is a["index"]
        assert torch.equal(a["clips"], b["clips"].cpu())


@pytest.mark.parametrize("name, size", [("tiny", 16), ("r3d18", 16), ("s3dg", 32)])
def test_recomputed_activations_give_the_same_bits(name, size):
    "Weights' gradients and running statistics, with two passes through the backbone before the backward pass."
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        method = MoCo(create_backbone(name), dim=8, queue_size=8, views=Views(Augment(size))).train()
        if again:
            recompute(method.backbone)
        clips = torch.randint(0, 256, (2, 2, 8, 3, 40, 40), generator=torch.Generator().manual_seed(1)).byte()
        loss, _ = method(Batch(clips, torch.Generator().manual_seed(2)))
        loss.backward()
        gradients = [p.grad for p in method.parameters() if p.requires_grad]
        found.append([loss.detach(), *gradients, *method.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def first_losses(config, method):
    "The losses of three steps."
    optimizer = build_optimizer(config, method)
    loader = build_loader(config, method.windows(config), build_source(config))
    return [train_step(method, batch, optimizer, step, config)["loss"].item() for step, batch in zip(range(3), loader)]


def test_buffers_are_kept_also_after_an_error():
    layer = nn.BatchNorm1d(3)

    def fail():
        with keep_buffers(layer):
            layer(torch.randn(5, 3))
            assert layer.num_batches_tracked == 1 and layer.running_mean.any()
            raise KeyError
    with pytest.raises(KeyError):
        fail()
    assert layer.num_batches_tracked == 0 and not layer.running_mean.any()


def test_switches_change_nothing_but_the_last_bits():
    losses = {}
    for name, changes in {"plain": {}, "joint": dict(joint=True), "not fused": dict(fused=False),
                          **{order: dict(memory_order=order) for order in ("default", "channels_last")}}.items():
        config = override(SMALL, amp="fp32", **changes)
        losses[name] = first_losses(config, build(config).train())
    for name, values in losses.items():
        assert values == pytest.approx(losses["plain"], abs=1e-3), name


@pytest.fixture
def graphs(monkeypatch):
    "Lengths of the graphs that the compiler's front end makes. They run as they are, and a split is always an error."
    found = []
    backend = lambda graph, example: found.append(len(graph.graph.nodes)) or graph.forward
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


@pytest.mark.parametrize("name, frames, size",
                         [("r3d18", 8, 16), ("c3d", 16, 64), ("i3d", 8, 32), ("tv_mc3_18", 8, 16)])
def test_a_backbone_is_one_graph(graphs, name, frames, size):
    net = create_backbone(name).train()
    assert compile_backbone(net, torch.randn(2, 3, frames, size, size), "fp32") == "whole"
    assert len(graphs) == 1 and graphs[0] > len([m for m in net.modules() if not list(m.children())])
    net.eval()(torch.randn(1, 3, frames, size, size))
    assert len(graphs) == 1, "tests of features must not be compiled"


def test_a_compiled_step_is_the_same_step(graphs):
    "Bit for bit, since the graphs are run without any kernels written for them; also with groups and joint batches."
    for changes in ({}, dict(bn_groups=2), dict(joint=True), dict(hue=.4, contrast=.2)):
        config, losses = override(SMALL, amp="fp32", **changes), []
        for compiled in (False, True):
            method = build(config).train()
            if compiled:
                torch.compiler.reset()
                example = torch.randn(4 * (1 + config.joint), 3, config.frames, config.size, config.size)
                assert set(compile_method(method, example, "fp32").values()) == {"whole"}
                count = len(graphs)
            losses.append(first_losses(config, method))
        assert len(graphs) > count, "neither augmentation nor distractor was compiled"
        assert losses[0] == losses[1], changes


@pytest.mark.cuda
@gpu
def test_no_wait_inside_a_step():
    "PyTorch raises for every operation that lets the processor wait for the GPU."
    device = torch.device("cuda")
    for changes in ({}, dict(bn_groups=2, clip_grad=1.0), dict(accumulate=2),
                    dict(joint=True, activations="recompute")):
        config = override(SMALL, **changes)
        method = build(config).to(device).train()
        optimizer = build_optimizer(config, method)
        loader = build_loader(config, method.windows(config), build_source(config), pin=True)
        for step, batch in enumerate(prefetch(loader, device)):
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may set things up
            try:
                train_step(method, batch, optimizer, step, config)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@gpu
def test_the_update_is_fused_on_a_gpu():
    for optimizer in ("adamw", "sgd"):
        for fused in (True, False):
            config = override(SMALL, optimizer=optimizer, fused=fused)
            group = build_optimizer(config, build(config).cuda()).param_groups[0]
            assert bool(group["fused"]) == fused
