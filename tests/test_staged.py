"""Actors before other scenes: what is dealt, what is joined, and what stays the same when only the scene changes."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from be_nb.data.lists import read_list
from be_nb.data.pack.write import pack
from be_nb.data.scenebias import SceneBias
from be_nb.data.staged import (BeforeStills, Cast, cut_puppets, film_cast, film_stills, paint_stills, shift, Staged,
                               Stills)
from be_nb.data.videos import write_folder


@pytest.fixture(scope="module")
def cast():
    "Nine actors of three classes: a white square that grows, on black that must never be seen."
    alphas = [torch.zeros(5 + i, 30, 40) for i in range(9)]
    for i, alpha in enumerate(alphas):
        alpha[:, 8:16 + i, 10:20] = 1
    clips = [(255 * alpha).byte()[:, None].repeat(1, 3, 1, 1) for alpha in alphas]
    return Cast(clips, alphas, np.arange(9) % 3, ["a", "b", "c"])


@pytest.fixture(scope="module")
def stills():
    return paint_stills(60, 0, (36, 46))


@settings(max_examples=20, deadline=None)
@given(x=st.floats(-3, 3), y=st.floats(-3, 3), seed=st.integers(0, 99))
def test_the_camera_is_linear_interpolation(x, y, seed):
    ndimage = pytest.importorskip("scipy.ndimage")
    wide = torch.rand(1, 2, 20, 26, generator=torch.Generator().manual_seed(seed))
    seen = shift(wide, torch.tensor([[x, y]]), 3)[0].numpy()
    rows, columns = np.mgrid[3:17, 3:23].astype(float)
    expected = [ndimage.map_coordinates(channel.numpy(), [rows + y, columns + x], order=1, mode="constant")
                for channel in wide[0]]
    inside = (slice(None), slice(1, -1), slice(1, -1))  # at the very edge torch mixes in what is outside
    np.testing.assert_allclose(seen[inside], np.array(expected)[inside], atol=2e-4)


@pytest.mark.parametrize("split, rho, expected", [("pretrain", 0.5, 0.5 + 0.5 / 6), ("test", 1.0, 1.0),
                                                  ("swapped", 1.0, 1 / 6), ("unbiased", 0.9, 1 / 6)])
def test_how_often_scene_and_class_agree(split, rho, expected, cast, stills):
    made = Staged(split, cast, stills, rho, size=4000)
    share = float((made.scenes == made.labels % 6).mean())
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9
    counts = np.bincount(made.who, minlength=9)
    assert counts.max() - counts.min() <= 1 and (made.labels == cast.labels[made.who]).all()


def test_twins_differ_by_their_scenes_alone(cast, stills):
    a, b = (Staged(split, cast, stills, 1.0, size=18) for split in ("test", "swapped"))
    assert (a.who == b.who).all() and not (a.scenes == b.scenes).all()
    i = int(np.flatnonzero(a.scenes != b.scenes)[0])
    assert torch.equal(a.mask(i), b.mask(i)) and a.mask(i).any() and not a.mask(i).all()
    first, second = (each.read(i, np.arange(each.num_frames(i))).int() for each in (a, b))
    core = (a.layers(i)[:, 3] > 1 - 1e-5)[:, None].expand_as(first)
    assert torch.equal(first[core], second[core])
    assert (first - second).abs()[~a.mask(i)[:, None].expand_as(first)].float().mean() > 10


def test_the_knob_moves_nothing_but_scenes(cast, stills):
    a, b = (Staged("probe", cast, stills, rho, size=30) for rho in (0.0, 1.0))
    assert (a.who == b.who).all() and torch.equal(a.mask(7), b.mask(7))
    assert (b.scenes == b.labels % 6).all() and not (a.scenes == b.scenes).all()
    other = Staged("probe", cast, stills, 0.0, seed=1, size=30)
    assert not (a.who == other.who).all()


def test_joined_by_coverage(cast):
    "With no noise left in it, a pixel is actor and scene in the shares of the mask."
    flat = Stills(torch.full((1, 3, 36, 46), 0.25), np.zeros(1, int))
    half = cast._replace(alphas=[alpha / 2 for alpha in cast.alphas])
    layers = Staged("test", half, flat, size=9).layers(2)
    mixed = layers[:, 3:] + (1 - layers[:, 3:]) * 0.25  # the actor is white
    inside = layers[:, 3] > 0.5 - 1e-5                   # not at a rim, where the camera mixes neighbours
    assert inside.any() and torch.allclose(layers[:, :3].movedim(1, -1)[inside], mixed.movedim(1, -1).expand(
        -1, -1, -1, 3)[inside], atol=1e-4)


def test_reading_is_repeatable_and_in_the_order_asked_for(cast, stills):
    made = Staged("test", cast, stills, size=9)
    whole = made.read(3, range(made.num_frames(3)))
    assert whole.dtype == torch.uint8 and whole.shape[1:] == (3, 30, 40)
    assert torch.equal(made.read(3, [4, 0, 4]), whole[[4, 0, 4]])


def test_scenebias_before_pictures_keeps_its_actors(stills):
    square = Stills(stills.pictures[..., 5:41], stills.families)
    for split in ("probe", "swapped"):
        made, plain = BeforeStills(split, square, size=12), SceneBias(split, size=12)
        assert torch.equal(made.mask(5), plain.mask(5)) and (made.labels == plain.labels).all()
        assert (made.scenes == plain.scenes).all()  # six families: the same choice
        core = torch.nn.functional.max_pool2d((~plain.mask(5)).float()[:, None], 5, 1, 2)[:, 0] == 0
        apart = (made.read(5, range(40)).float() - plain.read(5, range(40)).float()).mean(1)
        assert core.any() and apart[core].abs().mean() < 8  # two draws of the same noise


@pytest.mark.parametrize("scale", [0.65, 1.0, 1.4])
def test_larger_actors_move_as_far(stills, scale):
    "Their middles are where they were, and their areas are scale² times as large, as far as they are seen."
    square = Stills(stills.pictures[..., 5:41], stills.families)
    usual, other = (BeforeStills("test", square, size=60, scale=s) for s in (1.0, scale))
    assert (usual.labels == other.labels).all() and (usual.chosen == other.chosen).all()
    before, after = (source.geometry(slice(0, 60))[1].double() for source in (usual, other))
    middles = [torch.linalg.solve(inverse[..., :2], -inverse[..., 2]) for inverse in (before, after)]
    assert torch.allclose(*middles, atol=1e-3)
    small, large = ([float(source.mask(i).float().mean()) for i in range(60)] for source in (usual, other))
    assert np.mean(large) / np.mean(small) == pytest.approx(scale**2, rel=0.15)
    with pytest.raises(ValueError, match="above 0"):
        BeforeStills("test", square, scale=-scale)


def test_puppets_are_people_who_move_like_discs(cast, stills):
    puppets = cut_puppets(cast)
    assert puppets.shape == (9, 4, 32, 32)
    for puppet, (wide, tall) in zip(puppets, ((10, 8 + i) for i in range(9))):
        rows, columns = (puppet[3] > 0.5).nonzero().unbind(1)
        spans = [int(axis.max() - axis.min()) + 1 for axis in (rows, columns)]
        assert max(spans) == pytest.approx(24, abs=2)  # three quarters of the canvas
        assert spans[0] / spans[1] == pytest.approx(tall / wide, rel=0.15)
        assert float(puppet[:3, puppet[3] > 0.99].min()) > 0.99  # none of the black around it
    square = Stills(stills.pictures[..., 5:41], stills.families)
    make = lambda split, rho=0.9: BeforeStills(split, square, rho, size=48, puppets=puppets)
    test, swapped, plain = make("test"), make("swapped"), SceneBias("test", size=48)
    assert (test.who == swapped.who).all() and (test.who == make("test", 0.1).who).all() and len(set(test.who)) > 6
    inside = test.mask(7) & plain.mask(7)
    flows = [source.flow(7)[inside[:-1, None].expand(-1, 2, -1, -1)] for source in (test, plain)]
    assert inside.any() and torch.equal(*flows) and not torch.equal(test.mask(7), plain.mask(7))
    assert float(test.read(7, range(40)).float().mean(1)[test.mask(7)].mean()) > 200  # the white squares
    with pytest.raises(ValueError, match="masks are empty"):
        cut_puppets(cast._replace(alphas=[0 * alpha for alpha in cast.alphas]))


def test_stills_of_filmed_places(tmp_path):
    class Passing:
        "A grey place, and something white that passes through once."

        labels, classes, names = np.arange(4) % 2, ["a", "b"], [f"v{i}" for i in range(4)]
        num_frames = staticmethod(lambda i: 12)

        def read(self, i, frames):
            clip = torch.full((len(frames), 3, 24, 36), 60 + 20 * i, dtype=torch.uint8)
            for image, t in zip(clip, frames):
                image[:, 6:18, 3 * t:3 * t + 3] = 255
            return clip

    write_folder(tmp_path, {"train.txt": Passing()})
    found = film_stills(tmp_path, "train.txt", (24, 36))
    assert found.kinds == 2 and found.families.tolist() == [0, 1, 0, 1]
    expected = torch.tensor([60.0, 80, 100, 120]).view(4, 1, 1, 1) / 255
    assert (found.pictures - expected).abs().max() < 0.03


def test_a_cast_from_files(tmp_path):
    source = SceneBias("probe", size=4, side=60)
    write_folder(tmp_path, {"train.txt": source})
    masks: dict[str, Any] = {f"train/{name}": np.packbits(source.mask(i).numpy(), axis=-1)
                             for i, name in enumerate(source.names)}
    np.savez(tmp_path / "actor_masks.npz", **masks)
    found = film_cast(tmp_path, "train.txt", (30, 30))
    for i in range(4):
        exact = torch.nn.functional.avg_pool2d(source.mask(i)[:, None].float(), 2)[:, 0]
        assert (found.alphas[i] - exact).abs().mean() < 0.02 and found.alphas[i].shape == found.clips[i][:, 0].shape
    assert found.labels.tolist() == source.labels.tolist() and found.classes == list(source.classes)
    packed = str(tmp_path / "pack")
    pack(str(tmp_path), ("train.txt",), packed, short_side=0)
    with pytest.raises(ValueError, match="is a pack: masks have the size of the video files"):
        film_cast(packed, "train.txt", (30, 30))


def test_real_actors_are_cut_out(footage):
    if not (folder := Path(footage, "jhmdb-21")).is_dir():
        pytest.skip(f"no {folder}")
    whole = read_list(folder / "val.txt")
    few: Any = replace(whole, paths=whole.paths[:2], labels=whole.labels[:2], where=whole.where[:2])
    found = film_cast(folder, few, (30, 40))
    assert len(found.clips) == 2
    for clip, alpha in zip(found.clips, found.alphas):
        assert clip.shape[0] == alpha.shape[0] and 0.005 < float(alpha.mean()) < 0.9
