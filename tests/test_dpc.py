"""Predictive coding against loops and written-out equations."""
import functools
import itertools
import math

import pytest
import torch
from conftest import Map
from torch import nn

from be_nb.augment import Augment
from be_nb.distractor import Distractor
from be_nb.methods.base import Batch, Views, Windows
from be_nb.methods.dpc import dense_nce, DPC, hits
from be_nb.settings import PretrainConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(gamma=.3, distractor="intra_frame", **own):
    torch.manual_seed(0)
    return DPC(Map(), views=Views(Augment(6, crop=(1., 1.)), Distractor(distractor, gamma)), **dict(grid=2) | own)


def clips(frames, batch=3):
    return torch.randint(0, 256, (batch, 1, frames, 3, 8, 8), generator=generator()).byte()


def test_loss_is_five_loops():
    b, p, s = shape = 3, 2, 4
    predicted, targets = torch.randn(2, *shape, 5, generator=generator())
    loss, logits = dense_nce(predicted, targets)
    places = list(itertools.product(range(b), range(p), range(s)))
    losses, right = [], {"accuracy": 0, "video": 0, "place": 0, "time": 0}
    for own in places:
        scores = {other: float(predicted[own] @ targets[other]) for other in places}
        losses.append(math.log(sum(math.exp(x) for x in scores.values())) - scores[own])
        best = functools.partial(max, key=scores.__getitem__)
        right["accuracy"] += best(places) == own
        right["video"] += best(places)[0] == own[0]
        right["place"] += best([x for x in places if x[0] == own[0]])[2] == own[2]
        right["time"] += best([x for x in places if x[0] == own[0] and x[2] == own[2]])[1] == own[1]
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert {name: float(share) for name, share in hits(logits, shape).items()} == \
        pytest.approx({name: count / len(places) for name, count in right.items()})


def test_the_wall_alone_pays_the_logarithm_of_the_steps():
    "Targets that know video and place, and not the time: ln P, and a third of the answers."
    targets = (20 * torch.eye(12)).view(3, 1, 4, 12).expand(3, 3, 4, 12)
    loss, logits = dense_nce(targets, targets)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-4)
    found = hits(logits, (3, 3, 4))
    assert found["video"] == found["place"] == 1 and found["time"] == pytest.approx(1 / 3)
    assert dense_nce(20 * torch.eye(36).view(3, 3, 4, 36), torch.eye(36).view(3, 3, 4, 36))[0] < 1e-6  # perfect
    assert dense_nce(0 * targets, targets)[0].item() == pytest.approx(make(grid=2).reference_loss(3))


@pytest.mark.parametrize("chain", ["dpc", "cpc"])
def test_gru_by_its_equations(chain):
    method, given = make(chain=chain), torch.randn(5, 4, 3, generator=generator())
    for parameter in method.parameters():
        nn.init.normal_(parameter, generator=generator(1))
    cell, sigmoid = method.gru, torch.sigmoid

    def step(x, h):
        xr, xz, xn = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, 1)
        hr, hz, hn = (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1)
        new = torch.tanh(xn + sigmoid(xr + hr) * hn)
        return new + sigmoid(xz + hz) * (h - new)

    state, expected = torch.zeros(5, 3), []
    for k in range(4):
        state = step(given[:, k], state)
    for k in range(3):
        if chain == "cpc":
            expected.append(state @ method.head.weight[3 * k:3 * k + 3].T + method.head.bias[3 * k:3 * k + 3])
        else:
            expected.append(method.head(state))
            state = step(expected[-1].clamp(min=0), state)
    assert torch.allclose(method.predict(given), torch.stack(expected, 1), atol=1e-5)


def test_every_place_is_predicted_by_itself():
    method, blocks = make(), torch.randn(2, 8, 3, 2, 6, 6, generator=generator())
    predicted, targets = method.compare(method.places(blocks))
    cells = blocks.unflatten(-2, (2, 3)).unflatten(-1, (2, 3)).mean((3, 5, 7))        # (b, blocks, c, 2, 2)
    for i, place in itertools.product(range(2), range(4)):
        cell = cells[i, :, :, place // 2, place % 2]
        assert torch.allclose(targets[i, :, place], cell[5:], atol=1e-5)
        assert torch.allclose(predicted[i, :, place], method.predict(cell[None, :5])[0], atol=1e-5)


def test_the_future_is_neither_seen_nor_touched():
    method, plain = make(gamma=1.), make(distractor="none")
    past, other = clips(16), clips(16)
    other[:, :, 10:] = 255 - other[:, :, 10:]
    shown, again, clean = (m.show(Batch(x, generator(1))) for m, x in ((method, past), (method, other), (plain, past)))
    assert shown.shape == (3, 8, 3, 2, 6, 6)
    assert torch.equal(shown[:, :5], again[:, :5]) and torch.equal(shown[:, 5:], clean[:, 5:])
    flat = lambda x: x[:, :5].movedim(1, 2).flatten(2, 3)                             # (b, c, t, h, w)
    change = lambda x: flat(x).diff(dim=2).flatten(1).norm(dim=1)
    scale = change(shown) / change(clean)
    lam = method.views.distractor.sample(flat(clean), _after_augmentation(method, past)).lam
    assert torch.allclose(scale, 1 - lam, atol=1e-4)  # one still frame in all given blocks


def _after_augmentation(method, videos):
    batch = Batch(videos, generator(1))
    method.views.clean(batch)
    return batch.draw


def test_settings():
    config = PretrainConfig(method="dpc", frames=5, blocks=6, ahead=2)
    assert DPC.windows(config) == Windows(frames=30) and DPC.passes(config) == 18
    with pytest.raises(ValueError, match="at least ahead"):
        PretrainConfig(method="dpc", blocks=4, ahead=3)
