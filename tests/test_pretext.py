"""Pretext tasks against slow oracles: lists and loops for the questions, a sum written out for the loss."""
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from be_nb.augment import Augment
from be_nb.distractor import Distractor
from be_nb.methods.base import Batch, build_method, Views, Windows
from be_nb.methods.order import arrange, ClipOrder, orders, PairwiseHead, shuffle_pieces
from be_nb.methods.pace import Pace
from be_nb.methods.pretext import Pretext
from be_nb.methods.puzzles import box_size, CubicPuzzles, draw_corners, KINDS, take_cuboids, window_length
from be_nb.methods.rotnet import RotNet3D
from be_nb.settings import PretrainConfig
from be_nb.training.step import build_optimizer, train_step

quickly = settings(max_examples=40, deadline=None)
# class, its own knobs, frames of a window, classes
TASKS = {"rotnet": (RotNet3D, {}, 4, 4), "puzzles": (CubicPuzzles, {}, 8, 24), "order": (ClipOrder, dict(gap=1), 11, 6),
         "pace": (Pace, {}, 13, 4)}


class Small(nn.Module):
    "A backbone without BatchNorm, so that clips do not know of each other."

    feature_dim = 5

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv3d(3, 5, 3, padding=1), 0

    def features(self, clips):
        self.calls += 1
        return self.conv(clips).relu()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips_of(name, batch=3):
    return videos(TASKS[name][2], batch)


def videos(frames, batch=3, seed=0):
    return torch.randint(0, 256, (batch, 1, frames, 3, 16, 16), generator=generator(seed)).byte()


def make(name, beta=1., augment=None, gamma=.3, distractor="intra_frame", **options):
    kind, own = TASKS[name][:2]
    torch.manual_seed(0)
    views = Views(augment or Augment(12), Distractor(distractor, gamma))
    return kind(Small(), beta=beta, views=views, **own | options)


def asked(task, views, seed=0, **options):
    "What a task asks of given views (b, p, c, t, h, w)."
    return task(Small(), **options).question(views, Batch(views, generator(seed)))


@pytest.mark.parametrize("count", range(1, 6))
def test_orders_are_complete_and_invertible(count):
    table = orders(count)
    assert table.tolist() == [list(row) for row in itertools.permutations(range(count))]
    assert len({tuple(row) for row in table.tolist()}) == math.factorial(count)
    pieces = torch.arange(count).expand(len(table), -1)
    assert torch.equal(arrange(arrange(pieces, table), table.argsort(1)), pieces)
    assert torch.equal(arrange(arrange(pieces, table.argsort(1)), table), pieces)


def test_orders_need_a_piece():
    with pytest.raises(ValueError, match="at least one"):
        orders(0)


@quickly
@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_shuffled_pieces_are_undone_by_their_class(batch, count, seed):
    pieces = torch.randn(batch, count, 2, 3, generator=generator(seed))
    mixed, which = shuffle_pieces(pieces, Batch(pieces, generator(seed)))
    assert mixed.shape == pieces.shape and which.shape == (batch,)
    for item, row, k in zip(pieces, mixed, which.tolist()):
        order = list(itertools.permutations(range(count)))[k]
        assert torch.equal(row, torch.stack([item[i] for i in order]))


def test_all_orders_are_drawn_equally():
    pieces = torch.zeros(24000, 4)
    _, which = shuffle_pieces(pieces, Batch(pieces, generator()))
    counts = which.bincount(minlength=24)
    assert counts.sum() == 24000 and ((counts - 1000).abs() < 5 * 1000**.5).all()


def test_rotations_turn_back():
    views = torch.randn(3, 1, 3, 4, 6, 6)
    questions, target = asked(RotNet3D, views)
    assert questions.shape == (12, 1, 3, 4, 6, 6) and target.tolist() == [0, 1, 2, 3] * 3
    for i, (question, k) in enumerate(zip(questions, target.tolist())):
        for frame, original in zip(question[0].unbind(1), views[i // 4, 0].unbind(1)):
            for _ in range(k):  # a quarter turn clockwise, as transposition and mirror
                frame = frame.transpose(-2, -1).flip(-1)
            assert torch.equal(frame, original)
    with pytest.raises(ValueError, match="square"):
        asked(RotNet3D, views[..., :5])


@quickly
@given(st.integers(0, 9), st.integers(1, 5), st.integers(0, 8))
def test_clips_lie_gap_apart(gap, length, extra):
    frames = 3 * length + 2 * gap + extra
    window, task = torch.arange(frames).view(1, frames, 1, 1, 1), ClipOrder(Small(), gap)
    if extra % 3:
        with pytest.raises(ValueError, match="are not 3 clips"):
            task.cut(window)
        return
    length += extra // 3
    starts = [i * (length + gap) for i in range(3)]
    assert ClipOrder.windows(PretrainConfig(method="order", frames=length, gap=gap)) == Windows(frames=frames)
    assert task.cut(window)[0].flatten(1).tolist() == [list(range(s, s + length)) for s in starts]
    assert starts[-1] + length == frames and task.classes == math.factorial(task.clips)


def test_clips_of_the_paper():
    assert ClipOrder.windows(PretrainConfig(method="order", frames=16)) == Windows(frames=64)
    parts = ClipOrder(Small()).cut(torch.arange(64).view(1, 64, 1, 1, 1))[0].flatten(1).tolist()
    assert parts == [list(range(16)), list(range(24, 40)), list(range(48, 64))]
    with pytest.raises(ValueError, match=r"3·length \+ 16"):
        ClipOrder(Small()).cut(torch.zeros(1, 65, 1, 1, 1))
    with pytest.raises(ValueError, match="gap"):
        PretrainConfig(method="order", gap=-1)


def test_clips_are_augmented_one_by_one():
    method = make("order", augment=Augment(12, crop=(.5, .6)), gap=0)
    still = videos(1, batch=8).expand(-1, -1, 6, -1, -1, -1)
    questions, _ = method.ask(Batch(still, generator()))
    assert (questions - questions[:, :, :, :1]).abs().max() == 0         # within a clip nothing moves
    assert not torch.equal(questions[:, 0], questions[:, 1])             # but every clip has a crop of its own


@pytest.mark.parametrize("kind", ["both", "space", "time"])
@pytest.mark.parametrize("shape", [(32, 24, 24), (4, 2, 2), (17, 9, 13)])
def test_cuboids_lie_in_their_cells(kind, shape):
    cell, size = box_size(shape)
    corners = draw_corners(200, cell, size, KINDS[kind], generator())
    cell, size = cell.tolist(), size.tolist()
    assert cell == [shape[0] // 4, shape[1] // 2, shape[2] // 2]
    assert all(s == max(1, round(.75 * c)) for s, c in zip(size, cell))
    space = [(y, x) for y in range(2) for x in range(2)]
    kinds = set()
    for four in corners.tolist():
        places = [tuple(start // c for start, c in zip(corner, cell)) for corner in four]
        assert all(start % c + s <= c for corner in four for start, c, s in zip(corner, cell, size))
        in_space = [place[1:] for place in places] == space and len({place[0] for place in places}) == 1
        in_time = [place[0] for place in places] == [0, 1, 2, 3] and len({place[1:] for place in places}) == 1
        assert in_space != in_time
        kinds.add("space" if in_space else "time")
    assert kinds == ({"space", "time"} if kind == "both" else {kind})


@pytest.mark.parametrize("size", [(4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 4, 2)])
def test_every_cell_and_jitter_is_drawn(size):
    corners = draw_corners(3000, torch.tensor([4, 4, 4]), torch.tensor(size), .5, generator())
    cells = {tuple(c) for c in (corners // 4).flatten(0, 1).tolist()}
    assert cells == set(itertools.product(range(4), range(2), range(2)))
    room = [range(4 - s + 1) for s in size]
    assert {tuple(c) for c in (corners % 4).flatten(0, 1).tolist()} == set(itertools.product(*room))


@quickly
@given(st.integers(1, 40))
def test_a_window_is_the_shortest_whose_boxes_have_so_many_frames(frames):
    lengths = [n for n in range(4, 400) if box_size((n, 2, 2))[1][0] == frames]
    assert window_length(frames) == lengths[0] and window_length(frames) % 4 == 0


def test_cuboids_are_slices():
    clips, corners, size = torch.randn(3, 2, 9, 7, 8), torch.randint(0, 4, (3, 5, 3)), (5, 3, 4)
    boxes = take_cuboids(clips, corners, size)
    assert boxes.shape == (3, 5, 2, 5, 3, 4)
    for i, j in itertools.product(range(3), range(5)):
        t, y, x = corners[i, j].tolist()
        assert torch.equal(boxes[i, j], clips[i, :, t:t + 5, y:y + 3, x:x + 4])


@pytest.mark.parametrize("kind", ["space", "time"])
def test_puzzles_are_solved_by_their_answer(kind):
    t, y, x = torch.meshgrid(torch.arange(4), torch.arange(2), torch.arange(2), indexing="ij")
    cells = (t * 4 + y * 2 + x).repeat_interleave(8, 0).repeat_interleave(6, 1).repeat_interleave(6, 2).float()
    views = torch.stack([cells, 100 + cells, 200 + cells])[None, None].expand(50, 1, 3, 32, 12, 12)
    boxes, target = asked(CubicPuzzles, views, kind=kind)
    assert (boxes == boxes[:, :1, :1, :1, :1, :1] // 100 * 100 + boxes[:, :, :1, :1, :1, :1] % 100).all()  # one channel
    assert set((boxes[:, 0, 0, 0, 0, 0] // 100).tolist()) == {0, 1, 2}                     # each of them now and then
    number = boxes[:, :, 0, 0, 0, 0] % 100
    solved = arrange(number, orders(4)[target].argsort(1))
    assert (solved.diff(dim=1) == torch.tensor([1., 1, 1] if kind == "space" else [4., 4, 4])).all()


def test_puzzles_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="Did you mean time"):
        CubicPuzzles(Small(), kind="tmie")
    for small in ((3, 8, 8), (4, 1, 8), (4, 8, 1)):
        with pytest.raises(ValueError, match="4 frames"):
            box_size(small)


def test_pairwise_head_is_a_loop():
    head, features = PairwiseHead(5, 3, 6).eval(), torch.randn(4, 3, 5)
    hidden = [head.pair(torch.cat([features[:, i], features[:, j]], 1)).relu() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(head(features), head.answer[1](torch.cat(hidden, 1)), atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_the_sum(name):
    clips, beta = clips_of(name), .7
    method = make(name, beta, gamma=1.).eval()
    loss, metrics = method(Batch(clips, generator(5)))
    batch = Batch(clips, generator(5))
    questions, target = method.ask(batch)
    flat = questions.flatten(0, 1)
    maps = method.backbone.features(flat)
    distracted = method.backbone.features(method.views.distractor(flat, batch.draw))
    logits = method.head(maps.mean((2, 3, 4)).view(*questions.shape[:2], -1))
    psi = [x.mean((3, 4)) for x in (maps, distracted)]
    be = ((psi[0] - psi[1])**2).mean()
    assert torch.allclose(loss, F.cross_entropy(logits, target) + beta * be)
    assert torch.allclose(metrics["be"], be) and be > 0
    assert torch.allclose(metrics["accuracy"], (logits.argmax(1) == target).float().mean())
    assert torch.allclose(metrics["be_relative"], be / psi[0].var(0, unbiased=False).mean())
    assert not any(value.requires_grad or value.ndim for value in metrics.values())


@pytest.mark.parametrize("name", TASKS)
def test_without_erasing_nothing_is_paid(name):
    clips, found = clips_of(name), {}
    for distractor in ("none", "intra_frame"):
        method = make(name, 2., distractor=distractor).eval()
        found[distractor] = method(Batch(clips, generator(3))), method.backbone.calls
    (loss, metrics), calls = found["none"]
    (_, erasing), more = found["intra_frame"]
    assert (calls, more) == (1, 2)
    assert sorted(metrics) == ["accuracy", "pretext"] and loss.item() == metrics["pretext"].item()
    assert torch.equal(metrics["pretext"], erasing["pretext"])               # the same questions, with and without
    assert torch.equal(metrics["accuracy"], erasing["accuracy"])
    assert make(name, 0.).beta == make(name, 2., distractor="none").beta == 0


@pytest.mark.parametrize("name", TASKS)
def test_trains_and_repeats(name):
    config = PretrainConfig(batch_size=3, warmup_steps=0, lr=1e-2, amp="fp32", schedule="constant")
    weights = []
    for _ in range(2):
        method, found = make(name).train(), {"clips": clips_of(name)}
        optimizer = build_optimizer(config, method)
        rows = [train_step(method, found, optimizer, step, config) for step in range(3)]
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
        assert all(torch.isfinite(row["loss"]) for row in rows)
    assert torch.equal(*weights)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.backbone.parameters())


def test_a_task_can_be_learned():
    config = PretrainConfig(batch_size=8, warmup_steps=0, lr=2e-2, amp="fp32", schedule="constant")
    torch.manual_seed(0)
    method = make("rotnet", distractor="none", augment=Augment(12, crop=(1., 1.))).train()
    ramp = torch.linspace(20, 230, 12).byte().view(1, 1, 1, 1, 12, 1).expand(8, 1, 4, 3, 12, 12)
    optimizer = build_optimizer(config, method)
    rows = [train_step(method, {"clips": ramp}, optimizer, step, config) for step in range(150)]
    assert rows[0]["loss"] > .5 * method.reference_loss(8) and rows[-1]["accuracy"] == 1


@pytest.mark.parametrize("name", TASKS)
def test_reference_loss_is_that_of_equal_logits(name):
    method = make(name)
    nn.init.zeros_(list(method.head.parameters())[-1])
    nn.init.zeros_(list(method.head.parameters())[-2])
    loss, _ = method(Batch(clips_of(name), generator()))
    assert loss.item() == pytest.approx(method.reference_loss(3), abs=.05) and method.classes == TASKS[name][3]
    nothing = make(name, distractor="none")
    nothing.load_state_dict(method.state_dict())
    loss, _ = nothing(Batch(clips_of(name), generator()))
    assert loss.item() == pytest.approx(nothing.reference_loss(3)) == pytest.approx(math.log(TASKS[name][3]))


@pytest.mark.parametrize("name", TASKS)
def test_a_method_reads_its_config(name):
    own = {"order": dict(gap=2), "puzzles": dict(kind="time"), "pace": dict(paces=3)}.get(name, {})
    config = PretrainConfig(method=name, beta=.5, gamma=.4, size=20, **own)
    method = build_method(config)
    assert method.beta == .5 and method.views.distractor.gamma == .4 and method.views.augment.size == 20
    assert all(value in (getattr(method, key, None), method.classes) for key, value in own.items())
    with pytest.raises(ValueError, match="beta=0 leaves the distractor without effect"):
        PretrainConfig(method=name, beta=0.)


@pytest.mark.parametrize("name, frames, size, own, window, box", [
    ("rotnet", 8, 24, {}, 8, 24), ("order", 16, 112, dict(gap=8), 64, 112), ("order", 4, 24, dict(gap=0), 12, 24),
    ("puzzles", 8, 32, {}, 40, 12), ("puzzles", 12, 112, {}, 64, 42), ("pace", 8, 24, {}, 29, 24),
    ("pace", 16, 24, dict(paces=2), 31, 24)])
def test_questions_have_the_frames_that_the_config_names(name, frames, size, own, window, box):
    config = PretrainConfig(method=name, frames=frames, size=size, **own)
    kind = TASKS[name][0]
    assert (kind.windows(config).frames or frames) == window
    method = kind.from_config(config, Small())
    questions, target = method.ask(Batch(torch.zeros(2, 1, window, 3, size, size, dtype=torch.uint8), generator()))
    assert questions.shape[2:] == (3, frames, box, box)
    work = questions.shape[:2].numel() / 2 * (box / size)**2  # per video, in clips of frames × size²
    assert kind.questions(config) == pytest.approx(work) and 0 <= target.min() <= target.max() < method.classes


# Pace


@quickly
@given(paces=st.integers(2, 5), frames=st.integers(1, 6), batch=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_paces_are_frames_counted_by_hand(paces, frames, batch, seed):
    "Each pixel of frame k holds k, so the answer can be read from the question, the question from numpy's indexing."
    length = (frames - 1) * paces + 1
    numbers = torch.arange(length).float().view(1, 1, 1, length, 1, 1).expand(batch, 1, 3, length, 2, 2)
    shown, target = asked(Pace, numbers, seed, paces=paces)
    assert shown.shape == (batch, 1, 3, frames, 2, 2) and 0 <= target.min() <= target.max() < paces
    u = torch.rand(batch, 2, generator=generator(seed)).numpy()
    for clip, pace, (first, second) in zip(shown.numpy(), target.tolist(), u):
        assert pace == int(first * np.float32(paces))
        start = int(second * np.float32(length - (frames - 1) * (pace + 1)))
        expected = np.arange(length)[start::pace + 1][:frames]
        assert len(expected) == frames and (clip == expected[None, None, :, None, None]).all()


def test_every_pace_and_every_beginning_is_drawn():
    numbers = torch.arange(13.).view(1, 1, 1, 13, 1, 1).expand(4000, 1, 1, 13, 1, 1)
    shown, target = asked(Pace, numbers, seed=1)
    assert ((target.bincount(minlength=4) - 1000).abs() < 5 * 1000**.5).all()
    for k in range(4):  # the fastest fits in one way only, the slowest in ten
        starts = shown[target == k][:, 0, 0, 0, 0, 0].long()
        assert set(starts.tolist()) == set(range(13 - 3 * (k + 1)))


def test_pace_has_no_cue_in_a_video_that_stands_still():
    still = torch.randn(64, 1, 3, 1, 4, 4).expand(-1, -1, -1, 13, -1, -1)
    shown, target = asked(Pace, still)
    assert target.unique().tolist() == [0, 1, 2, 3] and torch.equal(shown, still[:, :, :, :4])


class First(Pretext):
    "A task in three lines: of two copies of a clip, which one is the mirror image?"

    classes = 2

    def question(self, views, batch):
        return torch.cat([views, views.flip(-1)]), torch.arange(2).repeat_interleave(len(views))


def test_a_task_needs_a_question_and_its_classes():
    loss, metrics = First(Small(), views=Views(Augment(12)))(Batch(videos(4), generator()))
    assert loss > 0 and 0 <= metrics["accuracy"] <= 1


def test_refuses_what_makes_no_sense():
    for beta in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            make("rotnet", beta)
    with pytest.raises(ValueError, match="windows"):
        make("rotnet")(Batch(videos(4)[:, 0]))
