"""Pretext tasks against slow oracles: lists and loops for the questions, a sum written out for the loss."""
import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from be_nb.methods import pretext
from be_nb import train
from be_nb.augment import Augment
from be_nb.settings import PretrainConfig
from be_nb.data.scenebias import SceneBias
from be_nb.distractor import Distractor
from be_nb.methods.order import arrange, ClipOrder, orders, PairwiseHead, shuffle_pieces
from be_nb.methods.puzzles import CubicPuzzles, take_cuboids
from be_nb.methods.pretext import Pretext
from be_nb.methods.rotnet import RotNet3D
from be_nb.training.step import build_optimizer, train_step
from be_nb.methods.base import evaluation_clip

quickly = settings(max_examples=40, deadline=None)
TASKS = {"rotnet": (RotNet3D, 4), "puzzles": (CubicPuzzles, 8), "order": (lambda: ClipOrder(gap=1), 11)}


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


def videos(frames, batch=3, seed=0):
    return torch.randint(0, 256, (batch, 1, frames, 3, 16, 16), generator=generator(seed)).byte()


def make(name, beta=0., **options):
    torch.manual_seed(0)
    return Pretext(TASKS[name][0](), Small(), Augment(12), beta=beta, **options)


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
    mixed, which = shuffle_pieces(pieces, generator(seed))
    assert mixed.shape == pieces.shape and which.shape == (batch,)
    for item, row, k in zip(pieces, mixed, which.tolist()):
        order = list(itertools.permutations(range(count)))[k]
        assert torch.equal(row, torch.stack([item[i] for i in order]))


def test_all_orders_are_drawn_equally():
    _, which = shuffle_pieces(torch.zeros(24000, 4), generator())
    counts = which.bincount(minlength=24)
    assert counts.sum() == 24000 and ((counts - 1000).abs() < 5 * 1000**.5).all()


def test_rotations_turn_back():
    views = torch.randn(3, 1, 3, 4, 6, 6)
    questions, target = RotNet3D().make(views)
    assert questions.shape == (12, 1, 3, 4, 6, 6) and target.tolist() == [0, 1, 2, 3] * 3
    for i, (question, k) in enumerate(zip(questions, target.tolist())):
        for frame, original in zip(question[0].unbind(1), views[i // 4, 0].unbind(1)):
            for _ in range(k):  # a quarter turn clockwise, as transposition and mirror
                frame = frame.transpose(-2, -1).flip(-1)
            assert torch.equal(frame, original)
    with pytest.raises(ValueError, match="square"):
        RotNet3D().make(views[..., :5])


@quickly
@given(st.integers(2, 4), st.integers(0, 9), st.integers(1, 5), st.integers(0, 8))
def test_clips_lie_gap_apart(clips, gap, length, extra):
    frames = clips * length + (clips - 1) * gap + extra
    window, task = torch.arange(frames).view(1, frames, 1, 1, 1), ClipOrder(gap, clips)
    if extra % clips:
        with pytest.raises(ValueError, match="Set frames to"):
            task.cut(window)
        return
    length += extra // clips
    starts = [i * (length + gap) for i in range(clips)]
    assert task.cut(window)[0].flatten(1).tolist() == [list(range(s, s + length)) for s in starts]
    assert starts[-1] + length == frames and task.classes == math.factorial(clips)


def test_clips_of_the_paper():
    parts = ClipOrder().cut(torch.arange(64).view(1, 64, 1, 1, 1))[0].flatten(1).tolist()
    assert parts == [list(range(16)), list(range(24, 40)), list(range(48, 64))]
    with pytest.raises(ValueError, match="such as 64"):
        ClipOrder().cut(torch.zeros(1, 65, 1, 1, 1))
    for wrong in (dict(gap=-1), dict(clips=1)):
        with pytest.raises(ValueError, match="Clip order needs"):
            ClipOrder(**wrong)


def test_clips_are_augmented_one_by_one():
    method = Pretext(ClipOrder(gap=0), Small(), Augment(12, crop=(.5, .6)))
    still = videos(1, batch=8).expand(-1, -1, 6, -1, -1, -1)
    questions, _ = method.ask(still, generator())
    assert (questions - questions[:, :, :, :1]).abs().max() == 0         # within a clip nothing moves
    assert not torch.equal(questions[:, 0], questions[:, 1])             # but every clip has a crop of its own


@pytest.mark.parametrize("kind", ["both", "space", "time"])
@pytest.mark.parametrize("shape", [(32, 24, 24), (4, 2, 2), (17, 9, 13)])
@pytest.mark.parametrize("jitter", [0, .25, .9])
def test_cuboids_lie_in_their_cells(kind, shape, jitter):
    corners, size = CubicPuzzles(jitter, kind).sample(200, shape, generator())
    cell = [shape[0] // 4, shape[1] // 2, shape[2] // 2]
    assert all(1 <= s <= c for s, c in zip(size, cell)) and (jitter or list(size) == cell)
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


def test_every_cell_and_jitter_is_drawn():
    corners, size = CubicPuzzles(.5).sample(3000, (16, 8, 8), generator())
    assert size == (2, 2, 2)
    cells = {tuple(c) for c in (corners // 4).flatten(0, 1).tolist()}
    assert cells == set(itertools.product(range(4), range(2), range(2)))
    assert {tuple(c) for c in (corners % 4).flatten(0, 1).tolist()} == set(itertools.product(range(3), repeat=3))


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
    boxes, target = CubicPuzzles(kind=kind).make(views, generator())
    assert (boxes == boxes[:, :1, :1, :1, :1, :1] // 100 * 100 + boxes[:, :, :1, :1, :1, :1] % 100).all()  # one channel
    assert set((boxes[:, 0, 0, 0, 0, 0] // 100).tolist()) == {0, 1, 2}                     # each of them now and then
    number = boxes[:, :, 0, 0, 0, 0] % 100
    solved = arrange(number, orders(4)[target].argsort(1))
    assert (solved.diff(dim=1) == torch.tensor([1., 1, 1] if kind == "space" else [4., 4, 4])).all()


def test_puzzles_refuse_what_cannot_be():
    for wrong in (dict(jitter=1), dict(jitter=-.1), dict(kind="tmie")):
        with pytest.raises(ValueError, match="jitter is a share"):
            CubicPuzzles(**wrong)
    with pytest.raises(ValueError, match="4 frames"):
        CubicPuzzles().sample(1, (3, 8, 8))


def test_pairwise_head_is_a_loop():
    head, features = PairwiseHead(5, 3, 6).eval(), torch.randn(4, 3, 5)
    hidden = [head.pair(torch.cat([features[:, i], features[:, j]], 1)).relu() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(head(features), head.answer[1](torch.cat(hidden, 1)), atol=1e-6)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("pool", ["avg", "max"])
def test_loss_is_the_sum(name, pool):
    clips, beta = videos(TASKS[name][1]), .7
    method = make(name, beta, distractor=Distractor(gamma=1.), pool=pool).eval()
    loss, metrics = method(clips, generator(5))
    g = generator(5)
    questions, target = method.ask(clips, g)
    flat = questions.flatten(0, 1)
    maps, distracted = method.backbone.features(flat), method.backbone.features(method.distractor(flat, g))
    logits = method.head(maps.mean((2, 3, 4)).view(*questions.shape[:2], -1))
    psi = [x.mean((3, 4)) if pool == "avg" else x.flatten(3).max(3).values for x in (maps, distracted)]
    be = ((psi[0] - psi[1])**2).mean()
    assert torch.allclose(loss, F.cross_entropy(logits, target) + beta * be)
    assert torch.allclose(metrics["be"], be) and be > 0
    assert torch.allclose(metrics["accuracy"], (logits.argmax(1) == target).float().mean())
    assert torch.allclose(metrics["be_relative"], be / psi[0].var(0, unbiased=False).mean())
    assert not any(value.requires_grad or value.ndim for value in metrics.values())


@pytest.mark.parametrize("name", TASKS)
def test_without_erasing_nothing_is_paid(name):
    clips, found = videos(TASKS[name][1]), {}
    for beta in (0., 2.):
        method = make(name, beta).eval()
        found[beta] = method(clips, generator(3)), method.backbone.calls
    (loss, metrics), calls = found[0.]
    assert calls == 1 and found[2.][1] == 2
    assert sorted(metrics) == ["accuracy", "pretext"] and loss.item() == metrics["pretext"].item()
    assert torch.equal(metrics["pretext"], found[2.][0][1]["pretext"])       # the same questions, with and without
    assert torch.equal(metrics["accuracy"], found[2.][0][1]["accuracy"])


@pytest.mark.parametrize("name", TASKS)
def test_trains_and_repeats(name):
    config = PretrainConfig(batch_size=3, warmup_steps=0, lr=1e-2, amp="fp32", schedule="constant")
    weights = []
    for _ in range(2):
        method, clips = make(name, 1.).train(), videos(TASKS[name][1])
        optimizer = build_optimizer(config, method)
        rows = [train_step(method, clips, optimizer, step, config) for step in range(3)]
        weights.append(torch.cat([p.detach().flatten() for p in method.parameters()]))
        assert all(torch.isfinite(row["loss"]) for row in rows)
    assert torch.equal(*weights)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.backbone.parameters())


def test_a_task_can_be_learned():
    config = PretrainConfig(batch_size=8, warmup_steps=0, lr=2e-2, amp="fp32", schedule="constant")
    torch.manual_seed(0)
    method = Pretext(RotNet3D(), Small(), Augment(12, crop=(1., 1.))).train()
    ramp = torch.linspace(20, 230, 12).byte().view(1, 1, 1, 1, 12, 1).expand(8, 1, 4, 3, 12, 12)
    optimizer = build_optimizer(config, method)
    rows = [train_step(method, ramp, optimizer, step, config) for step in range(150)]
    assert rows[0]["loss"] > .5 * method.reference_loss and rows[-1]["accuracy"] == 1


@pytest.mark.parametrize("name", TASKS)
def test_reference_loss_is_that_of_equal_logits(name):
    method = make(name)
    nn.init.zeros_(list(method.head.parameters())[-1])
    nn.init.zeros_(list(method.head.parameters())[-2])
    loss, _ = method(videos(TASKS[name][1]), generator())
    assert loss.item() == pytest.approx(method.reference_loss) == pytest.approx(math.log(method.task.classes))
    assert (method.windows, method.min_offset) == (1, 0)


@pytest.mark.parametrize("name", TASKS)
def test_builders_read_the_config(name):
    config = SimpleNamespace(**(dataclasses.asdict(PretrainConfig()) | dict(beta=.5, gap=2, gamma=.4)))
    config.method = name
    method = pretext.pretext(config, Small())
    assert method.beta == .5 and method.distractor.gamma == .4 and method.augment.size == config.size
    assert name != "order" or method.task.gap == 2


@pytest.mark.parametrize("name, frames, size, gap, expected", [
    ("rotnet", 8, 24, 8, (8, 24)), ("order", 64, 112, 8, (16, 112)), ("order", 12, 24, 0, (4, 24)),
    ("puzzles", 40, 32, 8, (8, 32)), ("puzzles", 64, 112, 8, (12, 112)), ("moco", 16, 56, 8, (16, 56))])
def test_evaluation_shows_clips_as_the_backbone_saw_them(name, frames, size, gap, expected):
    config = PretrainConfig(method=name, frames=frames, size=size, gap=gap)
    assert evaluation_clip(config) == evaluation_clip(dataclasses.asdict(config)) == expected
    if name in pretext.TASKS:  # and that is what the questions really look like
        task = pretext.TASKS[name](config)
        parts = task.cut(torch.zeros(2, frames, 3, size, size, dtype=torch.uint8))
        questions, _ = task.make(parts.transpose(2, 3).float(), generator())
        assert questions.shape[3] == expected[0]


def test_evaluation_of_an_unknown_method_takes_the_settings_as_they_are():
    assert evaluation_clip({"method": "theirs", "frames": 5, "size": 20}) == (5, 20)
    with pytest.raises(ValueError, match="Set frames to"):
        evaluation_clip(PretrainConfig(method="order", frames=8))


def test_any_object_with_these_names_is_a_task():
    class First:
        classes = 2
        cut = staticmethod(lambda window: window[:, None])
        make = staticmethod(lambda views, generator=None: (views, torch.zeros(len(views), dtype=torch.long)))
        head = staticmethod(lambda feature_dim: nn.Sequential(nn.Flatten(), nn.Linear(feature_dim, 2)))
        loss = staticmethod(lambda logits, target: logits.pow(2).mean())

    loss, metrics = Pretext(First(), Small(), Augment(12))(videos(4), generator())
    assert loss > 0 and 0 <= metrics["accuracy"] <= 1


def test_refuses_what_makes_no_sense():
    for beta in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            make("rotnet", beta)
    with pytest.raises(ValueError, match="distractor is 'none'"):
        make("rotnet", 1., distractor=Distractor("none"))
    assert make("rotnet", 0., distractor=Distractor("none")).beta == 0
