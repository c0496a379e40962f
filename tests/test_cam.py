"""be_nb.judging.cam: exact maps against autograd, Grad-CAM against captum, mass against counting by hand."""
import numpy as np
import pytest
import torch

from be_nb.backbones import create_backbone
from be_nb.judging.cam import class_maps, enlarge, feature_maps, grad_cam, heat, mass_inside, probe_weights
from be_nb.judging.judges import linear_probe


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = create_backbone("tiny").train()
    with torch.no_grad():
        net(torch.randn(8, 3, 8, 24, 24))  # statistics that are not the identity
    return net.eval()


@pytest.fixture(scope="module")
def clips():
    return torch.randn(3, 3, 8, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("classes", [2, 5])
def test_weights_are_the_probe(classes):
    g = torch.Generator().manual_seed(classes)
    x, y = torch.randn(160, 12, generator=g) * torch.linspace(.1, 9, 12) + 3, torch.arange(160) % classes
    x[range(160), y] += 2
    weights, bias = probe_weights(x[:120], y[:120])
    said = (x[120:].double() @ weights.T + bias).argmax(1)
    assert torch.equal(said, linear_probe(x[:120], y[:120], x[120:], y[120:]).predictions)
    assert torch.allclose(weights.sum(0), torch.zeros(12).double(), atol=1e-3)  # the penalty fixes the common offset


def test_weights_with_a_class_that_is_missing():
    x, y = torch.randn(40, 4), torch.tensor([0, 3] * 20)
    weights, bias = probe_weights(x, y)
    assert weights.shape == (4, 4) and set((x.double() @ weights.T + bias).argmax(1).tolist()) <= {0, 3}
    with pytest.raises(ValueError, match="class 3 only"):
        probe_weights(x, torch.full((40,), 3))


def test_map_is_the_score_taken_apart(net, clips):
    """Mean of the map = score, and the map is what autograd says of a score that is linear in the features."""
    w = torch.randn(3, net.feature_dim, generator=torch.Generator().manual_seed(2))
    maps = feature_maps(net, clips)
    assert torch.allclose(class_maps(maps, w).mean((1, 2, 3)), (net(clips) * w).sum(1), atol=1e-4)
    features = maps.clone().requires_grad_()
    (features.mean((2, 3, 4)) * w).sum().backward()
    by_gradient = (features.grad * maps).sum(1) * maps[0, 0].numel()
    assert torch.allclose(class_maps(maps, w), by_gradient, atol=1e-4)
    assert torch.allclose(class_maps(maps, w[0])[0], class_maps(maps, w)[0])
    with pytest.raises(ValueError, match="channels"):
        class_maps(maps, w[:, :5])


@pytest.mark.parametrize("stage", ["conv1", "block1", "block2"])
def test_grad_cam_matches_captum(net, clips, stage):
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    head = torch.nn.Linear(net.feature_dim, 4)
    layer, targets = getattr(net.stages, stage), torch.tensor([0, 3, 1])
    ours = grad_cam(net, clips, lambda pooled: head(pooled)[range(3), targets], layer)
    theirs = attr.LayerGradCam(lambda x: head(net(x)), layer).attribute(clips, targets, relu_attributions=True)
    assert torch.allclose(ours, theirs[:, 0], atol=1e-6) and ours.max() > 0


def test_grad_cam_leaves_no_trace(net, clips):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        grad_cam(net, clips, lambda pooled: pooled[:, 0])
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not net.stages[-1]._forward_hooks
    alone = grad_cam(net, clips[1:2], lambda pooled: pooled[:, 0])
    assert torch.allclose(grad_cam(net, clips, lambda pooled: pooled[:, 0])[1:2], alone, atol=1e-6)
    with pytest.raises(ValueError, match="does not use"):
        grad_cam(net, clips, lambda pooled: pooled[:, 0], torch.nn.Conv3d(1, 1, 1))


def test_training_mode_is_refused(clips):
    net = create_backbone("tiny")
    for call in (lambda: feature_maps(net, clips), lambda: grad_cam(net, clips, lambda pooled: pooled[:, 0])):
        with pytest.raises(ValueError, match="eval"):
            call()


def test_mass():
    rng = np.random.default_rng(0)
    cam, mask = torch.from_numpy(rng.normal(size=(4, 2, 5, 6))), torch.from_numpy(rng.random((4, 2, 5, 6)) < .3)
    mass, area = mass_inside(cam, mask)
    for k in range(4):
        positive = [v for v in cam[k].flatten().tolist() if v > 0]
        inside = [v for v, m in zip(cam[k].flatten().tolist(), mask[k].flatten().tolist()) if v > 0 and m]
        assert mass[k].item() == pytest.approx(sum(inside) / sum(positive))
        assert area[k].item() == pytest.approx(mask[k].sum().item() / 60)
    with pytest.raises(ValueError, match="same shape"):
        mass_inside(cam, mask[:, :1])


def test_enlarge_keeps_flat_maps_and_the_place_of_the_maximum():
    assert torch.allclose(enlarge(torch.full((1, 2, 3, 3), 2.5), (8, 24, 24)), torch.tensor(2.5))
    spot = torch.zeros(1, 2, 3, 3)
    spot[0, 1, 0, 2] = 1
    t, y, x = np.unravel_index(int(enlarge(spot, (8, 24, 24)).argmax()), (8, 24, 24))
    assert t >= 4 and y < 8 and x >= 16


def test_heat_colours_only_where_the_map_is():
    clip = torch.full((4, 3, 24, 24), 100, dtype=torch.uint8)
    assert torch.equal(heat(clip, torch.zeros(2, 3, 3)), clip) and torch.equal(heat(clip, -torch.ones(2, 3, 3)), clip)
    spot = torch.zeros(2, 3, 3)
    spot[:, 0, 0] = 7
    drawn = heat(clip, spot)
    assert torch.equal(drawn[:, :, 16:, 16:], clip[:, :, 16:, 16:])
    assert not torch.equal(drawn[..., :8, :8], clip[..., :8, :8])
