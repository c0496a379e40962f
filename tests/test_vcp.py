"""The video cloze against loops: every option undone, evenly drawn, from the right frames."""
import itertools

import pytest
import torch
from conftest import Map

from be_nb.methods.base import Batch, Windows
from be_nb.methods.vcp import mix_space, mix_time, OPTIONS, turn, VCP
from be_nb.settings import PretrainConfig


def random(batch, seed=0):
    return torch.randn(batch, 3, 8, 6, 6, generator=torch.Generator().manual_seed(seed))


def ask(views, seed=0):
    torch.manual_seed(0)
    return VCP(Map()).question(views, Batch(views, torch.Generator().manual_seed(seed)))


def quarter(clip, k):
    return clip[..., 3 * (k // 2):3 * (k // 2) + 3, 3 * (k % 2):3 * (k % 2) + 3]


def test_mixing_is_undone():
    for i, order in enumerate(itertools.permutations(range(4))):
        clip, row = random(1, i), torch.tensor([order])
        spread, told = mix_space(clip, row), mix_time(clip, row)
        for place, k in enumerate(order):
            assert torch.equal(quarter(spread, place), quarter(clip, k))
            assert torch.equal(told[:, :, 2 * place:2 * place + 2], clip[:, :, 2 * k:2 * k + 2])
        assert torch.equal(mix_space(spread, row.argsort(1)), clip)
        assert torch.equal(mix_time(told, row.argsort(1)), clip)


def test_each_clip_has_turns_of_its_own():
    clips, k = random(4), torch.tensor([0, 1, 2, 3])
    turned = turn(clips, k)
    assert all(torch.equal(turned[i], clips[i].rot90(i, (-2, -1))) for i in range(4))
    assert torch.equal(turn(turned, (4 - k) % 4), clips)


def test_options_are_what_they_are_called():
    "Which option it was can be told without the label: by trying all ways to undo it."
    views = random(400 * 4).unflatten(0, (400, 4))
    questions, target = ask(views)
    assert torch.equal(questions[:, 0], views[:, 0]) and torch.equal(questions[:, 2], views[:, 2])
    for (_, clip, _, remote), (_, middle, _), option in zip(views[:60], questions, target.tolist()):
        ways = [torch.tensor([order]) for order in itertools.permutations(range(4))]
        fits = {"original": torch.equal(middle, clip), "remote": torch.equal(middle, remote),
                "rotation": any(torch.equal(middle, clip.rot90(k, (-2, -1))) for k in (1, 2, 3)),
                "space": any(torch.equal(mix_space(clip[None], way)[0], middle) for way in ways[1:]),
                "time": any(torch.equal(mix_time(clip[None], way)[0], middle) for way in ways[1:])}
        assert [name for name in OPTIONS if fits[name]] == [OPTIONS[option]]
    moved = [(questions[i, 1] != views[i, 1]).flatten(2).any(2).any(0).view(4, 2).all(1).sum().item()
             for i in range(400) if target[i] == OPTIONS.index("time")]
    assert set(moved) == {2}  # exactly two moments change places


def test_options_are_drawn_evenly():
    _, target = ask(torch.zeros(5000, 4, 1, 4, 2, 2))
    assert ((target.bincount(minlength=5) - 1000).abs() < 5 * 1000**.5).all()


@pytest.mark.parametrize("frames, gap", [(4, 0), (8, 4), (16, 8)])
def test_clips_lie_apart_and_the_remote_one_far(frames, gap):
    config = PretrainConfig(method="vcp", frames=frames, gap=gap)
    length = 4 * frames + 2 * gap
    assert VCP.windows(config) == Windows(frames=length)
    before, middle, after, remote = VCP(Map(), gap).cut(torch.arange(length).view(1, -1, 1, 1, 1))[0].flatten(1)
    assert len(before) == frames and middle[0] - before[-1] == after[0] - middle[-1] == gap + 1
    assert remote[0] - middle[-1] >= frames and remote[-1] == length - 1


def test_clips_that_cannot_be_mixed_are_refused():
    for wrong in (dict(frames=6), dict(size=23)):
        with pytest.raises(ValueError, match="multiple of 4 and size even"):
            PretrainConfig(method="vcp", **wrong)
