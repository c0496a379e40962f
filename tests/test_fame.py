"""FAME: the mask against a square whose place is known and against SceneBias's own, and who gets whose wall."""
import pytest
import torch

from be_nb.augment import denormalize
from be_nb.data.scenebias import SceneBias
from be_nb.methods.base import Batch, build_method
from be_nb.methods.fame import colours, foreground, fuse, movement
from be_nb.settings import PretrainConfig


def moving_square(side=8, size=24, step=1, seed=0):
    "A square of one colour that moves over still noise of other colours: clip (1, 3, 6, size, size), where it was."
    wall = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * .4
    clip, place = wall[:, None].repeat(1, 6, 1, 1), torch.zeros(6, size, size, dtype=torch.bool)
    for k in range(6):
        y, x = 6, 3 + step * k
        clip[:, k, y:y + side, x:x + side] = torch.tensor([.9, .8, .1])[:, None, None]
        place[k, y:y + side, x:x + side] = True
    return clip[None], place


@pytest.mark.parametrize("share", [.05, .2, .5, 1.])
def test_mask_has_its_share_of_pixels(share):
    clips = torch.rand(3, 3, 4, 20, 24, generator=torch.Generator().manual_seed(0))
    mask = foreground(clips, share)
    assert mask.shape == (3, 20, 24) and (mask.flatten(1).sum(1) == int(share * 480)).all()


def test_colours_are_those_of_the_picture():
    clips = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 4 - 2
    assert torch.allclose(colours(clips).clamp(0, 1), denormalize(clips), atol=1e-6)


def test_movement_is_a_mean_of_differences():
    clips = torch.rand(2, 3, 5, 4, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    slow = sum((clips[:, :, k] - clips[:, :, k - 1]).abs() for k in range(1, 5)).sum(1) / 4
    assert torch.allclose(movement(clips), slow)
    assert movement(clips[:, :, :1].expand_as(clips)).max() == 0


@pytest.mark.parametrize("step", [1, 2])
def test_mask_finds_a_square_that_moves(step):
    clip, place = moving_square(step=step)
    mask = foreground(clip, .25)[0]
    always = place.all(0) if step == 1 else place.float().mean(0) > .5
    assert (mask & always).sum() / always.sum() > .9
    assert (mask & place.any(0)).sum() / mask.sum() > .6


def test_mask_is_nearer_to_the_actor_than_chance():
    videos = SceneBias("pretrain", size=40)
    clips = torch.stack([torch.as_tensor(videos.read(i, range(8))) for i in range(40)]).transpose(1, 2) / 255
    actor = torch.stack([torch.as_tensor(videos.mask(i))[:8] for i in range(40)])
    for share in (.5, .2):
        mask = foreground(clips, share)[:, None].expand_as(actor)
        overlap = ((mask & actor).sum((1, 2, 3)) / (mask | actor).sum((1, 2, 3))).mean()
        chance = torch.rand(40, 1, 30, 30, generator=torch.Generator().manual_seed(1)) < share
        by_chance = ((chance & actor).sum((1, 2, 3)) / (chance | actor).sum((1, 2, 3))).mean()
        assert overlap > 1.3 * by_chance


def test_no_clip_is_its_own_partner():
    for b in (2, 3, 7):
        clips = torch.arange(float(b))[:, None, None, None, None].expand(b, 1, 2, 3, 3)
        seen = {(i, int(v)) for seed in range(60) for i, v in enumerate(fuse(
            clips, torch.zeros(b, 3, 3, dtype=torch.bool),
            torch.rand(b, generator=torch.Generator().manual_seed(seed)))[:, 0, 0, 0, 0])}
        assert seen == {(i, j) for i in range(b) for j in range(b) if i != j}


def test_fused_clips_are_one_inside_and_another_outside():
    clips = torch.rand(2, 3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1)) < .5
    found, m = fuse(clips, mask, torch.rand(2)), mask[:, None, None].float()
    assert torch.allclose(found, clips * m + clips.flip(0) * (1 - m))


def test_with_all_of_the_frame_kept_it_is_moco():
    "The same numbers but for one draw: compare with the augmentation of the key given by hand."
    config = PretrainConfig(method="fame", foreground=1.0, frames=4, size=16, dim=8, queue_size=12)
    method = build_method(config).eval()
    clips = torch.randint(0, 256, (4, 2, 4, 3, 20, 20), generator=torch.Generator().manual_seed(1)).byte()
    loss, _ = method(Batch(clips, torch.Generator().manual_seed(5)))
    again, views = Batch(clips, torch.Generator().manual_seed(5)), method.views
    window = views.clean(again)
    torch.rand(4, generator=again.draw)
    query, key, third = views.distract(window, again), views.clean(again), views.negative(again)
    with torch.no_grad():
        q, n = method.embed(query), method.embed(third)
        k = torch.nn.functional.normalize(method.key_head(method.key_backbone(key)), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.keys.T, (q * n).sum(1, keepdim=True)], 1) / .07
    assert loss.item() == pytest.approx((logits.logsumexp(1) - logits[:, 0]).mean().item(), rel=1e-4)


def test_one_video_has_no_other_wall():
    method = build_method(PretrainConfig(method="fame", frames=4, size=16)).train()
    with pytest.raises(ValueError, match="two or more"):
        method(Batch(torch.zeros(1, 2, 4, 3, 20, 20, dtype=torch.uint8)))
