"""What only a GPU can show: the same losses as on the CPU, asynchronous copies, recomputation and memory as planned."""
from pathlib import Path

import pytest
import torch

from be_nb.config import override
from be_nb.machine.speed import prefetch
from be_nb.methods import METHODS
from be_nb.settings import PretrainConfig
from be_nb.studies.plan import trace
from be_nb.training.run import restore
from be_nb.training.step import train_step

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SMALL = PretrainConfig(batch_size=8, frames=4, size=24, warmup_steps=1, amp="fp32")


def batches(config, count):
    "Random clips (b, windows, t, c, h, w), the same every time."
    method = restore(config, Path(), torch.device("cpu"), None).method
    asked, draw = method.windows(config), torch.Generator().manual_seed(0)
    shape = config.batch_size, asked.count, asked.frames or config.frames
    for _ in range(count):
        yield {"clips": torch.randint(0, 256, (*shape, 3, 30, 30), dtype=torch.uint8, generator=draw),
               "index": torch.arange(shape[0]), "starts": torch.zeros(shape[:2], dtype=torch.long)}


def losses(config, device, count=3):
    run = restore(config, Path(), torch.device(device), None)
    found = prefetch(iter(list(batches(config, count))), torch.device(device))
    return torch.stack([train_step(run.method, batch, run.optimizer, step, config)["loss"].detach().cpu()
                        for step, batch in enumerate(found)])


@pytest.fixture
def exact():
    "Float32 convolutions in float32, not in TF32."
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("name", METHODS)
def test_the_first_loss_is_that_of_the_cpu(name, exact):
    config = PretrainConfig(method=name, batch_size=8, amp="fp32")
    assert losses(config, "cuda", 1) == pytest.approx(losses(config, "cpu", 1), rel=1e-3)


@pytest.mark.parametrize("change", [dict(fused=False), dict(memory_order="channels_last"), dict(memory_order="default"),
                                    dict(activations="recompute"), dict(joint=True)], ids=str)
def test_a_switch_does_not_change_the_losses(change, exact):
    assert losses(override(SMALL, **change), "cuda") == pytest.approx(losses(SMALL, "cpu"), rel=1e-2)


def test_bf16_is_near(exact):
    assert losses(override(SMALL, amp="bf16"), "cuda") == pytest.approx(losses(SMALL, "cuda"), rel=0.05)


@pytest.mark.parametrize("change", [{}, dict(activations="recompute"), dict(amp="bf16")], ids=str)
def test_peak_memory_is_as_planned(change):
    "Of a network that is large enough for cuDNN's workspaces not to decide."
    settings = dict(backbone="r3d18", frames=16, size=112, batch_size=8, data="videos", frame_size=(128, 171))
    config, device = PretrainConfig(**settings | dict(amp="fp32") | change), torch.device("cuda")
    run = restore(config, Path(), device, None)
    clips = torch.zeros(8, 2, 16, 3, 128, 171, dtype=torch.uint8, device=device)
    for step in range(3):
        torch.cuda.reset_peak_memory_stats()
        train_step(run.method, {"clips": clips}, run.optimizer, step, config)
    assert trace(config).peak(8) == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.2)
