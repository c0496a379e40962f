"""be_nb.distractor against plain loops, and its properties."""
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from be_nb.distractor import cutmix_box, Distractor, Draw, draw_distractors, mix_static_frame, VARIANTS
from be_nb.methods.distractors import partners
from be_nb.methods.fame import colours, likelihood

STILL = ("gaussian_noise", "inter_frame", "intra_frame", "background_patching", "inter_mean")
BORROWING = ("video_mixup", "video_cutmix", "inter_frame", "background_patching", "inter_mean", "merged_background")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_clips(b=5, t=6, h=9, w=12, seed=0):
    return torch.randn(b, 3, t, h, w, generator=seeded(seed))


def per_clip(values):
    return values.view(-1, 1, 1, 1, 1)


class CountOps(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def patches(clips, i, draw):
    """The still picture of background_patching for clip i, pixel by pixel: the partner and the next three but i."""
    b, c, t, h, w = clips.shape
    others = [j % b for j in range(i + 1, i + b)]                            # all others, from the next one on
    first, picture = others.index(int(draw.other[i])), torch.empty(c, h, w)
    high, wide = (h + 1) // 2, (w + 1) // 2
    top, left = int(draw.corner[i, 0] * (h - high + 1)), int(draw.corner[i, 1] * (w - wide + 1))
    for y in range(h):
        for x in range(w):
            source = others[(first + 2 * (y >= high) + (x >= wide)) % (b - 1)]
            picture[:, y, x] = clips[source, :, draw.frame[i], top + y % high, left + x % wide]
    return picture


def merged(clips, i, draw):
    """Clip i of merged_background: its least likely pixels, one after the other, become those of a still frame."""
    clip, (h, w) = clips[i].clone(), clips.shape[-2:]
    likely = likelihood(colours(clips))[i].flatten().tolist()
    for place in sorted(range(h * w), key=likely.__getitem__)[:int(draw.lam[i] * h * w)]:
        clip[..., place // w, place % w] = clips[draw.other[i], :, draw.frame[i], place // w, place % w, None]
    return clip


def slowly(variant, clips, draw):
    """What each variant means, one number at a time."""
    mixed = clips.clone()
    b, c, t, h, w = clips.shape
    if variant == "merged_background":
        return torch.stack([merged(clips, i, draw) for i in range(b)])
    for i in range(b):
        lam, k, other = draw.lam[i].item(), draw.frame[i].item(), clips[draw.other[i].item()]
        patched = patches(clips, i, draw) if variant == "background_patching" else None
        noise = torch.randn((b, c, h, w), generator=torch.Generator().manual_seed(draw.seed))[i]
        for j in range(t):
            added = {"intra_frame": clips[i, :, k], "inter_frame": other[:, k], "gaussian_noise": noise,
                     "video_mixup": other[:, j], "none": clips[i, :, j], "inter_mean": other.mean(1),
                     "background_patching": patched}
            if variant != "video_cutmix":
                mixed[i, :, j] = (1 - lam) * clips[i, :, j] + lam * added[variant]
                continue
            top, left = (draw.corner[i] * (1 - lam ** .5)).tolist()
            for y in range(h):
                for x in range(w):
                    if top <= (y + .5) / h < top + lam ** .5 and left <= (x + .5) / w < left + lam ** .5:
                        mixed[i, :, j, y, x] = other[:, j, y, x]
    return mixed


@pytest.mark.parametrize("variant", VARIANTS)
def test_against_loops(variant):
    clips = random_clips()
    distract = Distractor(variant, gamma=1.)
    draw = distract.sample(clips, seeded(3))
    assert torch.allclose(distract.mix(clips, draw), slowly(variant, clips, draw), atol=1e-6)
    assert torch.equal(distract(clips, seeded(3)), distract.mix(clips, draw))


@pytest.mark.parametrize("variant", STILL)
@pytest.mark.parametrize("seed", range(3))
def test_still_variants_keep_motion(variant, seed):
    clips = random_clips(seed=seed).double()
    distract = Distractor(variant, gamma=1.)
    draw = distract.sample(clips, seeded(seed))
    expected = (1 - per_clip(draw.lam.double())) * clips.diff(dim=2)
    assert torch.allclose(distract.mix(clips, draw).diff(dim=2), expected, atol=1e-12)


@pytest.mark.parametrize("variant", ["video_mixup", "video_cutmix", "merged_background"])
def test_other_variants_do_not_keep_motion(variant):
    clips = random_clips()
    distract = Distractor(variant, gamma=1.)
    draw = distract.sample(clips, seeded())
    expected = (1 - per_clip(draw.lam)) * clips.diff(dim=2)
    assert (distract.mix(clips, draw).diff(dim=2) - expected).abs().max() > .1


def test_merged_background_keeps_what_moves():
    """A square that moves over a still wall: it stays to the last bit, and the wall far from it becomes another's."""
    clips = random_clips(b=4, t=1, h=24, w=24).repeat(1, 1, 6, 1, 1) * .3 - 1.
    for k in range(6):
        clips[:, :, k, 6:14, 3 + k:11 + k] = torch.tensor([1.8, 1.5, -1.3])[:, None, None]
    distract = Distractor("merged_background", gamma=1.)
    draw = distract.sample(clips, seeded())._replace(lam=torch.tensor([.25, .5, .75, 0.]))
    after = distract.mix(clips, draw)
    kept = (after == clips).all(2).all(1)
    assert (kept.flatten(1).sum(1) == torch.tensor([432, 288, 144, 576])).all()
    assert kept[:2, 7:13, 6:11].float().mean() > .9      # where the square is in all frames
    assert torch.equal(after, torch.where(kept[:, None, None], clips, clips[draw.other, :, draw.frame][:, :, None]))
    with pytest.raises(ValueError, match="colours"):
        distract(clips[:, :2])


@settings(max_examples=30, deadline=None)
@given(b=st.integers(2, 12), seed=st.integers(0, 2**62))
def test_four_partners_are_others_and_different(b, seed):
    draw = draw_distractors(b, 4, generator=seeded(seed))
    four = partners(torch.empty(b, 0), draw, "", 4)
    assert torch.equal(four[:, 0], draw.other) and (four != torch.arange(b)[:, None]).all()
    assert all(len(set(row)) == min(4, b - 1) for row in four.tolist())


def test_the_still_frame_is_one_of_the_clips_own():
    clips = random_clips(b=40)
    distract = Distractor("intra_frame", gamma=1.)
    draw = distract.sample(clips, seeded())
    lam = per_clip(draw.lam).clamp(min=.01)
    draw = draw._replace(lam=lam.flatten())
    still = (distract.mix(clips, draw) - (1 - lam) * clips) / lam
    for i, k in enumerate(draw.frame):
        assert torch.allclose(still[i], clips[i, :, k, None].expand_as(still[i]), atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_type_shape_and_layout_are_kept(variant, dtype, layout):
    clips = random_clips().to(dtype).contiguous(memory_format=layout)
    before = clips.clone()
    mixed = Distractor(variant)(clips, seeded())
    assert mixed.shape == clips.shape and mixed.dtype == dtype and mixed.stride() == clips.stride()
    assert torch.equal(clips, before)
    if dtype in (torch.bfloat16, torch.float16) and variant != "gaussian_noise":
        exact = Distractor(variant)(clips.float(), seeded())
        assert torch.allclose(mixed.float(), exact, atol=.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lambda_zero_is_the_identity(variant):
    for clips in (random_clips(), random_clips().bfloat16()):
        assert torch.equal(Distractor(variant, gamma=0.)(clips), clips)


def test_none_is_free():
    clips = random_clips()
    assert Distractor("none")(clips) is clips


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_seed_same_result(variant):
    clips, distract = random_clips(), Distractor(variant, gamma=1.)
    mixed = distract(clips, seeded(5))
    assert torch.equal(mixed, distract(clips, seeded(5)))
    assert variant == "none" or not torch.equal(mixed, distract(clips, seeded(6)))
    torch.manual_seed(5)
    assert torch.equal(mixed, distract(clips))


def test_all_variants_draw_alike():
    generators = [seeded(1) for _ in VARIANTS]
    draws = [Distractor(v).sample(random_clips(), g) for v, g in zip(VARIANTS, generators)]
    for draw, generator in zip(draws, generators):
        assert all(torch.equal(a, b) for a, b in zip(draw[:4], draws[0][:4])) and draw.seed == draws[0].seed
        assert torch.equal(generator.get_state(), generators[0].get_state())  # what is drawn next is the same, too


@settings(max_examples=50, deadline=None)
@given(b=st.integers(2, 70), t=st.integers(1, 40), gamma=st.floats(0, 1), seed=st.integers(0, 2**62))
def test_draw(b, t, gamma, seed):
    draw = draw_distractors(b, t, gamma, generator=seeded(seed))
    assert ((0 <= draw.lam) & (draw.lam <= gamma)).all() and ((0 <= draw.frame) & (draw.frame < t)).all()
    assert ((0 <= draw.other) & (draw.other < b) & (draw.other != torch.arange(b))).all()
    assert draw.lam.dtype == torch.float32 and draw.frame.dtype == draw.other.dtype == torch.int64
    assert draw_distractors(b, t, gamma, True, seeded(seed)).lam.unique().numel() == 1


def test_other_is_another():
    """Every other clip is met about equally often, the clip itself never."""
    met = torch.zeros(5, 5)
    for seed in range(400):
        met[torch.arange(5), draw_distractors(5, 4, generator=seeded(seed)).other] += 1
    assert (met.diagonal() == 0).all() and (met[~torch.eye(5, dtype=torch.bool)] > 60).all()


def test_lambda_is_uniform():
    lam = draw_distractors(20_000, 8, .3, generator=seeded()).lam
    assert (torch.histc(lam, 10, 0, .3) / 2000 - 1).abs().max() < .1


@settings(max_examples=50, deadline=None)
@given(lam=st.floats(0, 1), row=st.floats(0, 1), column=st.floats(0, 1), h=st.integers(1, 60), w=st.integers(1, 60))
def test_cutmix_box(lam, row, column, h, w):
    draw = Draw(torch.tensor([lam]), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long),
                torch.tensor([[row, column]]), 0)
    box = cutmix_box(draw, h, w)
    assert box.shape == (1, 1, 1, h, w) and box.dtype == torch.bool
    rows, columns = box[0, 0, 0].any(1), box[0, 0, 0].any(0)
    assert torch.equal(box[0, 0, 0], rows[:, None] & columns[None])  # a rectangle
    if box.any():
        assert abs(int(rows.sum()) - lam ** .5 * h) <= 1.01 and abs(int(columns.sum()) - lam ** .5 * w) <= 1.01
    assert lam < 1 or box.all()
    assert lam > 0 or not box.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_loop_over_clips_or_frames(variant):
    counts = []
    for b, t in ((2, 1), (2, 9), (16, 3)):
        clips = random_clips(b, t)
        with CountOps() as ops:
            Distractor(variant)(clips, seeded())
        counts.append(ops.count)
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_of_one(variant):
    clips = random_clips(b=1)
    if variant in BORROWING:
        with pytest.raises(ValueError, match=f"{variant}.*batch of one"):
            Distractor(variant)(clips)
    else:
        assert Distractor(variant)(clips).shape == clips.shape


def test_mistakes_are_named():
    clips = random_clips()
    with pytest.raises(ValueError, match="intra_frame"):
        Distractor("intraframe")
    for gamma in (-.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="gamma"):
            Distractor(gamma=gamma)
    for wrong in (clips.byte(), clips[0], clips.numpy()):
        with pytest.raises(ValueError, match="float"):
            Distractor()(wrong)
    with pytest.raises(ValueError, match="frames must be"):
        mix_static_frame(clips, clips[:, :, 0, :4], torch.zeros(5))
    with pytest.raises(ValueError, match="lam must be"):
        mix_static_frame(clips, clips[:, :, 0], torch.zeros(5, 1))
    draw = Distractor().sample(clips)
    with pytest.raises(ValueError, match="the draw is for"):
        Distractor().mix(clips[:2], draw)
    with pytest.raises(ValueError, match="the draw is for"):
        Distractor().mix(clips[:, :, :2], draw._replace(frame=torch.full((5,), 4)))


def test_module_has_nothing_to_save_and_pickles():
    distract, clips = Distractor("inter_frame", .5), random_clips()
    assert not distract.state_dict()
    assert torch.equal(pickle.loads(pickle.dumps(distract))(clips, seeded()), distract(clips, seeded()))
    assert "inter_frame" in repr(distract) and "0.5" in repr(distract)


def test_gradient_passes():
    clips = random_clips().requires_grad_()
    frames, lam = random_clips(seed=1)[:, :, 0], torch.full((5,), .25)
    mix_static_frame(clips, frames, lam).sum().backward()
    assert torch.allclose(clips.grad, torch.full_like(clips, .75))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_on_the_gpu(variant):
    clips, distract = random_clips(), Distractor(variant, gamma=1.)
    there = distract(clips.cuda(), seeded())
    assert there.is_cuda and torch.equal(there, distract(clips.cuda(), seeded()))
    if variant not in ("gaussian_noise", "merged_background"):  # noise is drawn there; close calls may fall otherwise
        assert torch.allclose(there.cpu(), distract(clips, seeded()), atol=1e-6)
