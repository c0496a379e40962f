"""Time-contrastive clips against loops."""
import math

import pytest
import torch
from torch import nn

from be_nb.methods.tcn import TCN, time_nce
from be_nb.settings import PretrainConfig


class Mean(nn.Module):
    "A backbone whose feature is the mean of a clip."

    feature_dim = 3

    def forward(self, clips):
        return clips.mean((2, 3, 4))


@pytest.mark.parametrize("among", ["video", "batch"])
def test_loss_is_loops(among):
    random = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    a, p = nn.functional.normalize(random, dim=3)
    losses, right = [], 0
    for i in range(3):
        for k in range(4):
            rows = [(j, m) for j in range(3) for m in range(4) if among == "batch" or j == i]
            scores = {row: float(a[i, k] @ p[row]) / .2 for row in rows}
            losses.append(math.log(sum(map(math.exp, scores.values()))) - scores[i, k])
            right += max(rows, key=scores.__getitem__) == (i, k)
    loss, accuracy = time_nce(a, p, .2, among)
    assert loss.item() == pytest.approx(sum(losses) / 12, rel=1e-4) and accuracy.item() == pytest.approx(right / 12)


@pytest.mark.parametrize("among", ["video", "batch"])
def test_equal_clips_pay_the_reference(among):
    same = nn.functional.normalize(torch.ones(5, 4, 8), dim=2)
    assert time_nce(same, same, .1, among)[0].item() == pytest.approx(TCN(Mean(), among=among).reference_loss(5))
    own = torch.eye(20).view(5, 4, 20)
    assert time_nce(own, own, .01, among)[0] < 1e-6


@pytest.mark.parametrize("moments, near, far, frames", [(4, 2, 10, 8), (2, 1, 3, 5), (3, 4, 9, 2)])
def test_clips_begin_where_they_should(moments, near, far, frames):
    config = PretrainConfig(method="tcn", moments=moments, near=near, far=far, frames=frames)
    length = TCN.windows(config).frames
    assert length == (moments - 1) * far + near + frames and TCN.passes(config) == 6 * moments
    anchors, partners = TCN(Mean(), moments=moments, near=near, far=far).cut(torch.arange(length).view(1, -1, 1, 1, 1))
    for k in range(moments):
        assert anchors[0, k].flatten().tolist() == list(range(k * far, k * far + frames))
        assert partners[0, k].flatten().tolist() == list(range(k * far + near, k * far + near + frames))
    assert partners.max() == length - 1


def test_a_wrong_partner_is_never_as_near_as_the_right_one():
    with pytest.raises(ValueError, match="more than twice near"):
        PretrainConfig(method="tcn", near=5, far=10)
