"""RSPNet: speeds counted by hand, the ranking against torch's, and what goes where."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from be_nb.losses import info_nce
from be_nb.methods.base import Batch, build_method, Windows
from be_nb.methods.rspnet import halves, play, ranking, RSPNet
from be_nb.recipes import recipe
from be_nb.settings import PretrainConfig

SMALL = dict(frames=4, size=16, dim=8, queue_size=12)


def made(**knobs):
    return build_method(PretrainConfig(method="rspnet", **SMALL | knobs)).train()


def batch(windows=3, seed=3):
    clips = torch.randint(0, 256, (6, windows, 7, 3, 20, 20), generator=torch.Generator().manual_seed(1)).byte()
    return Batch(clips, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [2, 4, 9])
def test_speeds_are_frames_counted_by_hand(t):
    windows = torch.arange(2. * t - 1)[None, None, :, None, None].expand(2, 1, -1, 1, 1)
    slow, fast = play(windows, torch.tensor([False, True]))[:, 0, :, 0, 0].tolist()
    assert slow == list(range(t)) and fast == list(range(0, 2 * t - 1, 2))


def test_half_of_the_clips_are_fast():
    draws = torch.cat([Batch(torch.zeros(50, 1, 1, 1, 1, 1), torch.Generator().manual_seed(seed)).rows(
        lambda n, draw: torch.rand(n, generator=draw) < .5) for seed in range(40)])
    assert abs(draws.float().mean() - .5) < .05


def test_ranking_is_torchs_and_keeps_its_margin():
    q, same, other = F.normalize(torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    s, o = (q * same).sum(1), (q * other).sum(1)
    loss, right = ranking(q, same, other, .07, 2.)
    assert loss.item() == pytest.approx(nn.MarginRankingLoss(2.)(s / .07, o / .07, torch.ones(20)).item(), rel=1e-5)
    assert right.item() == pytest.approx((s > o).float().mean().item())
    assert ranking(q, same, same, .07, 2.)[0] == 2 and ranking(q, q, -q, .07, 2.)[0] == 0
    ahead = s - o >= .14
    per_clip = [ranking(q[i:i + 1], same[i:i + 1], other[i:i + 1], .07, 2.)[0].item() for i in range(20)]
    assert [value < 1e-5 for value in per_clip] == ahead.tolist() and ahead.any()


def test_two_heads_are_one_of_twice_the_width():
    method, x = made(head="linear", dim=5), torch.randn(3, 64)
    heads = [nn.Linear(64, 5), nn.Linear(64, 5)]
    for k, head in enumerate(heads):
        head.load_state_dict({key: value.chunk(2)[k] for key, value in method.head.state_dict().items()})
    for found, head in zip(halves(method.head(x)), heads):
        assert torch.allclose(found, F.normalize(head(x), dim=1), atol=1e-6)


@pytest.mark.parametrize("negative", ["none", "intra_video"])
def test_the_step_is_written_out(negative):
    "By the library's InfoNCE and torch's ranking, in evaluation mode, where clips do not know of each other."
    method = made(negative=negative).eval()
    loss, metrics = method(batch())
    again, views = batch(), method.views
    window, other = views.clean(again), views.clean(again, 1)
    fast = torch.rand(6, generator=again.draw) < .5
    query = views.distract(play(window, fast), again)
    say = lambda x, slow_copy=False: halves(method.key_head(method.key_backbone(x)) if slow_copy
                                            else method.head(method.backbone(x)))
    (a, m), (k, km) = say(query), say(play(other, fast), True)
    o, om = say(play(other, ~fast), True)
    third = None if negative == "none" else say(play(views.clean(again, 2), fast))[0][:, None]
    looks = sum(info_nce(a, key, method.queue.keys, third, .07) for key in (k, o))
    order = nn.MarginRankingLoss(2.)((m * km).sum(1) / .07, (m * om).sum(1) / .07, torch.ones(6))
    assert loss.item() == pytest.approx((looks + order).item() / 2, rel=1e-4)
    assert metrics["ranking"].item() == pytest.approx(order.item(), rel=1e-4)
    assert ("extra_negative" in metrics) == (negative != "none")


def test_keys_of_the_other_speed_enter_the_queue():
    method = made().eval()
    method(batch())
    again, views = batch(), method.views
    views.clean(again)
    other, fast = views.clean(again, 1), torch.rand(6, generator=again.draw) < .5
    with torch.no_grad():
        expected = halves(method.key_head(method.key_backbone(play(other, ~fast))))[0]
    method.after_step()
    assert method.queue.keys.shape == (12, 8)
    assert torch.allclose(method.queue.keys[:6], expected, atol=1e-5)


@pytest.mark.parametrize("negative, windows, learn", [("none", 2, 1), ("other_video", 2, 2), ("intra_video", 3, 2)])
def test_windows_and_work(negative, windows, learn):
    config = recipe("scenebias-rspnet", negative=negative)
    assert RSPNet.windows(config) == Windows(windows, 15, apart=4) and RSPNet.passes(config) == 2 + 3 * learn
    method = made(negative=negative)
    assert method.reference_loss(6) == pytest.approx(math.log(13 + (negative != "none")) + 1)
    loss, _ = method(batch(windows))
    assert loss.isfinite()
