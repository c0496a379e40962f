"""be_nb.augment and be_nb.pixels against torchvision's functional transforms, frame by frame, and its properties."""
import pickle

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from be_nb.pixels import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from be_nb.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, CenterCrop, ClipParameters, augment_clips, denormalize

BILINEAR = tv.InterpolationMode.BILINEAR
STRONG = dict(degrees=15, crop=(.5, .9), flip=.5, brightness=.5, contrast=.5, saturation=.5, hue=.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(b=3, t=4, h=20, w=28, seed=0):
    return torch.randint(0, 256, (b, t, 3, h, w), dtype=torch.uint8, generator=seeded(seed))


def smooth(b=3, t=4, h=40, w=56):
    """Clips without fine detail, on which resampling once or twice makes little difference."""
    coarse = torch.rand(b * t, 3, 4, 5, generator=seeded(1))
    fine = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().byte().view(b, t, 3, h, w)


def parameters(b, side, x=0., y=0., angle=0., flip=False, brightness=1., contrast=1., saturation=1., hue=0.):
    numbers = [torch.full((b,), float(v)) for v in (side, x, y, angle, brightness, contrast, saturation, hue)]
    return ClipParameters(*numbers[:4], torch.full((b,), flip), *numbers[4:])


def per_frame(clips):
    """(b, c, t, h, w) → (b, t, c, h, w), as torchvision and the loader have it."""
    return clips.transpose(1, 2)


class CountOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("angle", [-170, -30, -10, 5, 45, 90])
def test_rotation(angle):
    clips = noise(h=32, w=32)
    ours = per_frame(augment_clips(clips, parameters(3, 32, angle=angle), 32))
    theirs = tv.rotate(clips / 255, angle, interpolation=BILINEAR)
    middle = (..., slice(8, 24), slice(8, 24))  # inside the circle that a turn maps into the frame
    assert torch.allclose(ours[middle], theirs[middle], atol=1e-4)


@pytest.mark.parametrize("top, left, side, size", [(0, 0, 20, 20), (3, 7, 12, 24), (8, 16, 12, 12), (2, 5, 16, 9),
                                                   (0, 9, 19, 31)])
def test_crop(top, left, side, size):
    clips = noise()
    x, y = left + side / 2 - 14, top + side / 2 - 10
    ours = per_frame(augment_clips(clips, parameters(3, side, x, y), size))
    theirs = tv.resized_crop(clips / 255, top, left, side, side, [size, size], BILINEAR, antialias=False)
    inner = (..., slice(1, -1), slice(1, -1))  # torchvision cannot see beyond the cut, we can
    assert torch.allclose(ours[inner], theirs[inner], atol=1e-4)
    mirrored = per_frame(augment_clips(clips, parameters(3, side, x, y, flip=True), size))
    assert torch.allclose(mirrored, ours.flip(-1), atol=1e-4)


def test_one_map_equals_three_steps():
    clips, (top, left, side), size = smooth(), (9, 20, 18), 30
    drawn = parameters(3, side, left + side / 2 - 28, top + side / 2 - 20, angle=12., flip=True)
    ours = augment_clips(clips, drawn, size)
    theirs = tv.rotate(clips / 255, 12., interpolation=BILINEAR)
    theirs = tv.horizontal_flip(tv.resized_crop(theirs, top, left, side, side, [size, size], BILINEAR, antialias=False))
    difference = (per_frame(ours) - theirs)[..., 2:-2, 2:-2].abs()
    assert difference.max() < .03 and difference.mean() < .004


def test_edge_pixels_are_repeated_not_blackened():
    white = torch.full((1, 2, 3, 20, 28), 255, dtype=torch.uint8)
    assert torch.allclose(augment_clips(white, parameters(1, 20, x=4, angle=33), 40), torch.ones(()), atol=1e-5)


def test_colour_chain():
    clips = noise(b=6)[..., :20]
    augment = Augment(20, crop=(1., 1.), brightness=.5, contrast=.5, saturation=.5, hue=.5)
    drawn = augment.sample(6, 20, 20, seeded(3))
    ours = per_frame(augment_clips(clips, drawn, 20))
    for i in range(6):
        for t in range(4):
            frame = tv.adjust_brightness(clips[i, t] / 255, drawn.brightness[i].item())
            frame = tv.adjust_contrast(frame, drawn.contrast[i].item())
            frame = tv.adjust_saturation(frame, drawn.saturation[i].item())
            frame = tv.adjust_hue(frame, drawn.hue[i].item())
            # 2e-3: where two channels tie, rounding decides the hue, and only there
            assert (ours[i, t] - frame).abs().max() < 2e-3
    normalised = tv.normalize(ours, IMAGENET_MEAN, IMAGENET_STD)
    assert torch.allclose(per_frame(augment(clips, seeded(3))), normalised, atol=1e-5)


@pytest.mark.parametrize("ours, theirs, values", [
    (adjust_brightness, tv.adjust_brightness, (0., .3, 1., 2.5)),
    (adjust_contrast, tv.adjust_contrast, (0., .3, 1., 2.5)),
    (adjust_saturation, tv.adjust_saturation, (0., .3, 1., 2.5)), (adjust_hue, tv.adjust_hue, (-.5, -.21, 0., .4))])
def test_each_colour_step(ours, theirs, values):
    x = torch.rand(4, 3, 2, 9, 9, generator=seeded())
    x[:, :, 0, :2] = torch.tensor([0., .5, 1.]).repeat(3)[None, None, None, :]  # greys, black and white
    x[:, :, 0, 2, :8] = torch.cartesian_prod(*[torch.tensor([0., 1.])] * 3).T[None]  # the corners of the colour cube
    values = torch.tensor(values)
    expected = torch.stack([theirs(clip.transpose(0, 1), v.item()).transpose(0, 1) for clip, v in zip(x, values)])
    before = x.clone()
    assert torch.allclose(ours(x, values), expected, atol=1e-5)
    assert torch.equal(x, before)
    assert ours(x, values, out=x) is x and torch.allclose(x, expected, atol=1e-5)


def test_hue_comes_back_after_a_full_turn():
    x = torch.rand(2, 3, 2, 8, 8, generator=seeded())
    half = torch.full((2,), .5)
    assert torch.allclose(adjust_hue(adjust_hue(x, half), half), x, atol=1e-5)
    turned = adjust_hue(x, torch.tensor([.1, -.3]))
    assert torch.allclose(turned.amax(1), x.amax(1), atol=1e-6) and torch.allclose(turned.amin(1), x.amin(1), atol=1e-6)


def test_normalisation():
    clips = noise(h=24, w=24)
    view = CenterCrop(24)(clips)
    assert torch.allclose(per_frame(view), tv.normalize(clips / 255, IMAGENET_MEAN, IMAGENET_STD), atol=1e-5)
    assert torch.allclose(per_frame(denormalize(view)), clips / 255, atol=1e-5)
    assert torch.allclose(denormalize(view[0]), denormalize(view)[0])
    other = dict(mean=(.5, .4, .3), std=(.1, .2, .3))
    assert torch.allclose(per_frame(denormalize(CenterCrop(24, **other)(clips), **other)), clips / 255, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(degrees=st.floats(0, 180), low=st.floats(.05, 1), flip=st.floats(0, 1), strength=st.floats(0, 2),
       hue=st.floats(0, .5), size=st.integers(1, 20), seed=st.integers(0, 2**62))
def test_frames_alike(degrees, low, flip, strength, hue, size, seed):
    still = noise(b=3, t=1, h=11, w=14).expand(-1, 5, -1, -1, -1)
    views = Augment(size, degrees, (low, 1.), flip, strength, strength, strength, hue)(still, seeded(seed))
    assert views.shape == (3, 3, 5, size, size) and views.dtype == torch.float32 and views.isfinite().all()
    assert torch.equal(views, views[:, :, :1].expand_as(views))


@settings(max_examples=50, deadline=None)
@given(h=st.integers(4, 200), w=st.integers(4, 200), low=st.floats(.05, 1), share=st.floats(0, 1),
       seed=st.integers(0, 2**62))
def test_crops_lie_inside(h, w, low, share, seed):
    drawn = Augment(8, crop=(low, low + share * (1 - low))).sample(20, h, w, seeded(seed))
    slack = 1e-3
    assert (drawn.side <= min(h, w) + slack).all() and (drawn.side >= low * min(h, w) - slack).all()
    assert (drawn.x.abs() + drawn.side / 2 <= w / 2 + slack).all()
    assert (drawn.y.abs() + drawn.side / 2 <= h / 2 + slack).all()


def test_ranges_of_the_draw():
    drawn = Augment(8, 10, (.875, .875), .25, .5, .25, 1.5, .1).sample(20_000, 128, 171, seeded())
    for name, low, high in (("side", 112, 112), ("angle", -10, 10), ("brightness", .5, 1.5), ("contrast", .75, 1.25),
                            ("saturation", 0, 2.5), ("hue", -.1, .1), ("x", -29.5, 29.5), ("y", -8, 8)):
        values, margin = getattr(drawn, name), (high - low) * .01 + 1e-4
        assert low - 1e-4 <= values.min() <= low + margin and high - margin <= values.max() <= high + 1e-4, name
    assert abs(drawn.flip.float().mean() - .25) < .02


def test_one_strength_does_not_move_the_other_draws():
    alone = Augment(8, crop=(.5, 1.)).sample(9, 30, 40, seeded(4))
    together = Augment(8, **{**STRONG, "crop": (.5, 1.)}).sample(9, 30, 40, seeded(4))
    for name in ("side", "x", "y"):
        assert torch.equal(getattr(alone, name), getattr(together, name))


def test_same_seed_same_views():
    clips, augment = noise(b=4), Augment(12, **STRONG)
    views = augment(clips, seeded(7))
    assert torch.equal(views, augment(clips, seeded(7))) and not torch.equal(views, augment(clips, seeded(8)))
    torch.manual_seed(7)
    assert torch.equal(views, augment(clips))  # without a generator: torch's global one
    generator = seeded(7)
    two_calls = torch.cat([augment(clips, generator), augment(clips, generator)])
    assert torch.equal(two_calls, augment(torch.cat([clips, clips]), seeded(7)))


def test_a_view_depends_on_its_own_clip_only():
    clips, augment = noise(b=4), Augment(12, **STRONG)
    changed = clips.clone()
    changed[1:] = 0
    assert torch.equal(augment(clips, seeded())[0], augment(changed, seeded())[0])
    assert torch.equal(augment(clips.flip(1), seeded()), augment(clips, seeded()).flip(2))


def test_no_loop_over_clips_or_frames():
    augment, counts = Augment(8, **STRONG), []
    for b, t in ((2, 1), (2, 9), (16, 3)):
        clips = noise(b, t)
        with CountOps() as ops:
            augment(clips, seeded())
        counts.append(ops.count)
    assert counts[0] == counts[1] == counts[2]


def test_autocast_changes_nothing():
    clips, augment = noise(h=64, w=64), Augment(48, **STRONG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = augment(clips, seeded())
    assert mixed.dtype == torch.float32 and torch.equal(mixed, augment(clips, seeded()))


def test_input_is_left_alone_and_any_layout_will_do():
    wide = noise(b=3, t=8, h=20, w=56)
    strided = wide[:, ::2, :, :, ::2]
    before = wide.clone()
    assert torch.equal(Augment(9, **STRONG)(strided, seeded()), Augment(9, **STRONG)(strided.contiguous(), seeded()))
    assert torch.equal(wide, before)
    views = Augment(9, **STRONG)(strided)
    assert views.is_contiguous() and not views.requires_grad


@pytest.mark.parametrize("h, w", [(20, 28), (28, 20), (24, 24)])
def test_center_crop(h, w):
    clips = noise(h=h, w=w)
    view = denormalize(CenterCrop(16, crop=16 / min(h, w))(clips))
    assert torch.allclose(per_frame(view), tv.center_crop(clips / 255, [16, 16]), atol=1e-4)
    small = per_frame(denormalize(CenterCrop(10)(clips)))
    theirs = tv.resize(tv.center_crop(clips / 255, [min(h, w)] * 2), [10, 10], BILINEAR, antialias=False)
    assert torch.allclose(small, theirs, atol=1e-4)
    assert torch.equal(CenterCrop(10)(clips), CenterCrop(10)(clips))


def test_module_has_nothing_to_save_and_pickles():
    augment = Augment(12, **STRONG)
    assert not augment.state_dict() and not list(augment.parameters())
    clips = noise()
    assert torch.equal(pickle.loads(pickle.dumps(augment))(clips, seeded()), augment(clips, seeded()))


@pytest.mark.parametrize("arguments, word", [
    (dict(size=0), "size"), (dict(size=12.), "size"), (dict(degrees=-1), "degrees"), (dict(degrees=181), "degrees"),
    (dict(crop=(0., 1.)), "crop"), (dict(crop=(.9, .5)), "crop"), (dict(crop=(.5, 1.1)), "crop"),
    (dict(crop=(.5, .7, .9)), "crop"), (dict(flip=2), "flip"), (dict(brightness=-.1), "brightness"),
    (dict(contrast=float("nan")), "contrast"), (dict(saturation=float("inf")), "saturation"), (dict(hue=.6), "hue"),
    (dict(mean=(0, 0)), "mean"), (dict(std=(1, 0, 1)), "std")])
def test_bad_strengths_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        Augment(**{"size": 8, **arguments})


@pytest.mark.parametrize("view", [Augment(8), CenterCrop(8)])
@pytest.mark.parametrize("clips, word", [
    (noise() / 255, "uint8"), (noise().int(), "uint8"), (noise().numpy(), "ndarray"), (noise()[0], "clips\\[None\\]"),
    (noise()[None], "flatten"), (noise().transpose(1, 2), "transpose"), (noise()[:, :, :1], "c = 3"),
    (noise()[:0], "empty"), (noise()[:, :0], "empty")])
def test_bad_clips_are_named(view, clips, word):
    with pytest.raises(ValueError, match=word):
        view(clips)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="crop"):
        CenterCrop(8, crop=0)
    with pytest.raises(ValueError, match="2 sets of parameters for 3 clips"):
        augment_clips(noise(b=3), parameters(2, 10), 8)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_views_on_the_gpu():
    clips, augment = noise(h=64, w=64), Augment(48, **STRONG)
    there = augment(clips.cuda(), seeded())
    assert there.is_cuda and (there.cpu() - augment(clips, seeded())).abs().max() < .05
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(augment(clips.cuda(), seeded()), there)
    with pytest.raises(ValueError, match="on the CPU"):
        augment(clips.cuda(), torch.Generator("cuda"))


# --- test crops lie on whole pixels -----------------------------------------------------------------------------------

WHOLE = [(128, 171, 112, .875, 8, 29), (171, 128, 112, .875, 29, 8), (256, 341, 224, .875, 16, 58),
         (113, 114, 112, 112 / 113, 0, 1), (240, 321, 112, 112 / 240, 64, 104), (30, 31, 30, 1., 0, 0)]


@pytest.mark.parametrize("height,width,size,crop,top,left", WHOLE)
def test_a_test_crop_is_cut_and_not_resampled(height, width, size, crop, top, left):
    clips = torch.randint(256, (2, 3, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()
    cut = clips[..., top:top + size, left:left + size]
    assert torch.allclose(denormalize(CenterCrop(size, crop)(clips)), cut.transpose(1, 2) / 255, atol=2e-4)


@pytest.mark.parametrize("height,width,size,crop", [(128, 171, 112, .875), (171, 128, 112, .875),
                                                    (129, 171, 112, 112 / 129), (128, 128, 112, .875)])
def test_outer_crops_are_cut_and_not_resampled(height, width, size, crop):
    from be_nb.judging.features import test_views as views

    clips = torch.randint(256, (1, 2, 3, height, width), generator=torch.Generator().manual_seed(1)).byte()
    side, rim = min(height, width), (min(height, width) - size) // 2
    starts = {"first": (rim, rim), "last": (height - side + rim, width - side + rim)}
    first, centre, last = (denormalize(view(clips)) for view in views(size, 3, crop))
    for found, (top, left) in ((first, starts["first"]), (last, starts["last"])):
        assert torch.allclose(found, clips[..., top:top + size, left:left + size].transpose(1, 2) / 255, atol=2e-4)
    assert torch.equal(centre, denormalize(CenterCrop(size, crop)(clips)))


@pytest.mark.parametrize("size,crop", [(24, 1.), (30, 1.), (24, .8), (20, .8)])
def test_whole_squares_are_seen_as_before(size, crop):
    "The views behind the recorded numbers of SceneBias: the central square of a square frame, about its exact middle."
    clips = torch.randint(256, (2, 3, 3, 30, 30), generator=torch.Generator().manual_seed(2)).byte()
    zero, one = torch.zeros(2), torch.ones(2)
    old = augment_clips(clips, ClipParameters(30 * crop * one, zero, zero, zero, zero, one, one, one, zero), size)
    assert torch.allclose(denormalize(CenterCrop(size, crop)(clips)), old, atol=1e-5)
