"""Flow regression: the flow of a view against SceneBias and points that are moved one by one; the loss by loops."""
import math

import pytest
import torch

from be_nb.augment import Augment
from be_nb.config import override
from be_nb.data.scenebias import FlowFrames, SceneBias
from be_nb.data.sources import build_loader, build_source
from be_nb.judging.flow import compare_flows, lucas_kanade
from be_nb.methods.base import Batch, build_method, Windows
from be_nb.methods.flow_regression import flow_view, FlowRegression, relative_error, turn_vectors
from be_nb.pixels import affine_matrix
from be_nb.settings import PretrainConfig

SMALL = dict(method="flow_regression", data_size=8, batch_size=4, frames=4, size=24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(size=3, frames=6):
    source = FlowFrames(SceneBias("unbiased", size=size))
    return torch.stack([source.read(i, range(10, 10 + frames)) for i in range(size)])


def test_the_flow_of_an_unchanged_view_is_that_of_scenebias():
    raw, whole = clips(), Augment(30, crop=(1., 1.))
    found = flow_view(raw[:, :, 3:], whole.sample(3, 30, 30), 30)
    exact = torch.stack([SceneBias("unbiased", size=3).flow(i)[10:16] for i in range(3)]).transpose(1, 2)
    near = exact.abs().amax(1) < 7.4  # what is faster does not fit into a byte
    told = compare_flows(found.transpose(1, 2), exact.transpose(1, 2), near)
    assert told["end_point"] < .04 and told["length"] == pytest.approx(1, abs=.02) and near.float().mean() > .9


@pytest.mark.parametrize("flip", [0., 1.])
def test_vectors_turn_as_points_do(flip):
    "Both ends of a vector go through the inverse of the map that the view was made by."
    parameters = Augment(24, degrees=60., crop=(.4, .9), flip=flip).sample(5, 20, 32, generator())
    flow, points = torch.randn(5, 2, generator=generator(1)), 5 + 9 * torch.rand(5, 2, generator=generator(2))
    side = torch.tensor([32., 20.])
    for matrix, vector, point, turned in zip(affine_matrix(*parameters[:5], height=20, width=32), flow, points,
                                             turn_vectors(flow.view(5, 2, 1, 1, 1), parameters, 24).flatten(1)):
        ends = [torch.linalg.solve(matrix[:, :2], 2 * p / side - 1 - matrix[:, 2]) for p in (point, point + vector)]
        assert torch.allclose(turned, (ends[1] - ends[0]) * 24 / 2, atol=1e-4)


def test_the_flow_of_a_view_moves_the_view():
    "Lucas and Kanade see in the augmented frames what the turned vectors say: an oracle that knows no parameters."
    raw, augment = clips(8), Augment(40, degrees=30., crop=(.7, 1.), flip=.5)
    parameters = augment.sample(8, 30, 30, generator(3))
    assert parameters.flip.any() and not parameters.flip.all()
    flow = flow_view(raw[:, :1, 3:], parameters, 40)[:, :, 0]
    seen = augment.view(raw[:, :2, :3], parameters)
    measured = lucas_kanade(seen[:, :, 0] / 4 + .5, seen[:, :, 1] / 4 + .5)
    slow = flow.norm(dim=1) < 2  # there it is good
    error = lambda true: (measured - true).norm(dim=1)[slow].median() / flow.norm(dim=1)[slow].median()
    assert error(flow) < .7 * error(0 * flow)
    unturned = flow_view(raw[:, :1, 3:], parameters._replace(flip=~parameters.flip), 40)[:, :, 0].flip(-1)
    assert error(unturned) > 1.5 * error(flow)  # the right pixels, and vectors that are mirrored wrongly


def test_loss_is_loops_and_its_reference_is_no_motion():
    said, true = torch.randn(2, 2, 2, 3, 4, 5, generator=generator())
    pairs = [(said[i, :, t, y, x].tolist(), true[i, :, t, y, x].tolist())
             for i in range(2) for t in range(3) for y in range(4) for x in range(5)]
    errors = [math.dist(a, b) for a, b in pairs]
    lengths = [math.hypot(*b) for _, b in pairs]
    loss, told = relative_error(said, true)
    assert loss.item() == pytest.approx(sum(errors) / sum(lengths), rel=1e-5)
    assert told["end_point"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    fast = sorted(range(len(pairs)), key=lambda i: -lengths[i])[:12]
    quotient = sum(errors[i] for i in fast) / sum(lengths[i] for i in fast)
    assert told["fastest"].item() == pytest.approx(quotient, rel=1e-5)
    method = build_method(PretrainConfig(**SMALL))
    assert relative_error(0 * true, true)[0].item() == pytest.approx(method.reference_loss(4))
    assert relative_error(true, true)[0] == 0
    assert relative_error(true, 0 * true)[0].item() == pytest.approx(sum(lengths) / len(lengths) / .1, rel=1e-5)
    said.requires_grad_()
    relative_error(said, said.detach())[0].backward()
    assert said.grad.isfinite().all()  # where nothing is wrong, too


def test_the_network_sees_the_distracted_clip_and_is_asked_about_the_clean_one():
    config = PretrainConfig(**SMALL, gamma=1.)
    found = next(iter(build_loader(config, FlowRegression.windows(config), build_source(config))))["clips"]
    assert FlowRegression.windows(config) == Windows(flow=True) and found.shape == (4, 1, 4, 6, 30, 30)
    shown, flow = build_method(config).show(Batch(found, generator()))
    clean, same = build_method(override(config, distractor="none")).show(Batch(found, generator()))
    assert torch.equal(flow, same) and flow.shape == (4, 2, 3, 12, 12)
    change = [x.diff(dim=2).flatten(1).norm(dim=1) for x in (shown, clean)]
    lam = 1 - change[0] / change[1]
    assert ((lam > 0) & (lam < 1)).all() and lam.max() > .1
    assert not torch.equal(shown, clean) and shown.shape == (4, 3, 4, 24, 24)


def test_frames_and_flow_are_cut_alike():
    "A picture of flow that is the frames themselves is cut out at the same place."
    raw = clips()[:, :, :3]
    augment = Augment(24, degrees=20., crop=(.5, .8))
    parameters = augment.sample(3, 30, 30, generator())
    seen = augment.view(raw, parameters) * augment.shift.new_tensor([.229, .224, .225]).view(3, 1, 1, 1)
    seen = (seen + seen.new_tensor([.485, .456, .406]).view(3, 1, 1, 1))[:, :2] * 255
    flow = flow_view(raw, parameters, 24)
    assert torch.allclose(turn_vectors((seen - 128) * 30 / 508, parameters, 24), flow, atol=1e-3)


def test_settings():
    assert FlowRegression.passes(PretrainConfig(**SMALL)) == 3
    with pytest.raises(ValueError, match="2 frames or more"):
        PretrainConfig(**SMALL | dict(frames=1))
    with pytest.raises(ValueError, match="built-in set only"):
        FlowFrames(object())
