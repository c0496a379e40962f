"""Whole training steps and evaluation "on cuda" without a GPU: nothing waits for the GPU, nothing mixes devices."""

import pytest
import torch
from paper import DEVICE, HostWaits, MixedDevices, OnPaper

from be_nb.config import override
from be_nb.data.sets import set_of
from be_nb.distractor import VARIANTS
from be_nb.methods import METHODS
from be_nb.recipes import recipe, RECIPES
from be_nb.settings import PretrainConfig
from be_nb.training.run import build
from be_nb.training.step import build_optimizer, train_step

SMALL = dict(batch_size=4, frames=4, size=24, warmup_steps=1, amp="bf16", fused=False, device="cuda")


@pytest.fixture(autouse=True)
def gradients_on_paper(monkeypatch):
    "The backward pass of a CUDA build wants a driver: on paper every parameter that learns gets a gradient."
    def backward(loss, *args, **kwargs):
        assert loss.requires_grad and loss.device == DEVICE and loss.ndim == 0
        for p in backward.learning:
            p.grad = torch.empty_like(p)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    backward.learning = []
    return backward


def step_on_paper(config, backward, frame_size=(30, 30)):
    "One step as `be_nb.train` takes it, after the method has been set up; returns the metrics."
    with OnPaper() as paper:
        method = build(config).to(DEVICE).train()
        backward.learning = [p for p in method.parameters() if p.requires_grad]
        optimizer = build_optimizer(config, method)
        asked = method.windows(config)
        channels = 3 + 3 * asked.flow
        shape = (config.batch_size, asked.count, asked.frames or config.frames, channels, *frame_size)
        found = {"clips": torch.zeros(shape, dtype=torch.uint8).to(DEVICE, non_blocking=True),
                 "index": torch.arange(config.batch_size), "starts": torch.zeros(shape[:2], dtype=torch.long)}
        paper.strict = True
        return train_step(method, found, optimizer, 0, config)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_waits(name, gradients_on_paper):
    config = PretrainConfig(method=name, **SMALL)
    metrics = step_on_paper(config, gradients_on_paper)
    assert metrics["loss"].device == DEVICE and all(m.device == DEVICE and m.ndim == 0 for m in metrics.values())


FULL = sorted({(r.config.backbone, r.config.method): name for name, r in RECIPES.items()
               if isinstance(r.config, PretrainConfig) and set_of(r.config.data)}.values())


@pytest.mark.parametrize("name", FULL)
def test_full_size_recipes_take_a_step(name, gradients_on_paper):
    "Frames, sides and batches of the paper's rows, as they are: shapes fit through network, head and loss."
    config = recipe(name, device="cuda", fused=False, amp="bf16")
    metrics = step_on_paper(config, gradients_on_paper, config.frame_size)
    assert metrics["loss"].ndim == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_distractor_waits(variant, gradients_on_paper):
    step_on_paper(PretrainConfig(distractor=variant, **SMALL), gradients_on_paper)


@pytest.mark.parametrize("change", [
    dict(accumulate=2), dict(clip_grad=1.0), dict(joint=True), dict(bn_groups=2), dict(negative="other_video"),
    dict(negative="none"), dict(amp="fp32"), dict(optimizer="sgd"), dict(activations="recompute"),
    dict(degrees=10.0, flip=0.5)], ids=str)
def test_no_switch_waits(change, gradients_on_paper):
    step_on_paper(override(PretrainConfig(**SMALL), **change), gradients_on_paper)


def faults():
    "Faults as they are made, each with what it must raise."
    def item(x): return x.sum().item()
    def branch(x): return 1 if x.sum() > 0 else 0
    def listed(x): return x[:, [0, 1]]
    def masked(x): return x[x > 0]
    def blocking(x): return x + torch.ones(4, 4).to(x.device)
    def fetched(x): return x.cpu()
    def mixed(x): return x + torch.ones(4, 4)
    def generator(x): return torch.rand(4, device=x.device, generator=torch.Generator())
    return [(item, HostWaits), (branch, HostWaits), (listed, RuntimeError), (masked, HostWaits), (blocking, HostWaits),
            (fetched, HostWaits), (mixed, MixedDevices), (generator, MixedDevices)]


@pytest.mark.parametrize("fault, error", faults(), ids=lambda x: getattr(x, "__name__", ""))
def test_planted_faults_are_found(fault, error):
    with OnPaper() as paper:
        x = torch.ones(4, 4).to(DEVICE)
        paper.strict = True
        with pytest.raises(error):
            fault(x)
