"""The backbones: their promise, their published cost, and their maps against the same networks written by others."""
import copy
import math

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from be_nb.augment import IMAGENET_MEAN, IMAGENET_STD
from be_nb.backbones import BACKBONES, create_backbone, list_backbones
from be_nb.backbones.i3d import SamePad
from be_nb.backbones.layers import adopt_weights, Backbone, init_he
from be_nb.backbones.measure import describe, receptive_field, stage_maps
from be_nb.backbones.s3dg import S3DG
from be_nb.backbones.torchvision import renormalize

every = pytest.mark.parametrize("name", list_backbones())
WIDTH = {"c3d": 8, "r3d18": 8, "r3d34": 8, "r3d50": 8, "r2plus1d18": 8, "vit": 24,
         "vit_small": 192, "vit_base": 192}  # narrow versions, where there is a width

# Feature size, parameters, GMAC at 16×112² and 16×224². Cost: the published numbers; S3D-G from torchvision's S3D.
FACTS = {
    "tiny": (64, 214_128, 0.97, 3.88),
    "c3d": (512, 27_658_688, 38.5, 154.0),
    "i3d": (1024, 12_287_264, 7.0, 27.8),
    "r3d18": (512, 33_203_904, 8.3, 32.9),
    "r3d34": (512, 63_513_536, 12.7, 50.2),
    "r3d50": (2048, 46_198_976, 10.1, 39.8),
    "r2plus1d18": (512, 31_300_125, 40.5, 162.1),
    "s3dg": (1024, 8_675_744, 4.5, 18.0),
    "tv_r3d18": (512, 33_166_272, 40.7, 162.8),
    "tv_mc3_18": (512, 11_490_240, 43.3, 173.4),
    "tv_s3d": (1024, 7_910_048, 4.5, 18.0),
    "vit": (72, 259_416, 24.3, 369.0),
    "vit_small": (384, 21_879_936, 10.0, 56.9),
    "vit_base": (768, 86_227_200, 36.6, 180.3),
}
# What torchvision says of the same networks with their classifier: parameters, and GMAC at the size of its table.
THEIRS = {"r2plus1d18": ("r2plus1d_18", 112), "tv_r3d18": ("r3d_18", 112), "tv_mc3_18": ("mc3_18", 112),
          "tv_s3d": ("s3d", 224)}


def narrow(name, **kwargs):
    return create_backbone(name, **({"width": WIDTH[name]} if name in WIDTH else {}), **kwargs)


def ghost(name):
    with torch.device("meta"):
        return create_backbone(name)


def uneven_norms(network):
    "Running statistics and scales as after training, so that a norm in the wrong place shows."
    for m in network.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.1)
    return network.eval()


@every
def test_forward_and_backward(name):
    torch.manual_seed(0)
    net = narrow(name)
    clips = torch.randn(2, 3, 9, 33, 40)
    features = net.features(clips)
    assert features.ndim == 5 and features.shape[:2] == (2, net.feature_dim) and min(features.shape) > 0
    pooled = net(clips)
    assert pooled.shape == (2, net.feature_dim)
    pooled.square().sum().backward()
    for key, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
    net.eval()
    with torch.no_grad():
        assert torch.allclose(net(clips), net.features(clips).mean((2, 3, 4)), atol=1e-6)
        assert torch.allclose(net(clips)[1:], net(clips[1:]), rtol=1e-3, atol=1e-4), "features depend on the neighbour"


@every
def test_facts(name):
    dim, params, at_112, at_224 = FACTS[name]
    net = ghost(name)
    small, large = describe(net, 16, 112), describe(net, 16, 224)
    assert net.feature_dim == dim == small[-1].shape[0] and net.name == name
    assert small.params == params == sum(p.numel() for p in net.parameters())
    assert abs(small.macs / 1e9 - at_112) <= 0.05 and abs(large.macs / 1e9 - at_224) <= 0.1


@pytest.mark.parametrize("name", THEIRS)
def test_facts_are_those_that_torchvision_publishes(name):
    theirs, size = THEIRS[name]
    meta = torchvision.models.get_model_weights(theirs).DEFAULT.meta
    rows = describe(ghost(name), 16, size)
    classes = len(meta["categories"])
    assert rows.params + classes * (FACTS[name][0] + 1) == meta["num_params"]
    assert (rows.macs + classes * FACTS[name][0]) / 1e9 == pytest.approx(meta["_ops"], abs=1e-3)


@every
def test_cost_equals_pytorchs_counter(name):
    net = ghost(name).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 16, 112, 112, device="meta"))
    assert counter.get_total_flops() == 2 * describe(net, 16, 112).macs


@every
def test_minimum_is_the_smallest_that_works(name):
    net = narrow(name).eval()
    t, h, w = net.minimum
    assert net(torch.rand(1, 3, t, h, w)).shape == (1, net.feature_dim)
    for axis in range(3):
        size = [n - (axis == i) for i, n in enumerate(net.minimum)]
        with pytest.raises(ValueError, match=f"{name} needs clips of at least {t} frames of {h}×{w} pixels"):
            net(torch.rand(1, 3, *size))
        with pytest.raises(RuntimeError):  # what PyTorch would have said, deep inside: the minimum is not too strict
            net.stages(torch.rand(1, 3, *size))
    with pytest.raises(ValueError, match="at least"):
        describe(net, frames=t - 1, size=h)


@every
def test_wrong_clips_are_named(name):
    net = narrow(name)
    with pytest.raises(ValueError, match=r"b, c=3, t, h, w.*\(2, 16, 3, 32, 32\)"):
        net(torch.rand(2, 16, 3, 32, 32))
    with pytest.raises(ValueError, match="uint8"):
        net(torch.zeros(1, 3, 16, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(3, 16, 32, 32\)"):
        net(torch.rand(3, 16, 32, 32))
    net = narrow(name, in_channels=2)
    with pytest.raises(ValueError, match="c=2"):
        net(torch.rand(1, 3, 16, 32, 32))


@every
def test_nothing_random_inside(name):
    "No dropout; no bias that a batch norm would take out; the second look at a clip equals the first."
    net = ghost(name)
    assert not any("dropout" in type(m).__name__.lower() for m in net.modules())
    biased = [key for key, m in net.named_modules() if isinstance(m, nn.Conv3d) and m.bias is not None]
    assert all("gate" in key for key in biased), biased


@every
def test_starts_as_he_et_al(name):
    "Convolutions; a transformer has none, see tests/test_vit.py."
    torch.manual_seed(0)
    for m in narrow(name).modules():
        if isinstance(m, nn.Conv3d) and m.weight.numel() > 20_000:
            fan_out = m.out_channels * math.prod(m.kernel_size)
            assert m.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
        if isinstance(m, nn.BatchNorm3d):
            assert (m.weight == 1).all() and (m.bias == 0).all()


def test_registry_is_complete():
    assert set(list_backbones()) == set(FACTS) == set(BACKBONES)


@pytest.mark.parametrize("wrong, right", [("r3d_18", "r3d18"), ("R3D34", "r3d34"), ("tinny", "tiny"), ("C3D", "c3d"),
                                          ("r2plus1d_18", "r2plus1d18"), ("s3d", "s3dg"), ("I3D", "i3d")])
def test_unknown_name_is_told_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"{wrong}.*Did you mean '{right}'"):
        create_backbone(wrong)


def test_hopeless_name_is_told_the_list():
    with pytest.raises(ValueError, match="Known: c3d, i3d, .* tiny"):
        create_backbone("")
    with pytest.raises(ValueError, match="No backbone named None"):  # what a file may say
        create_backbone(None)


def test_a_fault_inside_their_own_module_is_shown_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "faulty_nets.py").write_text("import math\nmath.no_such_thing\nclass Mine: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AttributeError, match="no_such_thing"):
        create_backbone("faulty_nets:Mine")


def test_a_new_backbone_is_one_line(monkeypatch):
    monkeypatch.setitem(BACKBONES, "same_again", "be_nb.backbones.tiny:Tiny")
    assert create_backbone("same_again", width=4).feature_dim == 16 and "same_again" in list_backbones()


def images_as_clips(network, backbone):
    "Give `backbone` the image network's filters in their middle frame, zeros before and after."
    uneven_norms(network)
    state = {}
    for key, value in network.state_dict().items():
        if value.ndim == 4:
            k = {1: 1, 3: 3, 7: 7}[value.shape[-1]]
            value = nn.functional.pad(value[:, :, None], (0, 0, 0, 0, k // 2, k // 2))
        state[key] = value
    adopt_weights(backbone.eval(), state)


@pytest.mark.parametrize("name, image_name", [("r3d18", "resnet18"), ("r3d34", "resnet34"), ("r3d50", "resnet50")])
def test_r3d_is_resnet_with_time(name, image_name):
    "With image filters in the middle frame, one frame must come out as from torchvision's 2D network."
    torch.manual_seed(0)
    image_net, net = getattr(torchvision.models, image_name)(), create_backbone(name)
    images_as_clips(image_net, net)
    images = torch.randn(2, 3, 65, 50)
    with torch.no_grad():
        expected = nn.Sequential(*list(image_net.children())[:-2])(images)
        assert expected.std() > 0.01
        torch.testing.assert_close(net.features(images[:, :, None])[:, :, 0], expected, rtol=1e-3, atol=1e-4)


def test_c3d_is_vgg_with_time():
    "C3D has the widths of VGG-11. A still clip must come out as its picture from torchvision's VGG-11 with batch norm."
    torch.manual_seed(0)
    image_net, net = torchvision.models.vgg11_bn().features, create_backbone("c3d")
    for m in image_net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.zeros_(m.bias)
    uneven_norms(image_net)
    kept = {k: v for k, v in image_net.state_dict().items() if not (k.endswith("bias") and v.count_nonzero() == 0)}
    state = {k: nn.functional.pad(v[:, :, None], (0, 0, 0, 0, 1, 1)) if v.ndim == 4 else v for k, v in kept.items()}
    adopt_weights(net.eval(), state)
    image = torch.randn(1, 3, 50, 33)
    with torch.no_grad():
        expected = image_net[:-1](image)  # without VGG's fifth pool
        assert expected.std() > 0.01
        still = net.features(image[:, :, None].expand(-1, -1, 8, -1, -1))
        torch.testing.assert_close(still[:, :, 0], expected, rtol=1e-3, atol=1e-4)


def test_i3d_is_googlenet_with_time():
    """Same for I3D and torchvision's GoogLeNet, which pads its first convolution by 3 and 3 where SAME pads by 2 and 3.

    So the picture goes in one pixel further down and right; its last row and column, which would fall off, are zero.
    """
    torch.manual_seed(0)
    image_net = torchvision.models.googlenet(aux_logits=False, init_weights=False)
    net = create_backbone("i3d")
    images_as_clips(image_net, net)
    image = torch.randn(1, 3, 96, 64)
    image[..., -1, :] = image[..., -1] = 0
    shifted = image.roll((1, 1), (2, 3))
    with torch.no_grad():
        expected = nn.Sequential(*list(image_net.children())[:-3])(image)
        assert expected.shape == (1, 1024, 3, 2) and expected.std() > 0.01
        torch.testing.assert_close(net.features(shifted[:, :, None])[:, :, 0], expected, rtol=1e-3, atol=1e-4)


def test_r2plus1d_equals_torchvision():
    torch.manual_seed(0)
    theirs, ours = uneven_norms(torchvision.models.video.r2plus1d_18()), create_backbone("r2plus1d18").eval()
    adopt_weights(ours, theirs.state_dict())
    clips = torch.randn(1, 3, 9, 33, 18)
    with torch.no_grad():
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(theirs.stem(clips)))))
        assert expected.std() > 0.01
        torch.testing.assert_close(ours.features(clips), expected, rtol=1e-3, atol=1e-4)


def test_s3d_equals_torchvision():
    torch.manual_seed(0)
    theirs, ours = torchvision.models.video.s3d(), S3DG(gating=False).eval()
    init_he(theirs)  # its own filters are so small that the map does not depend on the clip
    uneven_norms(theirs)
    adopt_weights(ours, theirs.state_dict())
    clips = torch.randn(2, 3, 13, 51, 45)
    with torch.no_grad():
        expected = theirs.features(clips)
        assert (expected[0] - expected[1]).std() > 0.01
        torch.testing.assert_close(ours.features(clips), expected, rtol=1e-3, atol=1e-4)


def test_a_shift_of_colours_is_exact_only_as_a_layer_of_its_own():
    "From the same bytes: torchvision's normalisation and network against ours, rim and first frame included."
    torch.manual_seed(0)
    preset = torchvision.models.get_model_weights("r3d_18").DEFAULT.transforms()
    net = uneven_norms(create_backbone("tv_r3d18")).double()
    pixels = torch.rand(1, 3, 4, 20, 20, dtype=torch.float64)
    seen = lambda mean, std: (pixels - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)
    with torch.no_grad():
        expected = net.features(seen(preset.mean, preset.std))
        renormalize(net, preset.mean, preset.std)
        torch.testing.assert_close(net.features(seen(IMAGENET_MEAN, IMAGENET_STD)), expected, rtol=1e-4, atol=1e-5)
    assert not [key for key, _ in net.named_parameters() if "input" in key]
    assert describe(net, 16, 112).macs == describe(ghost("tv_r3d18"), 16, 112).macs


def test_adopting_another_network_changes_nothing():
    net = create_backbone("tiny")
    before = copy.deepcopy(net.state_dict())
    for other in (create_backbone("tiny", width=8), narrow("r3d18")):
        with pytest.raises(ValueError, match="tiny"):
            adopt_weights(net, other.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def chain(layers):
    field, step = 1, 1
    for kernel, stride in layers:
        field, step = field + (kernel - 1) * step, step * stride
    return field


def test_receptive_fields_by_arithmetic():
    conv, halve, pool = (3, 1), (3, 2), (2, 2)
    r3d18 = [halve, *[conv] * 4, *([halve, *[conv] * 3] * 3)]
    assert receptive_field(ghost("r3d18"))["layer4"] == (chain([(7, 1), *r3d18]), *[chain([(7, 2), *r3d18])] * 2)
    c3d = [conv, conv, conv, pool, conv, conv, pool, conv, conv]
    seen = receptive_field(ghost("c3d"))["conv5"]
    assert seen == (chain([conv, conv, pool, *c3d[1:]]), *[chain([conv, pool, conv, pool, *c3d[1:]])] * 2)
    inception = [(7, 2), (3, 2), conv, (3, 2), conv, conv, (3, 2), *[conv] * 5, (2, 2), conv, conv]
    in_time = [(7, 2), conv, conv, conv, (3, 2), *[conv] * 5, (2, 2), conv, conv]
    assert receptive_field(ghost("i3d"))["mixed5c"] == (chain(in_time), *[chain(inception)] * 2)


@pytest.mark.parametrize("name", ["tiny", "i3d"])
def test_receptive_field_holds_for_real_weights(name):
    "What lies outside the measured field of a place has no influence on it; inside, next to the rim, something has."
    torch.manual_seed(0)
    net = create_backbone(name).eval().double()
    stage = "block2" if name == "tiny" else "conv2c"
    field = receptive_field(net)[stage]
    clips = torch.randn(1, 3, 24, 56, 56, dtype=torch.float64, requires_grad=True)
    out = clips
    for key, module in net.stages.named_children():
        out = module(out)
        if key == stage:
            break
    t, h, w = (n // 2 for n in out.shape[2:])
    grad, = torch.autograd.grad(out[0, :, t, h, w].sum(), clips)
    touched = grad[0].abs().sum(0).nonzero()
    extent = touched.max(0).values - touched.min(0).values + 1
    assert all(0.6 * f <= e <= f for e, f in zip(extent.tolist(), field)), (extent, field)


def test_stage_maps_are_the_features():
    net, clips = create_backbone("tiny").eval(), torch.randn(2, 3, 8, 24, 24)
    maps = stage_maps(net, clips)
    assert list(maps) == [row.name for row in describe(net, 8, 24)]
    assert torch.equal(maps["block2"], net.features(clips)) and not maps["block2"].requires_grad


def test_half_precision_and_layout_keep_tinys_features():
    torch.manual_seed(0)
    net, clips = create_backbone("tiny"), torch.randn(4, 3, 8, 24, 24)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last_3d)
    moved = clips.to(memory_format=torch.channels_last_3d)
    for mode in (False, True):  # training mode moves the running means, so it comes last
        expected = net.train(mode)(clips)
        torch.testing.assert_close(other.train(mode)(moved), expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            halved = other(moved)
        assert halved.dtype == torch.bfloat16 and (halved.float() - expected).norm() < 0.02 * expected.norm()


def test_same_padding_keeps_the_layout():
    clips = torch.randn(2, 3, 7, 9, 9).to(memory_format=torch.channels_last_3d)
    assert SamePad((7, 7, 7), (2, 2, 2))(clips).is_contiguous(memory_format=torch.channels_last_3d)


def test_copies_and_checkpoints():
    net = create_backbone("tiny")
    twin, fresh = copy.deepcopy(net), create_backbone("tiny")
    fresh.load_state_dict(net.state_dict())
    clips = torch.randn(2, 3, 8, 24, 24)
    for other in (twin, fresh):
        assert isinstance(other, Backbone) and torch.equal(other.eval()(clips), net.eval()(clips))
