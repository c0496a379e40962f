"""Playback: speed and direction against frame numbers counted by hand."""
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from conftest import Map
from torch import nn

from be_nb.augment import Augment
from be_nb.data.scenebias import SceneBias
from be_nb.distractor import mix_static_frame
from be_nb.judging.questions import right_answers
from be_nb.methods.base import Batch, Views, Windows
from be_nb.methods.playback import Arrow, SpeedNet
from be_nb.settings import PretrainConfig

quickly = settings(max_examples=25, deadline=None)
PLAIN: dict[str, Any] = dict(distractor="none", crop=(1., 1.), size=30, amp="fp32", brightness=0, contrast=0,
                             saturation=0, hue=0)


def numbers(frames, batch=2):
    "Each pixel of frame k holds k: (b, 1, c, t, h, w)."
    return torch.arange(frames).float().view(1, 1, 1, frames, 1, 1).expand(batch, 1, 3, frames, 2, 2)


def asked(task, views, seed=0):
    return task.question(views, Batch(views, torch.Generator().manual_seed(seed)))


@quickly
@given(speed=st.integers(2, 4), frames=st.integers(1, 6), batch=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_sped_up_frames_are_every_second_one(speed, frames, batch, seed):
    length = (frames - 1) * speed + 1
    config = PretrainConfig(method="speednet", speed=speed, frames=frames)
    assert SpeedNet.windows(config) == Windows(frames=length)
    shown, target = asked(SpeedNet(Map(), speed), numbers(length, batch), seed)
    assert shown.shape == (2 * batch, 1, 3, frames, 2, 2) and target.tolist() == [0, 1] * batch
    starts = torch.rand(batch, generator=torch.Generator().manual_seed(seed)).numpy()
    for video, u in enumerate(starts):
        start = int(np.float32(u) * np.float32(length - frames + 1))
        assert shown[2 * video, 0, 0, :, 0, 0].tolist() == list(range(start, start + frames))
        assert shown[2 * video + 1, 0, 0, :, 0, 0].tolist() == list(range(0, length, speed))


def test_normal_clips_begin_everywhere():
    shown, _ = asked(SpeedNet(Map(), 2), numbers(7, 2000))
    starts = shown[::2, 0, 0, 0, 0, 0].long().bincount()
    assert len(starts) == 4 and ((starts - 500).abs() < 5 * 500**.5).all()


def test_speednet_looks_at_the_largest_value():
    task, clips = SpeedNet(Map(), views=Views(Augment(6))), torch.randn(4, 1, 3, 5, 6, 6)
    logits, maps = task.answer(clips)
    pooled = torch.tensor(clips[:, 0].numpy().max((3, 4)).mean(2))
    assert torch.allclose(logits, task.head(pooled[:, None]), atol=1e-6) and maps.shape == (4, 3, 5, 6, 6)


def test_reversed_twice_is_the_clip_and_swaps_the_answers():
    views, task = torch.randn(3, 1, 3, 5, 4, 4), Arrow(Map())
    (shown, target), (turned, again) = asked(task, views), asked(task, views.flip(3))
    assert target.tolist() == again.tolist() == [0, 1] * 3
    assert torch.equal(shown[target == 0][:, 0], views[:, 0])
    assert torch.equal(shown[target == 1][:, 0].flip(2), views[:, 0])       # reversed twice: the clip
    assert torch.equal(turned.unflatten(0, (3, 2)).flip(1).flatten(0, 1), shown)  # forwards of one, backwards of other
    still = views[:, :, :, :1].expand_as(views)
    assert torch.equal(*asked(task, still)[0].unflatten(0, (3, 2)).unbind(1))     # stopped, the forms are the same


def test_a_still_frame_commutes_with_reversal():
    clips, lam = torch.randn(3, 3, 5, 4, 4), torch.rand(3)
    erase = lambda x: mix_static_frame(x, clips[:, :, 1], lam)
    assert torch.allclose(erase(clips).flip(2), erase(clips.flip(2)))


class Slowing(nn.Module):
    "An oracle: by how much the last differences of a clip are larger than its first."

    feature_dim = 1

    def features(self, clips):
        change = clips.diff(dim=2).abs().mean((1, 3, 4))
        half = change.shape[1] // 2
        return (change[:, half:].mean(1) - change[:, :half].mean(1))[:, None, None, None, None]


@pytest.mark.parametrize("damping, low, high", [(0., .4, .6), (3., .7, 1.)])
def test_the_arrow_is_there_where_the_motor_is_off(damping, low, high):
    config = PretrainConfig(method="arrow", stride=3, damping=damping, **PLAIN)
    method = Arrow.from_config(config, Slowing())
    with torch.no_grad():  # the answer is 1, backwards, where the change grows
        method.head[1].weight.copy_(torch.tensor([[-1.], [1.]])), method.head[1].bias.zero_()
    source = SceneBias("unbiased", size=100, damping=damping)
    assert low < right_answers(method, source, config) < high
    assert right_answers(method, source, config, stopped=True) == .5      # a tie is answered alike in both forms
