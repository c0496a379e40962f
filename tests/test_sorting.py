"""Pieces in and out of order: tables against loops, pieces against slices, and a ghost that single frames get too."""
import itertools

import pytest
import torch
from conftest import Map

from be_nb.augment import Augment
from be_nb.distractor import Distractor
from be_nb.methods.base import Batch, Views, Windows
from be_nb.methods.sorting import OPN, ShuffleAndLearn
from be_nb.settings import PretrainConfig

KINDS = {"shuffle_learn": ShuffleAndLearn, "opn": OPN}
each = pytest.mark.parametrize("name", KINDS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, gamma=.3, distractor="intra_frame", size=12, **own):
    torch.manual_seed(0)
    return KINDS[name](Map(), views=Views(Augment(size, crop=(1., 1.)), Distractor(distractor, gamma)), **own).eval()


def planned(name, count=3000, frames=9, **own):
    method = make(name, slots=5, gap=1, **own)  # windows of 9 frames: places 0, 2, 4, 6, 8
    return method, *method.plan(Batch(torch.zeros(count, 1), generator()), frames)


def test_tuples_of_shuffle_and_learn_by_hand():
    _, corners, _, target = planned("shuffle_learn")
    seen = {(tuple(row), label) for row, label in zip(corners[..., 0].tolist(), target.tolist())}
    assert seen == {((2, 4, 6), 0), ((6, 4, 2), 0), ((2, 0, 6), 1), ((2, 8, 6), 1)}
    assert abs(target.float().mean().item() - .5) < .05


@each
def test_a_mirrored_question_has_the_same_answer(name):
    kind = KINDS[name]
    known = {tuple(row): label for row, label in zip(kind.table.tolist(), kind.meaning.tolist())}
    assert all(known[row[::-1]] == label for row, label in known.items() if row[::-1] in known)
    assert set(known.values()) == set(range(kind.classes))
    if name == "opn":
        assert set(known) == set(itertools.permutations(range(4)))
        assert sorted(known.values()) == sorted([*range(12)] * 2)


@each
def test_rows_places_shifts_and_channels_are_drawn_evenly(name):
    method, corners, channel, _ = planned(name, 6000, jitter=1)
    ranks = corners[..., 0].argsort(1).argsort(1)
    if name == "opn":
        found = torch.stack([(ranks == torch.tensor(row)).all(1).sum() for row in itertools.permutations(range(4))])
        assert ((found - 250).abs() < 5 * 250**.5).all()
    for values, count in ((corners[..., 1:].flatten(), 3), (channel.flatten(), 3)):
        assert (values.bincount(minlength=count) / len(values)).sub(1 / count).abs().max() < .03
    assert set(corners[..., 0].flatten().tolist()) == {0, 2, 4, 6, 8}


@each
def test_pieces_are_cut_by_hand(name):
    method = make(name, slots=5, gap=1, jitter=2)
    window = torch.randn(4, 3, 5 * 3 + 4, 6, 7, generator=generator())
    corners, channel, _ = method.plan(Batch(window, generator(1)), window.shape[2])
    pieces = method.take(window, corners, channel)
    for b, q in itertools.product(range(4), range(method.clips)):
        start, down, right = corners[b, q].tolist()
        for y, x in itertools.product(range(6), range(7)):  # outside the picture the edge is repeated
            there = window[b, :, start:start + 3, min(max(y + down - 2, 0), 5), min(max(x + right - 2, 0), 6)]
            there = there[channel[b, q]].expand(3, -1) if name == "opn" else there
            assert torch.equal(pieces[b, q, :, :, y, x], there)


@each
def test_windows_have_room_for_all_places(name):
    config = PretrainConfig(method=name, slots=6, gap=2, frames=3)
    assert KINDS[name].windows(config) == Windows(frames=28)
    with pytest.raises(ValueError, match="slots"):
        PretrainConfig(method=name, slots=4)


@each
def test_a_single_frame_is_distracted_too(name):
    "The distracted pieces are those of the distracted window: the same ghost in each, also where pieces are one frame."
    method = make(name, gamma=1., slots=5, gap=0, jitter=0)
    batch = lambda: Batch(torch.randint(0, 256, (3, 1, 5, 3, 12, 12), generator=generator()).byte(), generator(1))
    seen, method.score = [], lambda questions, target, distracted: seen.append((questions, distracted)) or (0, {})
    method(batch())
    questions, distracted = seen[0][0], seen[0][1].unflatten(0, seen[0][0].shape[:2])
    again = batch()
    window = method.views.clean(again)
    corners, channel, _ = method.plan(again, 5)
    draw = method.views.distractor.sample(window, again.draw)
    lam = draw.lam.view(-1, 1, 1, 1, 1, 1)
    still = window[torch.arange(3), :, draw.frame][:, :, None].expand_as(window)
    ghost = method.take(still, corners, channel)
    assert torch.allclose(distracted, (1 - lam) * questions + lam * ghost, atol=1e-5)
    assert questions.shape[3] == 1 and (distracted - questions).abs().amax((1, 2, 3, 4, 5)).min() > 0


@each
def test_with_time_stopped_all_pieces_are_the_same(name):
    method = make(name, slots=5, gap=0)
    clips = torch.randint(0, 256, (4, 1, 10, 3, 12, 12), generator=generator()).byte()
    questions, target = method.ask(Batch(clips, generator()))
    assert questions.shape == (4, method.clips, 3, 2, 12, 12) and target.shape == (4,)
    still = method.stop(questions)
    assert still.shape == questions.shape and torch.equal(still, questions[:, :1, :, :1].expand_as(questions))
