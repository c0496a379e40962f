"""The BE triplet against a loop in double precision, and through the trainer."""
import math

import pytest
import torch
import torch.nn as nn

from be_nb.distractor import Distractor
from be_nb.methods.base import Batch, build_method, Views, Windows
from be_nb.methods.triplet import compare, Triplet
from be_nb.recipes import recipe
from be_nb.settings import PretrainConfig
from be_nb.train import pretrain


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


def make(negative="intra_video", distractor=None, **options):
    torch.manual_seed(0)
    return Triplet(Small(), views=Views(Brighten(), distractor, negative), **dict(dim=5) | options).double()


def batch(clips=None, seed=0):
    return Batch(videos() if clips is None else clips, torch.Generator().manual_seed(seed))


def videos(batch=4, windows=2, seed=0):
    return torch.randint(0, 256, (batch, windows, 4, 3, 9, 9), generator=torch.Generator().manual_seed(seed)).byte()


@pytest.mark.parametrize("margin", [0., .5, 2.])
@pytest.mark.parametrize("variant", ["intra_frame", "none"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_step_is_the_loop(margin, variant, head):
    method, clips = make(margin=margin, distractor=Distractor(variant), head=head), videos(5)
    loss, metrics = method(batch(clips, 3))
    g, seen = torch.Generator().manual_seed(3), method.views
    views = [seen.distractor(seen.augment(clips[:, 0], g), g), seen.augment(clips[:, 0], g),
             seen.augment(clips[:, 1], g)]
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
    assert method(batch())[0].item() == pytest.approx(method.reference_loss(4)) == pytest.approx(1.4)
    assert Triplet.windows(PretrainConfig(method="triplet", negative_offset=6)) == Windows(2, apart=6)


def test_loss_lies_between_zero_and_what_the_sphere_allows():
    for seed in range(10):
        loss, _ = make()(batch(videos(seed=seed), seed))
        assert 0 <= loss <= 2 * (2 + .5)
    near, far = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert compare(near, near, torch.stack([far, far], 1))["accuracy"] == 1
    assert compare(near, far, torch.stack([near, far], 1))["accuracy"] == 0


def test_every_view_has_a_gradient():
    method, seen = make(), []
    method.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output) or output.retain_grad())
    method(batch())[0].backward()
    assert len(seen) == 3 and all(output.grad.abs().sum() > 0 for output in seen)
    assert all(p.grad is not None for p in method.parameters())


def test_runs_in_the_trainer(tmp_path):
    small = dict(data_size=16, batch_size=4, size=16, frames=4, warmup_steps=2, log_every=2, out=str(tmp_path),
                 schedule="constant", device="cpu", amp="fp32", method="triplet")
    whole = pretrain(name="whole", steps=4, progress=False, **small)
    assert [row["step"] for row in whole.history] == [2, 4]
    assert all(math.isfinite(row["loss"]) and "other_video" in row for row in whole.history)
    settings = recipe("scenebias-triplet-be")
    method = build_method(settings)
    assert isinstance(method, Triplet) and Triplet.windows(settings).apart == settings.negative_offset == 4
    assert method.views.distractor.variant == "intra_frame" and method.reference_loss(4) == 1


@pytest.mark.parametrize("negative", ["none", "other_video"])
def test_without_the_same_video_another_one_is_the_only_negative(negative, tmp_path):
    method, clips = make(negative=negative, distractor=Distractor("none")), videos(5, windows=1)
    loss, metrics = method(batch(clips, 3))
    g, calls = torch.Generator().manual_seed(3), []
    views = [method.views.distractor(method.views.augment(clips[:, 0], g), g), method.views.augment(clips[:, 0], g)]
    anchor, positive = (method.embed(view).tolist() for view in views)
    total = sum(max(0., math.dist(anchor[i], positive[i]) - math.dist(anchor[i], positive[i - 1]) + .5)
                for i in range(5))
    assert math.isclose(loss.item(), total / 5, rel_tol=1e-4) and "extra_negative" not in metrics
    assert method.reference_loss(5) == .5
    method.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    method(batch(clips))
    assert calls == [5, 5]
    small = dict(data_size=16, batch_size=4, size=16, frames=4, device="cpu", amp="fp32", out=str(tmp_path))
    found = pretrain(method="triplet", negative=negative, steps=2, name=negative, progress=False, **small)
    assert math.isfinite(found.history[-1]["loss"])


@pytest.mark.parametrize("mistake, says", [
    (lambda: make(margin=2.5), r"\[0, 2\]"),
    (lambda: make(margin=-.1), r"\[0, 2\]"),
    (lambda: make(head="mpl"), "Did you mean mlp"),
    (lambda: make()(batch(videos(1))), "two or more"),
    (lambda: make()(batch(videos(windows=1))), "windows=2"),
])
def test_mistakes_are_refused_with_advice(mistake, says):
    with pytest.raises(ValueError, match=says):
        mistake()
