"""SceneBias: the promises that long experiments rest on, against oracles that share no code with the renderer."""
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from be_nb.backbones import create_backbone
from be_nb.data import scenebias
from be_nb.data.scenebias import (actors, backgrounds, choose_scenes, CLASSES, ClipPlan, draw_numbers, FIELDS, film,
                                  poses, render, SceneBias, SHAPES, smooth, SPLITS, TILE)
from be_nb.judging.features import extract_features
from be_nb.judging.judges import linear_probe

ALL = np.arange(40)


def whole(source, index):
    return source.read(index, range(source.frames))


@pytest.fixture(scope="module")
def source():
    return SceneBias("test", rho=0.9, seed=0, size=48)


# --- which clip is which: if one of these fails, stored results no longer belong to the set that the code makes ---

def test_the_set_is_the_one_that_results_were_made_with():
    "Mean grey of the quarters of some frames, measured when the set was fixed. A rounding may differ, a clip may not."
    stored = {
        ("pretrain", 0.9, 0, 0): [
            93.77, 105.11, 87.49, 105.43, 104.87, 95.93,
            104.01, 88.71, 101.18, 112.57, 92.95, 113.92],
        ("test", 0.5, 1, 17): [
            131.43, 139.33, 129.02, 118.74, 152.21, 148.85,
            173.13, 124.02, 126.39, 139.6, 135.37, 121.89],
        ("unbiased", 0.0, 2, 5): [
            123.63, 119.43, 122.01, 124.15, 139.77, 118.58,
            141.78, 129.75, 140.13, 119.64, 143.59, 131.68],
    }
    for (split, rho, seed, index), values in stored.items():
        clip = SceneBias(split, rho, seed, size=index + 1).read(index, [0, 13, 39]).float()
        assert F.avg_pool2d(clip.mean(1, keepdim=True), 15).flatten().tolist() == pytest.approx(values, abs=0.05)
    assert SceneBias("pretrain").scenes[:12].tolist() == [0, 1, 2, 3, 4, 5, 2, 1, 2, 3, 4, 5]


def test_numbers_are_numpys_and_below_one(monkeypatch):
    expected = np.random.default_rng((3, 2)).random((5, 7))
    assert np.allclose(draw_numbers(3, 2, 5, 7).numpy(), expected, atol=1e-7)

    class AlmostOne:
        def random(self, shape):
            return np.full(shape, 1 - 2**-53)
    monkeypatch.setattr(scenebias.np.random, "default_rng", lambda seed: AlmostOne())
    assert draw_numbers(0, 0, 2, 3).max() < 1
    extreme = SceneBias("unbiased", size=2)  # every index made from a number is the last valid one
    assert extreme.scenes.tolist() == [5, 5] and extreme.read(1, [0, 39]).shape == (2, 3, 30, 30)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 30])
def test_a_clip_does_not_depend_on_size_or_reading_order(source, size):
    other = SceneBias("test", rho=0.9, seed=0, size=size)
    for index in sorted({size - 1, size // 2, 0}, reverse=True):
        assert torch.equal(whole(other, index), whole(source, index))
    assert (other.labels == source.labels[:size]).all() and (other.scenes == source.scenes[:size]).all()


def test_seeds_and_splits_are_different_clips():
    seen = [whole(SceneBias(split, 1.0, seed, size=1), 0)
            for split in ("pretrain", "probe", "test", "unbiased") for seed in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_reading_inside_autocast_or_inference_mode_films_the_same_clip(source):
    expected, mask, flow = whole(source, 3), source.mask(3), source.flow(3)
    with torch.autocast("cpu", torch.bfloat16):
        again = SceneBias("test", rho=0.9, seed=0, size=8)
        assert torch.equal(whole(again, 3), expected)
        assert torch.equal(again.mask(3), mask) and torch.equal(again.flow(3), flow)
    with torch.inference_mode():
        made_inside = SceneBias("test", rho=0.9, seed=0, size=16)
        assert torch.equal(whole(made_inside, 3), expected)
    assert torch.equal(whole(made_inside, 11), whole(source, 11))


def test_pickled_it_is_a_recipe(source):
    whole(source, 0)
    packed = pickle.dumps(source)
    assert len(packed) < 1000
    copy = pickle.loads(packed)
    assert repr(copy) == repr(source) and torch.equal(whole(copy, 20), whole(source, 20))


def test_workers_read_the_same(source):
    class Clips(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return fresh.read(index, [0, 20])
    fresh = SceneBias("test", rho=0.9, seed=0, size=48)
    loaded = torch.cat(list(torch.utils.data.DataLoader(Clips(), batch_size=4, num_workers=2)))
    assert torch.equal(loaded, torch.stack([source.read(i, [0, 20]) for i in range(12)]))


# --- the motor that runs down ---

def test_without_damping_the_poses_are_the_old_ones():
    "The formula of the set before `damping` existed, bit for bit: stored results still belong to it."
    plan = ClipPlan("test", size=60)
    u = plan._numbers
    labels, period = torch.from_numpy(plan.labels), 12 + 8 * u["period"]
    speed = (1 + 0.4 * smooth(scenebias.to_normal(u["speed"]))).clamp(min=0.1)
    wave = (2 * math.pi * (u["phase"] + speed.cumsum(1) / period)).sin()
    pose = poses(labels, u, 30)
    x = wave * (5 + 3 * u["amplitude"]) + (u["place"][:, :1] - 0.5) * 4
    assert torch.equal(pose["x"][labels == 0], x[labels == 0])
    assert torch.equal(pose["angle"][labels == 4], (2 * math.pi * u["angle"] + 1.5 * wave)[labels == 4])
    assert torch.equal(pose["scale"][labels == 5], (1 + 0.45 * wave)[labels == 5])
    assert torch.equal(whole(SceneBias("test", size=3, damping=0.), 2), whole(SceneBias("test", size=3), 2))


def test_damping_slows_the_motion_and_changes_nothing_else():
    plain, tired = ClipPlan("unbiased", size=1020), ClipPlan("unbiased", size=1020, damping=3.)
    assert (plain.labels == tired.labels).all() and (plain.scenes == tired.scenes).all() and plain.names == tired.names
    assert all(torch.equal(plain._numbers[name], tired._numbers[name]) for name in FIELDS)
    poses_of = [poses(torch.from_numpy(p.labels), p._numbers, 30, p.damping) for p in (plain, tired)]
    travel = [pose["x"][0::6].diff(dim=1).abs() for pose in poses_of]                     # the horizontal ones
    assert travel[1][:, :5].mean() > 1.5 * travel[0][:, :5].mean() and travel[1][:, -5:].mean() < .5 * travel[0].mean()
    assert torch.equal(plain.geometry(slice(0, 9))[2], tired.geometry(slice(0, 9))[2])    # the camera does not tire


@pytest.mark.parametrize("frame", [0, 20, 39])
def test_a_single_frame_does_not_tell_how_late_it_is(frame):
    "Whatever the damping, the phase of each frame is uniform, and with it the distribution of places is the same."
    places = []
    for damping in (0., 3.):
        plan = ClipPlan("unbiased", size=6000, damping=damping)
        pose = poses(torch.from_numpy(plan.labels), plan._numbers, 30, damping)
        swing = pose["x"][0::6, frame] - (plan._numbers["place"][0::6, 0] - .5) * 4
        places.append((swing / (5 + 3 * plan._numbers["amplitude"][0::6, 0])).asin() / math.pi + .5)
    for values in places:                                       # Kolmogorov–Smirnov against the uniform distribution
        steps = torch.arange(len(values) + 1) / len(values)
        ordered = values.sort().values
        assert torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max() < 1.95 / len(values)**.5


def test_damping_travels_with_the_recipe_of_the_set_and_is_checked():
    tired = SceneBias("test", size=8, damping=2.)
    assert repr(pickle.loads(pickle.dumps(tired))) == repr(tired) and "damping=2.0" in repr(tired)
    assert torch.equal(whole(pickle.loads(pickle.dumps(tired)), 5), whole(tired, 5))
    for wrong in (-.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="damping"):
            SceneBias("test", damping=wrong)


# --- reading ---

def test_frames_in_any_order_and_any_container(source):
    clip = whole(source, 5)
    order = [3, 39, 3, 0]
    for frames in (order, np.array(order), torch.tensor(order), tuple(order)):
        assert torch.equal(source.read(5, frames), clip[order])
    assert source.read(np.int64(5), 7).shape == (1, 3, 30, 30)
    assert source.read(5, np.zeros(0, dtype=np.int64)).shape == (0, 3, 30, 30)
    assert clip.dtype == torch.uint8 and clip.shape == (40, 3, 30, 30)


def test_what_is_read_is_a_copy(source):
    clip = source.read(5, range(40)).clone()
    source.read(5, range(40)).zero_()
    source.read(5, 0).zero_()
    assert torch.equal(whole(source, 5), clip)


def test_it_is_a_source(source):
    assert len(source) == len(source.labels) == len(source.scenes) == len(set(source.names)) == 48
    assert source.labels.dtype == source.scenes.dtype == np.int64 and source.classes == list(CLASSES)
    assert {source.num_frames(i) for i in range(48)} == {40}
    assert np.bincount(source.labels).tolist() == [8] * 6
    assert {split: len(ClipPlan(split)) for split in SPLITS} == {split: size for split, (_, size) in SPLITS.items()}


@pytest.mark.parametrize("frames", [1, 2, 3, 16, 61])
def test_any_number_of_frames(frames):
    short = SceneBias(size=2, frames=frames)
    assert whole(short, 1).shape == (frames, 3, 30, 30)
    assert short.mask(1).shape == (frames, 30, 30) and short.flow(1).shape == (frames - 1, 2, 30, 30)


@pytest.mark.parametrize("wrong, says", [
    (dict(split="train"), "pretrain, probe, test"), (dict(rho=-0.1), "got -0.1"), (dict(rho=1.01), "probability"),
    (dict(rho=float("nan")), "probability"), (dict(size=0), "size=0"), (dict(frames=0), "frames=0"),
    (dict(side=7), "side=7"), (dict(seed=-1), "seed=-1")])
def test_requests_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        SceneBias(**wrong)


def test_clips_and_frames_that_do_not_exist_are_refused(source):
    for index in (-1, 48):
        for ask in (source.mask, source.flow, lambda i: source.read(i, [0])):
            with pytest.raises(IndexError, match="numbered from 0 to 47"):
                ask(index)
    for frames in ([40], [-1], [0, 99]):
        with pytest.raises(IndexError, match="frames 0 to 39"):
            source.read(0, frames)
    with pytest.raises((IndexError, TypeError)):
        source.read(0, [0.5])
    with pytest.raises(TypeError):
        source.read(1.0, [0])


# --- the knob ---

@pytest.mark.parametrize("rho", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_scene_and_class_agree_as_often_as_rho_says(rho, seed):
    labels = torch.arange(12000) % 6
    scenes = choose_scenes(labels, "pretrain", rho, seed)
    table = np.histogram2d(scenes, labels, bins=6)[0] / 2000  # P(scene | class)
    expected = np.full((6, 6), (1 - rho) / 6) + rho * np.eye(6)
    assert np.abs(table - expected).max() <= 4.5 * np.sqrt((expected * (1 - expected)).max() / 2000) + 1e-9


def test_the_knob_only_ever_adds_agreement_and_touches_nothing_else():
    plans = [SceneBias("pretrain", rho, 0, size=300) for rho in (0.0, 0.25, 0.5, 0.75, 1.0)]
    agree = np.stack([plan.labels == plan.scenes for plan in plans]).astype(int)
    assert (np.diff(agree, axis=0) >= 0).all() and agree[-1].all()
    changed = next(i for i in range(300) if plans[0].scenes[i] != plans[0].labels[i])
    assert torch.equal(plans[0].mask(changed), plans[-1].mask(changed))
    assert not torch.equal(whole(plans[0], changed), whole(plans[-1], changed))


@pytest.mark.parametrize("split", ["swapped", "unbiased"])
def test_unbiased_splits_have_no_knob(split):
    assert (ClipPlan(split, 1.0).scenes == ClipPlan(split, 0.0).scenes).all()


def test_swapping_changes_the_wall_and_nothing_else(source):
    swapped = SceneBias("swapped", rho=0.9, seed=0, size=48)
    assert (swapped.labels == source.labels).all()
    assert abs((ClipPlan("test").scenes == ClipPlan("swapped").scenes).mean() - 1 / 6) < 0.07
    for i in range(12):
        mask = source.mask(i)
        assert torch.equal(mask, swapped.mask(i)) and torch.equal(source.flow(i), swapped.flow(i))
        same = (whole(source, i) == whole(swapped, i)).all(1)
        well_inside = F.avg_pool2d(mask[:, None].float(), 5, 1, 2)[:, 0] > 0.99
        assert same[well_inside].all()
        if source.scenes[i] == swapped.scenes[i]:
            assert same.all()
        else:
            assert same[~mask].float().mean() < 0.1


# --- geometry, against formulas ---

def geometry(source, index):
    u, inverse, camera = source.geometry(slice(index, index + 1))
    pose = poses(torch.from_numpy(source.labels[index : index + 1]), u, source.side)
    half = (13 + 7 * u["half"][0]) / 2 * source.side / 30
    return {name: value[0] for name, value in pose.items()}, half, camera[0], u


def on_screen(points, pose, half, camera, t):
    "Push points of the actor (n, 2) forward to the screen of frame t: the renderer only ever goes the other way."
    c, s = math.cos(pose["angle"][t]), math.sin(pose["angle"][t])
    turned = points @ torch.tensor([[c, s], [-s, c]])
    return turned * half * pose["scale"][t] + torch.stack([pose["x"][t], pose["y"][t]]) + camera[t]


@pytest.mark.parametrize("index", range(6))
def test_flow_is_how_points_of_the_actor_move(source, index):
    pose, half, camera, _ = geometry(source, index)
    flow, mask = source.flow(index), source.mask(index)
    side, checked = source.side, 0
    points = torch.rand(400, 2, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    for t in range(39):
        here, there = (on_screen(points, pose, half, camera, k) for k in (t, t + 1))
        place = here + (side - 1) / 2
        grid = ((place + 0.5) * 2 / side - 1)[None, None]
        sampled = F.grid_sample(flow[t][None], grid, align_corners=False)[0, :, 0].T
        pure = F.grid_sample(mask[t][None, None].float(), grid, align_corners=False)[0, 0, 0] > 1 - 1e-6
        checked += int(pure.sum())  # points whose four neighbouring pixels lie on the actor: there the flow is affine
        assert torch.allclose(sampled[pure], (there - here)[pure], atol=2e-3)
    assert checked > 1000


def test_flow_outside_the_actor_is_the_camera(source):
    for index in range(6):
        _, _, camera, _ = geometry(source, index)
        wall = source.flow(index).transpose(1, 3).transpose(1, 2)[~source.mask(index)[:-1]]  # (p, 2)
        steps = camera.diff(dim=0)[:, None, None].expand(-1, 30, 30, -1)[~source.mask(index)[:-1]]
        assert torch.allclose(wall, steps, atol=1e-6)
        assert camera.abs().max() <= source.margin


def test_following_the_flow_rebuilds_the_frame():
    source = SceneBias("test", size=6, side=60)
    u, inverse, camera = source.geometry(slice(0, 6))
    clean = render(backgrounds(torch.from_numpy(source.scenes), u, 60, source.margin), actors(u), inverse, camera, 60)
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    for i in range(6):
        mask = source.mask(i)
        grid = ((torch.stack([x, y]) + source.flow(i) + 0.5) * 2 / 60 - 1).permute(0, 2, 3, 1)
        back = F.grid_sample(clean[i, 1:], grid, align_corners=False)
        for part in (mask, ~mask):
            core = (F.avg_pool2d(part[:, None].float(), 5, 1, 2) > 0.99).float()
            good = (core[:-1] * F.grid_sample(core[1:], grid, align_corners=False) > 0.99).expand_as(back)
            assert (back - clean[i, :-1])[good].abs().mean() < 0.002
            assert (clean[i, 1:] - clean[i, :-1])[good].abs().mean() > 0.005  # and that was not for free


def test_masks_have_the_area_of_their_shape():
    "In frames where the actor lies wholly inside: area of the shape times (half · scale)², in pixels."
    area = {"disc": math.pi, "square": 4, "triangle": 2, "cross": 4 - 4 * 0.6**2,
            "half disc": math.pi / 2 + 0.25 * math.sqrt(1 - 0.25**2) + math.asin(0.25)}
    source, ratios = SceneBias("unbiased", size=40, side=60), {name: [] for name in SHAPES}
    for index in range(40):
        pose, half, _, u = geometry(source, index)
        mask, name = source.mask(index), SHAPES[int(u["shape"][0, 0] * 5)]
        inside = ~(mask[:, [0, -1]].any((1, 2)) | mask[:, :, [0, -1]].any((1, 2)))
        measured = mask.sum((1, 2)) / (half * pose["scale"] * (TILE - 1) / TILE) ** 2 / area[name]
        ratios[name] += measured[inside].tolist()
    for name, found in ratios.items():
        assert len(found) > 20 and abs(np.mean(found) - 1) < 0.03, name


def test_the_actor_is_seen_where_the_mask_says(source):
    "No geometry here: under the mask a dark actor's clip is dark, and a bright one's is bright."
    for index in range(24):
        u = source.geometry(slice(index, index + 1))[0]
        core = F.avg_pool2d(source.mask(index)[:, None].float(), 3, 1, 1)[:, 0] > 0.99
        values = whole(source, index).float().transpose(0, 1)[:, core] / 255
        assert (values.mean() > 0.7) if u["bright"][0, 0] < 0.5 else (values.mean() < 0.3)


def test_actors_and_motions_do_not_know_each_other():
    "Over many clips no shape, size or brightness is more frequent with one class than with another (chi-squared, 6σ)."
    plan = ClipPlan("pretrain", size=6000)
    u = plan.geometry(slice(None))[0]
    for name, bins in (("shape", 5), ("bright", 2), ("half", 4), ("cycles", 4), ("angle", 4)):
        table = np.histogram2d(plan.labels, (u[name][:, 0] * bins).long(), bins=(6, bins))[0]
        expected, freedom = 1000 / bins, 5 * (bins - 1)
        assert ((table - expected) ** 2 / expected).sum() < freedom + 6 * math.sqrt(2 * freedom) + 5


def test_twice_the_side_is_the_same_clip_twice_as_large(source):
    large = SceneBias("test", rho=0.9, seed=0, size=48, side=60)
    for index in range(0, 48, 7):
        halved = F.avg_pool2d(large.mask(index)[:, None].float(), 2)[:, 0] > 0.5
        assert (halved == source.mask(index)).float().mean() > 0.97
        small, shrunk = whole(source, index).float(), F.avg_pool2d(whole(large, index).float(), 2)
        assert (small - shrunk).abs().mean() < 10  # of 255; the grain alone makes about 5
    assert (large.scenes == source.scenes).all()


def test_smooth_is_a_ring_average():
    x = torch.randn(2, 11)
    expected = torch.stack([sum(x[:, (t + k) % 11] for k in range(-3, 4)) / math.sqrt(7) for t in range(11)], 1)
    assert torch.allclose(smooth(x), expected, atol=1e-6)


def test_flicker_and_grain_are_as_strong_as_promised():
    plan = SceneBias("unbiased", size=16)
    u, inverse, camera = plan.geometry(slice(0, 16))
    clean = render(backgrounds(torch.from_numpy(plan.scenes), u, 30, plan.margin), actors(u), inverse, camera, 30)
    noisy = torch.stack([whole(plan, i) for i in range(16)]).float() / 255
    unclipped = (clean > 0.1) & (clean < 0.85)
    factor = torch.stack([(noisy[i, t] / clean[i, t])[unclipped[i, t]].mean() for i in range(16) for t in range(40)])
    assert abs(factor.mean() - 1) < 0.01 and 0.02 < factor.std() < 0.045
    rest = noisy - clean * factor.view(16, 40, 1, 1, 1)
    assert 0.018 < rest[unclipped].std() < 0.023


def test_film_of_some_rows_is_film_of_all():
    plan = ClipPlan("probe", size=20)
    roll = 0.02 * torch.randn(4 * 40 * 3 * 900)
    assert torch.equal(film(plan, slice(0, 20), roll)[3:11], film(plan, slice(3, 11), roll))
    assert sum(40 if width == "t" else width for width in FIELDS.values()) == 394  # the width is part of the seed


# --- fairness ---

def test_random_features_solve_the_biased_test_and_fail_on_the_swapped():
    torch.manual_seed(1)
    backbone, found = create_backbone("tiny"), {}
    for split, size in (("probe", 480), ("test", 240), ("swapped", 240)):
        source = SceneBias(split, 0.9, 1, size=size)
        found[split] = extract_features(backbone, source, clips=1, frames=8, size=24, progress=False)
    x, y = found["probe"].features, found["probe"].labels
    score = {split: linear_probe(x, y, found[split].features, found[split].labels).accuracy
             for split in ("test", "swapped")}
    assert score["test"] > 0.5 and score["swapped"] < 0.3
