"""MemDPC: predictions are mixtures of rows, and nothing depends on which direction is called forwards."""
import pytest
import torch
from conftest import Map
from torch import nn

from be_nb.augment import Augment
from be_nb.distractor import Distractor
from be_nb.methods.base import Batch, Views, Windows
from be_nb.methods.dpc import dense_nce
from be_nb.methods.memdpc import MemDPC, memory_head
from be_nb.recipes import recipe
from be_nb.settings import PretrainConfig


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(gamma=.3, distractor="intra_frame", **own):
    torch.manual_seed(0)
    method = MemDPC(Map(), views=Views(Augment(6), Distractor(distractor, gamma)), **dict(grid=2, memory=5) | own)
    for parameter in method.parameters():
        nn.init.normal_(parameter, generator=generator(1))
    nn.init.normal_(method.backward_gru.weight_ih, generator=generator(2))
    return method


def clips(frames=16, batch=3):
    return torch.randint(0, 256, (batch, 1, frames, 3, 8, 8), generator=generator()).byte()


def turned(videos, blocks=8):
    "Blocks of frames in the opposite order, by a list."
    t = videos.shape[2] // blocks
    return torch.cat([videos[:, :, k * t:k * t + t] for k in reversed(range(blocks))], 2)


def test_predictions_are_mixtures_of_rows():
    head, states = memory_head(6, 4), 3 * torch.randn(7, 6, generator=generator())
    memory, found = head[-1].weight.T, head(states)
    scores = nn.functional.linear(nn.functional.linear(states, head[0].weight, head[0].bias).clamp(min=0),
                                  head[2].weight, head[2].bias)
    for row, prediction in zip(scores, found):
        shares = [(x - row.max()).exp() for x in row]
        mixture = sum(x / sum(shares) * m for x, m in zip(shares, memory))
        assert torch.allclose(prediction, mixture, atol=1e-5)
    assert sum(p.numel() for p in head.parameters()) == 6 * 6 + 6 + 4 * 6 + 4 + 4 * 6  # the memory has no bias


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_predictions_lie_in_the_convex_hull_of_the_memory(rows):
    "In any direction no prediction is farther out than the farthest row; one row is all there is to say."
    method, given = make(memory=rows), 5 * torch.randn(40, 5, 3, generator=generator())
    found, memory = method.predict(given).flatten(0, 1), method.head[-1].weight.T
    directions = torch.randn(3, 200, generator=generator(3))
    assert ((found @ directions).amax(0) <= (memory @ directions).amax(0) + 1e-4).all()
    assert torch.allclose(found, memory[0].expand_as(found), atol=1e-5) == (rows == 1)


@pytest.mark.parametrize("distractor", ["none", "intra_frame", "gaussian_noise"])
def test_turning_the_video_exchanges_the_losses(distractor):
    method, videos = make(distractor=distractor), clips()

    def losses(x):
        maps = [method.places(blocks) for blocks in method.show_both(Batch(x, generator(5)))]
        return [dense_nce(*method.compare(m, gru))[0].item()
                for m, gru in ((maps[0], method.gru), (maps[-1].flip(1), method.backward_gru))]

    one, (loss, metrics) = losses(videos), method(Batch(videos, generator(5)))
    assert loss.item() == pytest.approx(sum(one) / 2) and one[0] != pytest.approx(one[1], rel=1e-3)
    assert losses(turned(videos)) != pytest.approx(one[::-1])  # not yet: each direction has a GRU of its own
    method.gru, method.backward_gru = method.backward_gru, method.gru
    assert losses(turned(videos)) == pytest.approx(one[::-1])
    again, others = method(Batch(turned(videos), generator(5)))
    assert again.item() == pytest.approx(loss.item())
    assert {key: x.item() for key, x in others.items()} == pytest.approx({key: x.item() for key, x in metrics.items()})


def test_both_directions_are_erased_alike():
    videos, other = clips(), clips()
    other[:, :, 10:] = 255 - other[:, :, 10:]  # another future
    method, plain = make(gamma=1.), make(distractor="none")
    forwards, backwards = method.show_both(Batch(videos, generator(1)))
    [clean] = plain.show_both(Batch(videos, generator(1)))
    assert torch.equal(forwards[:, 5:], clean[:, 5:]) and torch.equal(backwards[:, :3], clean[:, :3])
    assert torch.equal(method.show_both(Batch(other, generator(1)))[0][:, :5], forwards[:, :5])
    flat = lambda x, given: x[:, given].movedim(1, 2).flatten(2, 3)  # (b, c, t, h, w)
    change = lambda x, given: flat(x, given).diff(dim=2).flatten(1).norm(dim=1)
    both = [(forwards, slice(0, 5)), (backwards, slice(3, 8))]
    lam = [1 - change(x, given) / change(clean, given) for x, given in both]
    assert torch.allclose(*lam, atol=1e-4) and (lam[0] > 1e-3).all()
    # the still frame itself is not changed; blocks are read from the first on, or from the last on
    touched = [flat(x - clean, given).abs().amax((1, 3, 4)).unflatten(1, (5, -1)) for x, given in both]
    first, last = touched[0].flatten(1), touched[1].flip(1).flatten(1)
    assert (first.amin(1) < 1e-5).all() and (last.amin(1) < 1e-5).all() and (first.amax(1) > 1e-2).all()
    assert torch.equal(first.argmin(1), last.argmin(1))


def test_settings():
    config = PretrainConfig(method="memdpc", frames=5, blocks=6, ahead=2)
    assert MemDPC.windows(config) == Windows(frames=30) and MemDPC.passes(config) == 36
    assert MemDPC.passes(recipe("scenebias-memdpc")) == 24 and recipe("r3d18-ucf101-memdpc").memory == 1024
    for wrong in (dict(blocks=4, ahead=3), dict(chain="cpc"), dict(memory=0)):
        with pytest.raises(ValueError, match="at least ahead|chain|memory"):
            PretrainConfig(method="memdpc", **wrong)
