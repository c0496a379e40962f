"""IIC and CMC: broken clips counted by hand, the loss against InfoNCE row by row, and what each half of BE touches."""
import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from be_nb.losses import info_nce
from be_nb.methods.base import build_method
from be_nb.methods.iic import broken, cross_views, differences
from be_nb.recipes import recipe
from be_nb.settings import PretrainConfig
from be_nb.training.step import as_batch


def numbered(b, t):
    "(b, 1, t, 1, 1): frame k has the value k."
    return torch.arange(float(t))[None, None, :, None, None].expand(b, 1, t, 1, 1)


def unit_rows(n, seed=0):
    return F.normalize(torch.randn(n, 6, 5, dtype=torch.double, generator=torch.Generator().manual_seed(seed)), dim=-1)


def made(**knobs):
    return build_method(PretrainConfig(method="iic", **dict(frames=4, size=16, dim=8) | knobs)).train()


def batch(seed=1):
    clips = torch.randint(0, 256, (5, 2, 4, 3, 20, 20), generator=torch.Generator().manual_seed(seed)).byte()
    return as_batch({"clips": clips}, 0, PretrainConfig())


def test_differences_say_what_changed():
    clips = torch.randn(2, 3, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    found = differences(clips)
    for k in range(1, 5):
        assert torch.equal(found[:, :, k], (clips[:, :, k] - clips[:, :, k - 1]) / 2)
    assert torch.equal(found[:, :, 0], found[:, :, 1]) and found.shape == clips.shape
    assert differences(clips[:, :, :1].expand_as(clips)).abs().max() == 0


def test_repeat_is_one_frame_and_every_frame_is_drawn():
    u = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    found = broken(numbered(400, 8), "repeat", u)[:, 0, :, 0, 0]
    assert (found == found[:, :1]).all() and found[:, 0].unique().tolist() == list(range(8))


@pytest.mark.parametrize("t", [4, 8, 16])
def test_shuffle_moves_two_quarters(t):
    "Every clip is one of the six that a swap of two quarters gives, and all six come."
    u = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    found = {tuple(row.tolist()) for row in broken(numbered(400, t), "shuffle", u)[:, 0, :, 0, 0].long()}
    quarters, expected = torch.arange(t).chunk(4), set()
    for i, j in combinations(range(4), 2):
        order = [*range(4)]
        order[i], order[j] = j, i
        expected.add(tuple(torch.cat([quarters[k] for k in order]).tolist()))
    assert found == expected and len(expected) == 6


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_loss_is_info_nce_row_by_row(wrong):
    first, second, *others = unit_rows(2 + wrong)
    rows = [info_nce(x[i:i + 1], y[i:i + 1], torch.cat([y[:i], y[i + 1:], *others]), temperature=.2)
            for x, y in ((first, second), (second, first)) for i in range(6)]
    loss, accuracy = cross_views(first, second, others, .2)
    assert loss.item() == pytest.approx(torch.stack(rows).mean().item())
    nearest = [max(range(6 * (1 + wrong)), key=lambda j, i=i: float(first[i] @ torch.cat([second, *others])[j]))
               for i in range(6)]
    assert accuracy.item() == pytest.approx(sum(j == i for i, j in enumerate(nearest)) / 6)


@pytest.mark.parametrize("breaking", ["repeat", "shuffle", "none"])
@pytest.mark.parametrize("negative", ["none", "intra_video"])
def test_every_switch_has_its_reference_and_its_candidates(breaking, negative):
    method = made(breaking=breaking, negative=negative)
    kinds = 1 + (breaking != "none") + (negative != "none")
    assert method.reference_loss(5) == pytest.approx(math.log(5 * kinds))
    loss, metrics = method(batch())
    assert abs(loss.item() - method.reference_loss(5)) < .5
    assert ("broken" in metrics, "extra_negative" in metrics) == (breaking != "none", negative != "none")
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_the_distractor_touches_the_first_view_only():
    seen = []
    method = made(gamma=.9)
    method.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    method(batch())
    erased, change, still, _ = seen
    seen.clear()
    method = made(distractor="none")
    method.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    method(batch())
    assert not torch.equal(erased, seen[0]) and torch.equal(change, seen[1]) and torch.equal(still, seen[2])
    assert torch.equal(change, differences(seen[0])) and not still.diff(dim=2).any()


def test_quarters_must_be_whole():
    with pytest.raises(ValueError, match="quarters"):
        recipe("scenebias-iic", breaking="shuffle", frames=9)
