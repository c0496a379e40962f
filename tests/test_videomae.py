"""Masked autoencoding against loops, PyTorch's counter, and what a mask promises."""
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from be_nb.augment import Augment
from be_nb.backbones import create_backbone
from be_nb.backbones.measure import describe
from be_nb.config import override
from be_nb.distractor import Distractor
from be_nb.methods import find_method
from be_nb.methods.base import Batch, build_method, Views
from be_nb.methods.videomae import patch_targets, split_tokens, VideoMAE
from be_nb.recipes import recipe
from be_nb.settings import PretrainConfig
from be_nb.studies import cells
from be_nb.studies.bench import measure
from be_nb.train import pretrain


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(mask="tube", distractor="intra_frame", gamma=1., masked=.75):
    torch.manual_seed(0)
    views = Views(Augment(24, crop=(1., 1.)), Distractor(distractor, gamma))
    return VideoMAE(create_backbone("vit", width=24, depth=2), masked, mask, 24, 1, views).eval()


def batch_of(method, size=4):
    "A batch of random clips, and the clips as the method sees them."
    clips = torch.randint(0, 256, (size, 1, 8, 3, 24, 24), generator=generator(1)).byte()
    return Batch(clips, generator()), method.views.clean(Batch(clips, generator()))


# masks


@pytest.mark.parametrize("grid, hidden", [((4, 6, 6), 27), ((2, 4, 5), 18), ((8, 14, 14), 176)])
def test_a_tube_is_the_same_places_in_every_frame(grid, hidden):
    t, h, w = grid
    shown, masked = split_tokens(torch.rand(5, h * w, generator=generator()), grid, hidden)
    assert torch.equal(torch.cat([shown, masked], 1).sort(1).values, torch.arange(t * h * w).expand(5, -1))
    table = torch.zeros(5, t * h * w, dtype=torch.bool).scatter_(1, masked, True).view(5, t, h * w)
    assert (table.sum(2) == hidden).all() and torch.equal(table, table[:, :1].expand_as(table))
    assert len({tuple(row.tolist()) for row in table[:, 0]}) == 5, "all clips have the same mask"


def test_random_masks_hide_as_many_tokens_and_no_tubes():
    shown, masked = split_tokens(torch.rand(5, 144, generator=generator()), (4, 6, 6), 27)
    assert shown.shape == (5, 36) and masked.shape == (5, 108)
    table = torch.zeros(5, 144, dtype=torch.bool).scatter_(1, masked, True).view(5, 4, 36)
    assert .6 < table.float().mean() < .9 and not torch.equal(table, table[:, :1].expand_as(table))


@pytest.mark.parametrize("share, hidden", [(.75, 27), (.9, 32), (.5, 18), (1 / 36, 1), (35 / 36, 35)])
def test_shares_are_rounded_down(share, hidden):
    method = make(masked=share)
    shown, masked = method.choose(*batch_of(method))
    assert (shown.shape[1], masked.shape[1]) == (4 * (36 - hidden), 4 * hidden)


def test_every_place_is_hidden_equally_often():
    _, masked = split_tokens(torch.rand(4000, 36, generator=generator()), (1, 6, 6), 27)
    assert torch.bincount(masked.flatten(), minlength=36).div(4000).sub(.75).abs().max() < .03


# targets and loss


def targets_slowly(clip, box):
    "A clip (c, t, h, w) → one list of numbers for each tubelet, colour by colour."
    (c, *lengths), rows = clip.shape, []
    for t in range(0, lengths[0], box[0]):
        for y in range(0, lengths[1], box[1]):
            for x in range(0, lengths[2], box[2]):
                row = []
                for k in range(c):
                    values = clip[k, t:t + box[0], y:y + box[1], x:x + box[2]].flatten().tolist()
                    mean = sum(values) / len(values)
                    deviation = (sum((v - mean)**2 for v in values) / (len(values) - 1))**.5
                    row += [(v - mean) / (deviation + 1e-6) for v in values]
                rows.append(row)
    return rows


def test_targets_are_loops():
    method, clips = make(), torch.randn(1, 3, 4, 8, 8, generator=generator()).double()
    found = patch_targets(method.backbone.cut(clips, (2, 4, 4)))
    torch.testing.assert_close(found[0], torch.tensor(targets_slowly(clips[0], (2, 4, 4))), rtol=1e-4, atol=1e-5)


def test_brightness_and_contrast_of_a_patch_are_not_asked_for():
    boxes = torch.randn(2, 4, 6, 6, 3, 32, generator=generator())
    scale, shift = torch.rand(2, 4, 6, 6, 3, 1) + .5, torch.randn(2, 4, 6, 6, 3, 1)
    torch.testing.assert_close(patch_targets(boxes), patch_targets(scale * boxes + shift), rtol=1e-3, atol=1e-4)
    assert patch_targets(torch.ones(1, 1, 1, 1, 3, 32)).eq(0).all(), "a flat patch is asked for nothing"


def test_loss_is_the_mean_over_hidden_pixels():
    method = make()
    batch, clean = batch_of(method)
    with torch.no_grad():
        loss, metrics = method(batch)
        again = batch_of(method)[0]
        method.views.clean(again)
        shown, hidden = method.choose(again, clean)
        predicted = method.predict(method.views.distract(clean, again), shown, hidden)
    squares = []
    for i in range(4):
        rows = torch.tensor(targets_slowly(clean[i], (2, 4, 4)))
        squares += [(predicted[i, n] - rows[token]).square() for n, token in enumerate(hidden[i].tolist())]
    assert loss.item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-4)
    assert metrics["explained"].item() == pytest.approx(1 - loss.item() / method.reference_loss(4), rel=1e-3)


def test_predicting_zero_pays_the_reference():
    method = make()
    torch.nn.init.zeros_(method.pixels.weight)
    assert method(batch_of(method)[0])[0].item() == pytest.approx(31 / 32, rel=1e-5) == method.reference_loss(4)


def test_the_mean_of_all_predictions_is_not_the_way_down():
    "What is the same for all tubelets explains nothing: over random clips the best constant is 0."
    method = make()
    batch, clean = batch_of(method, 32)
    targets = method.targets(clean, method.choose(batch, clean)[1])
    assert targets.mean((0, 1)).square().mean() < .01


# what is seen


@pytest.mark.parametrize("erasing", ["none", "intra_frame"])
@pytest.mark.parametrize("mask", ["tube", "random"])
def test_hidden_pixels_reach_the_network_only_as_a_ghost_under_random_masks(mask, erasing):
    "A still frame brings pixels from its own moment to all others: to hidden places alone, where masks are tubes."
    method = make(mask, erasing)
    batch, clean = batch_of(method)
    shown, hidden = method.choose(batch, clean)
    mine = torch.zeros(4, 144, dtype=torch.bool).scatter_(1, hidden, True).view(4, 1, 4, 6, 6)
    mine = mine.repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    other = torch.where(mine, torch.randn(clean.shape, generator=generator(5)), clean)
    draw = method.views.distractor.sample(clean, generator(7))
    seen = [method.views.distractor.mix(clips.clone(), draw) for clips in (clean, other)]
    with torch.no_grad():
        first, second = (method.predict(clips, shown, hidden) for clips in seen)
    assert torch.equal(first, second) == (mask == "tube" or erasing == "none")


def test_targets_are_clean():
    method = make()
    torch.nn.init.zeros_(method.pixels.weight)
    batch, clean = batch_of(method)
    method.choose(batch, clean)
    distracted = method.views.distract(clean, Batch(batch.clips, generator(3)))
    assert not torch.allclose(clean, distracted, atol=.1)
    seen = []
    method.targets = lambda clips, hidden: seen.append(clips) or VideoMAE.targets(method, clips, hidden)
    method(batch_of(method)[0])
    assert torch.equal(seen[0], clean)


def test_hidden_tokens_have_no_order():
    method = make()
    batch, clean = batch_of(method)
    shown, hidden = method.choose(batch, clean)
    order = torch.randperm(hidden.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(method.predict(clean, shown, hidden)[:, order],
                                   method.predict(clean, shown, hidden[:, order]), rtol=1e-4, atol=1e-5)


# cost, settings, training


@pytest.mark.parametrize("changes", [{}, {"masked": .9, "decoder_depth": 2}, {"mask": "random", "decoder_width": 72},
                                     {"backbone": "vit_small", "size": 64, "frames": 4, "decoder_width": 192}])
def test_passes_are_what_pytorch_counts(changes):
    "A forward pass of encoder and decoder, beside one of the whole clip; the backward pass costs twice as much."
    config = PretrainConfig(method="videomae", **changes)
    method = build_method(config).to("meta")
    clips = torch.empty(1, 3, config.frames, config.size, config.size, device="meta")
    grid = method.backbone.grid(clips.shape[2:])
    draws = torch.rand(1, math.prod(grid[config.mask == "tube":]))
    shown, hidden = split_tokens(draws, grid, math.floor(config.masked * grid[1] * grid[2]))
    with FlopCounterMode(display=False) as counter:
        method.predict(clips, shown.to("meta"), hidden.to("meta"))
    whole = describe(method.backbone, config.frames, config.size).macs
    assert find_method("videomae").passes(config) == pytest.approx(3 * counter.get_total_flops() / 2 / whole, rel=1e-6)


def test_work_is_counted_in_passes_of_the_miniatures_network():
    tiny, own = (describe(create_backbone(name), 8, 24).macs for name in ("tiny", "vit"))
    run = recipe("scenebias-videomae")
    assert cells.work_of(run) == pytest.approx(find_method("videomae").passes(run) * own / tiny)
    assert cells.work_of(PretrainConfig(backbone="vit")) == pytest.approx(7 * own / tiny)
    steps = cells.equal_steps(run, 400)
    assert steps * 64 * cells.work_of(run) == pytest.approx(400 * 64 * 7, rel=1e-3)


def test_it_learns_with_a_transformer_unless_told_otherwise():
    assert PretrainConfig(method="videomae").backbone == "vit" and PretrainConfig().backbone == "tiny"
    assert override(PretrainConfig(), method="videomae").backbone == "vit"
    assert override(PretrainConfig(method="videomae"), method="moco").backbone == "tiny"
    assert PretrainConfig(method="moco", backbone="vit").backbone == "vit"


@pytest.mark.parametrize("changes, words", [
    ({"backbone": "tiny"}, "backbone='tiny' cannot.*Choose vit"), ({"backbone": "i3d"}, "reads what is hidden"),
    ({"size": 26}, r"whole tubelets of \(2, 4, 4\)"), ({"frames": 7}, r"\(7, 24, 24\)"),
    ({"masked": .02}, "hides 0 of 36 places: nothing is left to predict"),
    ({"masked": 1.}, "hides 36 of 36 places: nothing is left to see"), ({"mask": "tubes"}, "tube"),
    ({"negative": "intra_video"}, "makes no use of negative"), ({"backbone": "vitt"}, "Did you mean 'vit'")])
def test_settings_that_make_no_sense_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        PretrainConfig(method="videomae", **changes)


def test_networks_and_widths_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="cannot.*Choose vit"):
        VideoMAE(create_backbone("tiny"))
    with pytest.raises(ValueError, match="multiple of 6 and of a head's 24"):
        build_method(PretrainConfig(method="videomae", decoder_width=50))


def test_one_video_is_learned_by_heart(tmp_path):
    "Far below the reference: gradients go where they should."
    config = PretrainConfig(method="videomae", distractor="none", data_size=1, batch_size=1, steps=80, lr=3e-3,
                            warmup_steps=5, crop=(1., 1.), brightness=0., contrast=0., saturation=0., hue=0.,
                            mask="random", masked=.5, log_every=10, checks=False, device="cpu", out=str(tmp_path))
    explained = [row["explained"] for row in pretrain(config, progress=False).history]
    assert explained[-1] > .15 and explained[0] < .1


def test_bench_counts_what_is_shown():
    config = PretrainConfig(method="videomae", batch_size=4, data_size=8, frames=4, size=16, device="cpu", amp="fp32")
    macs = {part.name: part.macs for part in measure(config, 1)[0]}
    clip = describe(create_backbone("vit"), 4, 16).macs
    assert macs["forward"] == round(4 * clip * find_method("videomae").passes(config) / 3)
    assert macs["backward"] == 2 * macs["forward"]
