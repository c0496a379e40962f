"""Actors and backgrounds: geometry of crops, what may change and what may not, masks from every source."""
import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from be_nb.data.actors import (actor_boxes, boxes_to_mask, crop_to_actor, fill_holes, find_people, grow_mask,
                               inpaint_background, load_detector, other_backgrounds, PERSON, read_masks,
                               still_background, swap_background)
from be_nb.data.decode import decode
from be_nb.data.scenebias import SceneBias


@st.composite
def clips_and_masks(draw):
    "A random clip, and a mask of rectangles that is empty in some frames but not in all."
    t, h, w = draw(st.integers(1, 14)), draw(st.integers(3, 20)), draw(st.integers(3, 20))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = torch.zeros(t, h, w, dtype=torch.bool)
    for frame in range(t):
        if frame == t // 2 or rng.random() < 0.7:
            y, x = rng.integers(h), rng.integers(w)
            mask[frame, y:y + rng.integers(1, h), x:x + rng.integers(1, w)] = True
    return torch.from_numpy(rng.integers(0, 256, (t, 3, h, w), dtype=np.uint8)), mask


@settings(max_examples=80, deadline=None)
@given(clips_and_masks(), st.floats(0, 1), st.booleans())
def test_crops_have_one_size_lose_no_actor_and_copy_pixels(pair, margin, follow):
    clip, mask = pair
    crop = crop_to_actor(clip, mask, margin, follow)
    kept = crop_to_actor(mask[:, None].byte().expand(-1, 3, -1, -1), mask, margin, follow)[:, 0].bool()
    assert crop.shape[:2] == clip.shape[:2] and crop.shape[2] <= clip.shape[2] and crop.shape[3] <= clip.shape[3]
    assert torch.equal(kept.sum((1, 2)), mask.sum((1, 2)))
    for frame, cut in zip(clip, crop):  # each frame is a window of its own frame
        windows = frame.unfold(1, cut.shape[1], 1).unfold(2, cut.shape[2], 1)
        assert (windows == cut[:, None, None]).all(-1).all(-1).all(0).any()


@settings(max_examples=40, deadline=None)
@given(clips_and_masks())
def test_a_standing_crop_is_the_box_of_the_union(pair):
    clip, mask = pair
    y, x = (part.numpy() for part in mask.any(0).nonzero().T)
    crop = crop_to_actor(clip, mask, margin=0)
    assert torch.equal(crop, clip[:, :, y.min():y.max() + 1, x.min():x.max() + 1])


def test_boxes_go_straight_where_nobody_is_seen():
    mask = torch.zeros(7, 20, 30, dtype=torch.bool)
    mask[1, 2:4, 5:9], mask[5, 6:8, 13:17] = True, True
    boxes = actor_boxes(mask)
    assert boxes[0].tolist() == boxes[1].tolist() == [2, 5, 4, 9] and boxes[6].tolist() == [6, 13, 8, 17]
    assert boxes[3].tolist() == [4, 9, 6, 13]


@settings(max_examples=40, deadline=None)
@given(clips_and_masks(), st.integers(0, 99))
def test_emptied_clips_keep_the_scene_and_forget_the_actor(pair, seed):
    clip, mask = pair
    if mask.all(0).all():
        return
    empty, outside = inpaint_background(clip, mask), ~mask[:, None].expand_as(clip)
    assert torch.equal(empty[outside], clip[outside])
    noise = torch.randint(256, clip.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(inpaint_background(torch.where(outside, clip, noise), mask), empty)
    assert (empty >= clip.masked_fill(~outside, 255).amin((0, 2, 3)).view(3, 1, 1)).all()  # nothing new is invented
    assert (empty <= clip.masked_fill(~outside, 0).amax((0, 2, 3)).view(3, 1, 1)).all()


@settings(max_examples=40, deadline=None)
@given(clips_and_masks(), st.integers(1, 20))
def test_swapped_clips_are_actor_inside_and_scene_outside(pair, frames):
    clip, mask = pair
    scene = torch.randint(256, (frames, *clip.shape[1:]), dtype=torch.uint8)
    swapped, inside = swap_background(clip, mask, scene), mask[:, None].expand_as(clip)
    assert torch.equal(swapped[inside], clip[inside])
    played = torch.stack([scene[k % frames] for k in range(len(clip))])
    assert torch.equal(swapped[~inside], played[~inside])
    assert torch.equal(swap_background(clip, mask, scene[0]), swap_background(clip, mask, scene[:1]))


def test_a_still_scene_is_found_exactly_where_it_is_ever_seen():
    source = SceneBias("test", size=6, side=32)
    scene = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    for i in range(6):
        mask = source.mask(i)
        clip = swap_background(source.read(i, range(source.frames)), mask, scene)
        seen = ~mask.all(0)
        assert torch.equal(still_background(clip, mask)[:, seen], scene[:, seen])


def test_filled_holes_are_harmonic():
    rng = torch.Generator().manual_seed(0)
    picture, hole = torch.rand(2, 12, 15, generator=rng) * 255, torch.rand(12, 15, generator=rng) < 0.5
    filled = fill_holes(picture, hole)
    assert torch.equal(filled[:, ~hole], picture[:, ~hole])
    for y, x in hole.nonzero().tolist():  # the definition, pixel by pixel
        near = [filled[:, v, u] for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
                if 0 <= v < 12 and 0 <= u < 15]
        torch.testing.assert_close(filled[:, y, x], torch.stack(near).mean(0), rtol=0, atol=1e-2)
    with pytest.raises(ValueError, match="nothing is known"):
        fill_holes(picture, torch.ones(12, 15, dtype=torch.bool))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(0, 9))
def test_scenes_are_dealt_each_once_and_never_at_home(labels, seed):
    if 2 * max(map(labels.count, labels)) > len(labels):
        with pytest.raises(ValueError, match="more than half"):
            other_backgrounds(labels, seed)
        return
    dealt = other_backgrounds(labels, seed)
    assert sorted(dealt.tolist()) == list(range(len(labels)))
    assert all(labels[j] != labels[i] for i, j in enumerate(dealt))
    assert (dealt == other_backgrounds(labels, seed)).all()


def test_grown_masks_are_squares_around_points():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 1] = True
    assert torch.equal(grow_mask(mask, 2)[0].nonzero().aminmax(dim=0).min, torch.tensor([2, 0]))
    assert grow_mask(mask, 2).sum() == 5 * 4 and torch.equal(grow_mask(mask, 0), mask)


def test_masks_that_do_not_fit_are_refused():
    clip, mask = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.ones(4, 8, 8, dtype=torch.bool)
    for function in (crop_to_actor, inpaint_background):
        for bad in (mask[:3], mask[:, :7], mask.float()):
            with pytest.raises(ValueError, match="mask of a clip"):
                function(clip, bad)
        with pytest.raises(ValueError, match="must be uint8"):
            function(clip.float(), mask)
    with pytest.raises(ValueError, match="no actor"):
        crop_to_actor(clip, ~mask)
    with pytest.raises(ValueError, match="background must be"):
        swap_background(clip, mask, clip[:, :, :7])


def test_the_boxes_of_hmdb51(tmp_path):
    (tmp_path / "a.bb").write_text("1 2.5 3 6 7.2 0.9 10 0 14 4 0.5\n2\n\n3 -5 -5 3 2 0.8 \n")
    mask = read_masks(tmp_path / "a.bb", (10, 12))
    expected = torch.zeros(3, 10, 12, dtype=torch.bool)
    expected[0, 3:8, 2:6], expected[0, :4, 10:], expected[2, :2, :3] = True, True, True
    assert torch.equal(mask, expected)
    for text in ("1 2 3\n", "one\n", "", "5 1 1 2 2 1\n3\n"):
        (tmp_path / "b.bb").write_text(text)
        with pytest.raises(ValueError, match="b.bb"):
            read_masks(tmp_path / "b.bb", (10, 12))


def test_masks_of_files_that_are_none(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"no matrix")
    scipy.io.savemat(tmp_path / "b.mat", {"other": np.zeros(3)})
    for name in ("a.mat", "b.mat", "c.txt"):
        with pytest.raises(ValueError, match=name):
            read_masks(tmp_path / name, (4, 4))


def test_the_masks_of_jhmdb(footage):
    "The official form and the packed one, on real files; the actor covers a plausible part of the frame."
    mask = read_masks(footage / "clips/100_pullups_pullup_f_nm_np1_fr_med_1.mat", (240, 320))
    raw = scipy.io.loadmat(footage / "clips/100_pullups_pullup_f_nm_np1_fr_med_1.mat")["part_mask"]
    assert mask.shape == (40, 240, 320) and np.array_equal(mask[7].numpy(), raw[:, :, 7] > 0)
    half = read_masks(footage / "clips/100_pullups_pullup_f_nm_np1_fr_med_1.mat", (120, 160))
    assert abs(half.float().mean() - mask.float().mean()) < 0.01
    names = [line.split()[0][:-4] for line in (footage / "jhmdb-21/val.txt").read_text().splitlines()[::60]]
    for name in names:
        clip = torch.from_numpy(decode(footage / "jhmdb-21/videos" / f"{name}.mp4")).permute(0, 3, 1, 2)
        mask = read_masks(footage / "jhmdb-21/actor_masks.npz", clip.shape[2:], name)
        assert len(mask) == len(clip) and 0.005 < mask.float().mean() < 0.7
        assert crop_to_actor(clip, mask, follow=True).shape[2] <= 128


def test_detectors_with_boxes_and_with_masks():
    clip = torch.zeros(5, 3, 16, 20, dtype=torch.uint8)
    clip[:, 0] = torch.arange(5).view(5, 1, 1)

    def boxes(pictures):
        assert all(p.shape == (3, 16, 20) and p.dtype == torch.float32 for p in pictures)
        at = [round(float(p[0, 0, 0]) * 255) for p in pictures]
        return [{"boxes": torch.tensor([[k, 1, k + 4, 9], [0, 0, 20, 16], [0, 0, 20, 16]]).float(),
                 "labels": torch.tensor([PERSON, PERSON, 17]), "scores": torch.tensor([0.9, 0.2, 0.99])} for k in at]

    def masks(pictures):
        return [result
                | {"masks": boxes_to_mask([b[None].numpy() for b in result["boxes"]], (16, 20))[:, None].float() * 0.8}
                for result in boxes(pictures)]

    expected = boxes_to_mask([[[k, 1, k + 4, 9]] for k in range(5)], (16, 20))
    for detector in (boxes, masks):
        for batch in (1, 2, 5):
            assert torch.equal(find_people(clip, detector, batch=batch), expected)
    assert find_people(clip, boxes, threshold=0.1).all()


def test_detectors_of_torchvision_are_loaded_from_a_file(tmp_path):
    name = "ssdlite320_mobilenet_v3_large"
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    loaded = load_detector(tmp_path / "w.pt", name)
    assert all(torch.equal(a, b)
               for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert find_people(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), loaded).shape == (1, 40, 40)
    with pytest.raises(ValueError, match="no detector"):
        load_detector(tmp_path / "w.pt", "resnet18")
