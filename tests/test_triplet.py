"""The BE triplet against a loop in double precision, and through the trainer."""
import math

import pytest
import torch
import torch.nn as nn

from be_nb.recipes import recipe
from be_nb.distractor import Distractor
from be_nb.methods.base import build_method
from be_nb.train import pretrain
from be_nb.methods.triplet import compare, Triplet


class Small(nn.Module):
    "A backbone without BatchNorm, so that clips do not know of each other."

    feature_dim = 6

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, (1, 2, 2))

    def forward(self, clips):
        return self.conv(clips).tanh().mean((2, 3, 4))


class Brighten(nn.Module):
    "A random augmentation in double precision: uint8 (b, t, c, h, w) → (b, c, t, h, w)."

    def forward(self, clips, generator=None):
        return clips.transpose(1, 2).double() / 255 + torch.rand(len(clips), 1, 1, 1, 1, generator=generator).double()


def make(**options):
    torch.manual_seed(0)
    return Triplet(Small(), **(dict(dim=5, augment=Brighten()) | options)).double()


def videos(batch=4, windows=2, seed=0):
    return torch.randint(0, 256, (batch, windows, 4, 3, 9, 9), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize("margin", [0., .5, 2.])
@pytest.mark.parametrize("variant", ["intra_frame", "none"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_step_is_the_loop(margin, variant, head):
    method, clips = make(margin=margin, distractor=Distractor(variant), head=head), videos(5)
    loss, metrics = method(clips, torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(3)
    views = [method.distractor(method.augment(clips[:, 0], g), g), method.augment(clips[:, 0], g),
             method.augment(clips[:, 1], g)]
    rows = []
    for view in views:
        vectors = [method.head(method.backbone(clip[None]))[0].tolist() for clip in view]
        rows.append([[x / math.hypot(*vector) for x in vector] for vector in vectors])
    anchor, positive, later = rows
    total, nearest = 0., 0
    for i in range(5):
        near = math.dist(anchor[i], positive[i])
        far = [math.dist(anchor[i], later[i]), math.dist(anchor[i], later[(i - 1) % 5])]  # same video, another one
        total += sum(max(0., near - distance + margin) for distance in far)
        nearest += near < min(far)
    assert loss.dtype == torch.float64 and math.isclose(loss.item(), total / 5, rel_tol=1e-4, abs_tol=1e-5)
    assert math.isclose(metrics["accuracy"].item(), nearest / 5, abs_tol=1e-6)
    cosines = [[1 - math.dist(a, b)**2 / 2 for a, b in zip(anchor, other)]
               for other in (positive, later, later[-1:] + later[:-1])]
    for name, values in zip(("positive", "extra_negative", "other_video"), cosines):
        assert math.isclose(metrics[name].item(), sum(values) / 5, abs_tol=1e-6)
    assert not any(value.requires_grad or value.ndim for value in metrics.values())


def test_reference_loss_is_that_of_equal_clips():
    method = make(margin=.7)
    for parameter in method.head.parameters():
        nn.init.ones_(parameter)
    for parameter in method.backbone.parameters():
        nn.init.zeros_(parameter)
    loss, _ = method(videos(), torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(method.reference_loss) == pytest.approx(1.4)
    assert method.windows == 2 and make(negative_offset=6).min_offset == 6


def test_loss_lies_between_zero_and_what_the_sphere_allows():
    for seed in range(10):
        loss, _ = make()(videos(seed=seed), torch.Generator().manual_seed(seed))
        assert 0 <= loss <= 2 * (2 + .5)
    near, far = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert compare(near, near, torch.stack([far, far], 1))["accuracy"] == 1
    assert compare(near, far, torch.stack([near, far], 1))["accuracy"] == 0


def test_every_view_has_a_gradient():
    method, seen = make(), []
    method.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output) or output.retain_grad())
    method(videos(), torch.Generator().manual_seed(0))[0].backward()
    assert len(seen) == 3 and all(output.grad.abs().sum() > 0 for output in seen)
    assert all(p.grad is not None for p in method.parameters())


def test_runs_in_the_trainer(tmp_path):
    small = dict(data_size=16, batch_size=4, size=16, frames=4, warmup_steps=2, log_every=2, out=str(tmp_path),
                 schedule="constant", device="cpu", amp="fp32", method="triplet")
    whole = pretrain(name="whole", steps=4, progress=False, **small)
    assert [row["step"] for row in whole.history] == [2, 4]
    assert all(math.isfinite(row["loss"]) and "other_video" in row for row in whole.history)
    settings = recipe("scenebias-triplet")
    method = build_method(settings)
    assert isinstance(method, Triplet) and method.min_offset == settings.negative_offset == 4
    assert method.distractor.variant == "intra_frame" and method.reference_loss == 1


@pytest.mark.parametrize("mistake, says", [
    (lambda: make(margin=2.5), r"\[0, 2\]"),
    (lambda: make(margin=-.1), r"\[0, 2\]"),
    (lambda: make(head="mpl"), "Did you mean mlp"),
    (lambda: make()(videos(batch=1)), "two or more"),
    (lambda: make()(videos(windows=1)), "windows=2"),
])
def test_mistakes_are_refused_with_advice(mistake, says):
    with pytest.raises(ValueError, match=says):
        mistake()
