"""Inflated 2D networks against the 2D networks themselves."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

import be_nb
from be_nb.backbones import create_backbone
from be_nb.backbones.inflate import IMAGE, inflate


def trained(name):
    "A 2D network whose statistics look as if it had been trained."
    torch.manual_seed(0)
    flat = get_model(name, weights=None, num_classes=3).eval()
    for layer in flat.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, .2), layer.running_var.uniform_(.5, 2.)
            nn.init.uniform_(layer.weight, .5, 1.5), nn.init.normal_(layer.bias, 0, .1)
    return flat


def padded_by_frames(network):
    "A clip goes on before its first frame and after its last as it began and ended, not dark."
    def before(layer, inputs):
        return F.pad(inputs[0], (0, 0, 0, 0, layer.around, layer.around), mode="replicate")

    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.around, layer.padding = layer.padding[0], (0, *layer.padding[1:])
            layer.register_forward_pre_hook(before)
    return network


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_still_clip_is_a_picture(name):
    flat, frame = trained(name), torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(1))
    deep = padded_by_frames(inflate(create_backbone(IMAGE[name]), flat.state_dict()).eval())
    flat.fc = nn.Identity()
    with torch.no_grad():
        expected, found = flat(frame), deep(frame[:, :, None].expand(-1, -1, 5, -1, -1))
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max())


def test_a_file_of_a_2d_network_is_loaded(tmp_path):
    flat = trained("resnet18")
    torch.save(flat.state_dict(), tmp_path / "anything.pth")
    backbone = be_nb.load(tmp_path / "anything.pth")
    assert backbone.name == "r3d18" and not backbone.training
    assert backbone.pretrain_config["weights"] == "torchvision/resnet18, inflated"
    first = flat.state_dict()["conv1.weight"]
    assert torch.allclose(backbone.state_dict()["stages.conv1.conv.weight"].sum(2), first, atol=1e-6)


def test_other_networks_are_refused():
    state, deep = trained("resnet34").state_dict(), create_backbone("r3d18")
    before = {key: value.clone() for key, value in deep.state_dict().items()}
    with pytest.raises(ValueError, match="tensors"):
        inflate(deep, state)
    assert all(torch.equal(value, before[key]) for key, value in deep.state_dict().items())
