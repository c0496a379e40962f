"""be_nb.judging.flow: known shifts, known motions, and what the distractor must do to flow."""
import pytest
import torch

from be_nb.data.scenebias import SceneBias
from be_nb.distractor import Distractor, Draw
from be_nb.judging.flow import (blur, clip_flow, compare_flows, distract_at, distraction_errors, draw_flows,
                                lucas_kanade, moving, pull)


def texture(h=48, w=60, seed=0):
    noise = blur(torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(seed)), 2)
    return (noise - noise.min()) / (noise.max() - noise.min())


def constant(x, y, h=48, w=60):
    return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, h, w)


@pytest.mark.parametrize("x, y", [(0, 0), (.3, .2), (-1, .5), (2.5, -1.25), (-3, -3)])
def test_translation(x, y):
    """`first` is `second` read at x + v, so the flow is v; odd sizes included."""
    second, v = texture(47, 61), constant(x, y, 47, 61)
    found = lucas_kanade(pull(second, v), second)
    assert (found - v).norm(dim=1)[:, 8:-8, 8:-8].mean() < 0.1


def test_pull_by_whole_pixels_is_a_roll():
    picture = texture()
    assert torch.allclose(pull(picture, constant(2, -1))[..., 1:, :-2], picture.roll((1, -2), (2, 3))[..., 1:, :-2],
                          atol=1e-5)


def test_known_motion():
    source = SceneBias("test", size=12, side=60)
    clips = torch.stack([source.read(i, range(6)) for i in range(12)]).transpose(1, 2) / 255
    known = torch.stack([source.flow(i)[:5] for i in range(12)])
    where = torch.stack([source.mask(i)[:5] for i in range(12)]) & moving(known)
    found = clip_flow(clips)
    measured = compare_flows(found, known, where)
    still = compare_flows(torch.zeros_like(known), known, where)
    assert measured["end_point"] < still["end_point"] / 2 and measured["angle"] < 30
    alone = clip_flow(clips[3:4])
    assert torch.allclose(found[3:4], alone, atol=1e-4)


def test_nothing_moves():
    picture = texture()
    assert lucas_kanade(picture, picture).abs().max() < 1e-5
    grey = torch.full_like(picture, .5)
    assert (lucas_kanade(grey, grey) == 0).all()


def test_errors():
    with pytest.raises(ValueError, match="one shape"):
        lucas_kanade(texture(), texture(40, 60))
    with pytest.raises(ValueError, match="one shape"):
        lucas_kanade(texture().mul(255).byte(), texture().mul(255).byte())
    with pytest.raises(ValueError, match="no pixel"):
        compare_flows(constant(1, 1), constant(1, 1), torch.zeros(1, 48, 60, dtype=torch.bool))


def test_comparison_by_hand():
    where = torch.ones(1, 48, 60, dtype=torch.bool)
    found = compare_flows(constant(0, 2), constant(1, 0), where)
    assert found["angle"] == pytest.approx(90) and found["end_point"] == pytest.approx(5 ** .5)
    assert found["length"] == pytest.approx(2) and found["pixels"] == 48 * 60


def moving_clip(t=5):
    picture = texture(seed=3)
    return torch.stack([pull(picture, constant(1.5 * k, 0))[0] for k in range(t)], 1)[None]


def test_flat_frames_leave_the_flow_alone():
    """Gradients and differences shrink alike: only the damping notices."""
    clip = moving_clip()
    flow, pale = (clip_flow(c, damping=1e-9) for c in (clip, .6 * clip + .2))
    assert torch.allclose(flow, pale, atol=1e-2)


def test_distraction_shortens_flow():
    clip = moving_clip()
    rows = distraction_errors(clip, torch.ones(1, 4, 48, 60, dtype=torch.bool), lams=(0.0, 0.3, 0.6),
                              variants=["intra_frame"])
    assert rows[0]["end_point"] == 0 and rows[0]["length"] == 1
    assert rows[0]["length"] > rows[1]["length"] > rows[2]["length"] and rows[1]["end_point"] < rows[2]["end_point"]


@pytest.mark.parametrize("variant", ["intra_frame", "inter_frame", "gaussian_noise", "video_mixup", "video_cutmix"])
def test_distract_at_is_the_distractor(variant):
    clips = torch.rand(3, 3, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distract_at(clips, variant, 0), clips)
    mixed = distract_at(clips, variant, .4, seed=5)
    assert torch.equal(mixed, distract_at(clips, variant, .4, seed=5)) and not torch.equal(mixed, clips)
    u = torch.rand(3, 3, generator=torch.Generator().manual_seed(5))
    draw = Draw(torch.full((3,), .4), (u[:, 0] * 4).long(), torch.tensor([2, 0, 1]), u[:, 1:], 5)
    assert torch.equal(mixed, Distractor(variant).mix(clips, draw))


def test_drawing():
    clip = moving_clip()
    flow = clip_flow(clip)
    figure = draw_flows([clip[0], clip[0]], [flow[0], flow[0]], torch.ones(4, 48, 60, dtype=torch.bool), ["a", "b"],
                        frames=(0, 2, 3))
    assert len(figure.axes) == 6 and figure.png()
