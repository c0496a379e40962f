"""BYOL and SimSiam against closed forms: what the target is, what the distractor touches, and what is computed."""
import math

import pytest
import torch
from torch import nn

from be_nb.distractor import Distractor
from be_nb.methods.base import Batch, Views
from be_nb.methods.byol import bn_mlp, BYOL, regression
from be_nb.settings import PretrainConfig


class Small(nn.Module):
    "A backbone without BatchNorm that remembers what it was shown."

    feature_dim = 6

    def __init__(self):
        super().__init__()
        self.conv, self.shown = nn.Conv3d(3, 6, 3, (1, 2, 2)), []

    def features(self, clips):
        self.shown.append((clips, torch.is_grad_enabled()))
        return self.conv(clips).tanh()

    def forward(self, clips):
        return self.features(clips).mean((2, 3, 4))


def made(variant="intra_frame", **options):
    torch.manual_seed(0)
    views = Views(lambda clips, g: clips.transpose(1, 2).double() / 255 * (.5 + torch.rand(1, generator=g).double()),
                  Distractor(variant), "none")
    return BYOL(Small(), views=views, **dict(dim=8, hidden=12) | options).double()


def batch(seed=0):
    clips = torch.randint(0, 256, (5, 1, 4, 3, 9, 9), generator=torch.Generator().manual_seed(1)).byte()
    return Batch(clips, torch.Generator().manual_seed(seed))


def test_loss_is_the_distance_between_unit_vectors():
    p, z = torch.randn(2, 7, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    slow = [sum((a / math.hypot(*row) - b / math.hypot(*other)) ** 2 for a, b in zip(row, other))
            for row, other in zip(p.tolist(), z.tolist())]
    assert regression(p, z).item() == pytest.approx(sum(slow) / 7, rel=1e-9)
    cosine = nn.functional.cosine_similarity(p, z).mean().item()
    assert regression(p, z).item() == pytest.approx(2 - 2 * cosine, rel=1e-9)
    p.requires_grad_(), z.requires_grad_()
    regression(p, z).backward()
    assert z.grad is None and p.grad.any()
    assert torch.allclose((p.grad * p).sum(1), torch.zeros(7).double(), atol=1e-9)  # the length of p does not matter


def test_the_copy_follows_in_closed_form():
    method = made(momentum=.8)
    start, goal = method.key_backbone.conv.weight.clone(), torch.randn(6, 3, 3, 3, 3, dtype=torch.double)
    method.backbone.conv.weight.data.copy_(goal)
    for _ in range(4):
        method.after_step(0.)
    assert torch.allclose(method.key_backbone.conv.weight, .8**4 * start + (1 - .8**4) * goal)
    method.backbone.conv.weight.data.zero_()
    rest = method.key_backbone.conv.weight.clone()
    method.after_step(1.)  # at the end of the training the copy has come to rest
    assert torch.equal(method.key_backbone.conv.weight, rest)
    method.after_step(.5)  # half-way the momentum has gone half of its way
    assert torch.allclose(method.key_backbone.conv.weight, .9 * rest)


@pytest.mark.parametrize("target", ["slow", "shared"])
def test_the_target_never_sees_a_ghost(target):
    method = made(target=target)
    keys = method.key_backbone if target == "slow" else method.backbone
    method(batch())
    seen = [clips for clips, learns in method.backbone.shown if learns]
    looked_at = [clips for clips, learns in keys.shown if not learns]
    g = torch.Generator().manual_seed(0)
    clean = [method.views.augment(batch().window(), g) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(looked_at, clean)) and len(looked_at) == len(seen) == 2
    assert not any(torch.equal(a, b) for a, b in zip(seen, clean))


def test_the_step_is_written_out():
    "Each view predicts the other one's target; both directions count the same."
    method = made("none")
    loss, metrics = method(batch(3))
    g = torch.Generator().manual_seed(3)
    one, two = (method.views.augment(batch().window(), g) for _ in range(2))
    say = lambda view: method.predictor(method.head(method.backbone(view)))
    aim = lambda view: method.key_head(method.key_backbone(view))
    cosine = [nn.functional.cosine_similarity(say(a), aim(b)).mean().item() for a, b in ((one, two), (two, one))]
    assert loss.item() == pytest.approx(2 - sum(cosine), rel=1e-5)
    assert metrics["positive"].item() == pytest.approx(sum(cosine) / 2, rel=1e-5)


def test_simsiam_is_byol_whose_target_is_the_network():
    "With the copy's weights equal to the network's, both compute the same number; the gradient is that of one side."
    shared, slow = made(target="shared"), made()
    slow.head, slow.predictor = bn_mlp(6, 12, 8, normed=True).double(), bn_mlp(8, 2, 8).double()
    slow.key_head = bn_mlp(6, 12, 8, normed=True).double()
    for mine, other in ((slow.head, shared.head), (slow.predictor, shared.predictor), (slow.key_head, shared.head)):
        mine.load_state_dict(other.state_dict())
    losses = [method(batch(2))[0] for method in (shared, slow)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    losses[0].backward(), losses[1].backward()
    assert torch.allclose(shared.backbone.conv.weight.grad, slow.backbone.conv.weight.grad)


@pytest.mark.parametrize("options, learn, looked_at", [
    (dict(), 2, 2), (dict(target="shared"), 2, 2), (dict(target="shared", distractor="none"), 2, 0),
    (dict(beta=1.), 3, 2), (dict(beta=1., target="shared"), 3, 2)])
def test_work_of_every_switch(options, learn, looked_at):
    config = PretrainConfig(method="byol", **options)
    method = made(config.distractor, target=config.target, beta=config.beta)
    loss, metrics = method(batch())
    shown = method.backbone.shown + (method.key_backbone.shown if hasattr(method, "key_backbone") else [])
    assert [sum(learns for _, learns in shown), sum(not learns for _, learns in shown)] == [learn, looked_at]
    assert BYOL.passes(config) == 3 * learn + looked_at
    assert loss.isfinite() and ("be" in metrics) == (config.beta > 0)


def test_beta_adds_the_difference_of_maps():
    plain, more = made(), made(beta=2.)
    loss, (total, metrics) = plain(batch())[0], more(batch())
    assert total.item() == pytest.approx(loss.item() + 2 * metrics["be"].item(), rel=1e-6) and metrics["be"] > 0


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="set a distractor"):
        PretrainConfig(method="byol", beta=1., distractor="none")
    with pytest.raises(ValueError, match="two videos or more"):
        made()(Batch(batch().clips[:1]))
