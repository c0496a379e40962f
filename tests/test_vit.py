"""The vision transformer against PyTorch's own layer, and what a set of tokens promises."""
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from be_nb.backbones import create_backbone
from be_nb.backbones.measure import describe, receptive_field
from be_nb.backbones.vit import Block, cut, positions, ViT


def uneven(network):
    "Norms and biases as after training, so that one in the wrong place shows."
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, .5, 1.5), nn.init.normal_(module.bias, std=.1)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=.1)
    return network.double().eval()


def pytorchs(block):
    "PyTorch's pre-norm layer with a block's weights. Its keys have a bias, here at random: it must not matter."
    width, ours = block.norm1.weight.numel(), block.attention
    theirs = nn.TransformerEncoderLayer(width, ours.heads, 4 * width, 0., "gelu", batch_first=True, norm_first=True)
    linear = (ours.query, ours.key, ours.value)
    theirs.self_attn.load_state_dict({
        "in_proj_weight": torch.cat([layer.weight for layer in linear]),
        "in_proj_bias": torch.cat([ours.query.bias, torch.randn(width).to(ours.query.bias), ours.value.bias]),
        "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias})
    for name, layer in {"norm1": block.norm1, "norm2": block.norm2, "linear1": block.mlp[0],
                        "linear2": block.mlp[2]}.items():
        getattr(theirs, name).load_state_dict(layer.state_dict())
    return theirs.double()


@pytest.mark.parametrize("training", [False, True])  # evaluation takes PyTorch's fused path
def test_a_block_is_pytorchs_layer(training):
    torch.manual_seed(0)
    block, tokens = uneven(Block(36, 3)), torch.randn(2, 11, 36, dtype=torch.double)
    theirs = pytorchs(block).train(training)
    with torch.no_grad():
        assert (block(tokens) - tokens).std() > .1
        torch.testing.assert_close(block(tokens), theirs(tokens))


def test_the_network_is_a_convolution_and_pytorchs_encoder():
    "Tubelets are what a convolution with kernel = stride sees; the rest is a stack of PyTorch's layers and a norm."
    torch.manual_seed(0)
    net = uneven(ViT(width=36, depth=3, head=12, tubelet=(2, 3, 4)))
    clips, linear = torch.randn(2, 3, 6, 9, 12, dtype=torch.double), net.stages.tubelets.linear
    weight = linear.weight.view(36, 3, 2, 3, 4)
    with torch.no_grad():
        tokens = nn.functional.conv3d(clips, weight, linear.bias, stride=(2, 3, 4)).flatten(2).transpose(1, 2)
        tokens = tokens + positions((3, 3, 3), 36)
        for name in ("block1", "block2", "block3"):
            tokens = pytorchs(net.stages.get_submodule(name)[0])(tokens)
        expected = net.stages.norm[0](tokens).transpose(1, 2).unflatten(2, (3, 3, 3))
        torch.testing.assert_close(net.features(clips), expected)


def test_tubelets_are_boxes():
    clips = torch.randn(2, 3, 5, 9, 13)
    boxes = cut(clips, (2, 4, 4))
    assert boxes.shape == (2, 2, 2, 3, 3, 32)
    for t, h, w in ((0, 0, 0), (1, 0, 2), (0, 1, 1)):
        box = clips[:, :, 2 * t:2 * t + 2, 4 * h:4 * h + 4, 4 * w:4 * w + 4]
        assert torch.equal(boxes[:, t, h, w], box.flatten(2))


def test_what_fills_no_tubelet_is_not_looked_at():
    torch.manual_seed(0)
    net, clips = ViT(width=24).eval(), torch.randn(1, 3, 9, 26, 27)
    assert net.features(clips).shape == (1, 24, 4, 6, 6) and torch.equal(net(clips), net(clips[:, :, :8, :24, :24]))


def test_positions_are_sines_and_cosines():
    grid, width = (2, 3, 4), 12
    found = positions(grid, width).view(*grid, width)
    for place in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        expected = [f(n / 10_000 ** (k / 2)) for n in place for f in (math.sin, math.cos) for k in range(2)]
        assert found[place].tolist() == pytest.approx(expected, abs=1e-5)
    larger = positions((5, 7, 4), width).view(5, 7, 4, width)
    assert torch.equal(larger[:2, :3], found), "the code of a place depends on the size of the clip"
    assert len(positions((8, 14, 14), 384).unique(dim=0)) == 8 * 14 * 14


@pytest.fixture
def shown_part():
    torch.manual_seed(0)
    net, clips = uneven(ViT(width=24, depth=2)), torch.randn(3, 3, 4, 12, 16, dtype=torch.double)
    return net, clips, torch.rand(3, 24).argsort(1)[:, :7]


def test_tokens_in_another_order_are_the_same(shown_part):
    net, clips, shown = shown_part
    order = torch.randperm(7)
    with torch.no_grad():
        torch.testing.assert_close(net.tokens(clips, shown)[:, order], net.tokens(clips, shown[:, order]))


def test_all_tokens_are_the_map(shown_part):
    net, clips, _ = shown_part
    with torch.no_grad():
        torch.testing.assert_close(net.tokens(clips, torch.arange(24).expand(3, -1)),
                                   net.features(clips).flatten(2).transpose(1, 2))
        assert not torch.allclose(net.tokens(clips, torch.arange(12).expand(3, -1)),
                                  net.features(clips).flatten(2)[:, :, :12].transpose(1, 2), atol=1e-3)


def test_hidden_tokens_are_nowhere(shown_part):
    "No gradient reaches a pixel of a token that is not shown, and one reaches every pixel of those that are."
    net, clips, shown = shown_part
    clips.requires_grad_()
    net.tokens(clips, shown)[:, 0].square().sum().backward()
    touched = cut(clips.grad != 0, net.tubelet).flatten(1, 3)  # (b, tokens, c, pixels)
    expected = torch.zeros(3, 24, dtype=torch.bool).scatter_(1, shown, True)
    assert torch.equal(touched.flatten(2).any(2), expected) and touched[expected].all()


def test_a_part_costs_a_part():
    with torch.device("meta"):
        net = create_backbone("vit")
    costs = []
    for count in (144, 36):
        with FlopCounterMode(display=False) as counter:
            net.tokens(torch.empty(1, 3, 8, 24, 24, device="meta"),
                       torch.zeros(1, count, dtype=torch.long, device="meta"))
        costs.append(counter.get_total_flops() / 2)
    whole, enter = describe(net, 8, 24), 144 * 96 * 72
    assert costs[0] == whole.macs and (costs[1] - enter) / (costs[0] - enter) < .22


def test_every_token_sees_everything():
    with torch.device("meta"):
        net = create_backbone("vit_base")
    fields = receptive_field(net)
    assert fields["tubelets"] == (2, 16, 16) and set(fields["block1"]) == set(fields["norm"]) == {math.inf}


def test_starts_as_glorot_and_bengio():
    torch.manual_seed(0)
    for layer in create_backbone("vit").modules():
        if isinstance(layer, nn.Linear):
            assert layer.bias is None or not layer.bias.any()
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / sum(layer.weight.shape)), rel=.05)


def test_narrow_is_another_transformer():
    torch.manual_seed(0)
    decoder = create_backbone("vit").narrow(48, 2)
    out = decoder(torch.randn(2, 5, 48))
    assert out.shape == (2, 5, 48) and sum(isinstance(m, Block) for m in decoder) == 2
    assert out.mean(2).abs().max() < 1e-5 and {m.attention.heads for m in decoder if isinstance(m, Block)} == {2}


@pytest.mark.parametrize("width, head", [(50, 10), (36, 8), (70, 10)])
def test_a_width_that_does_not_fit_is_named(width, head):
    with pytest.raises(ValueError, match=f"multiple of 6 and of a head's {head} numbers; got {width}"):
        ViT(width=width, head=head)
    with pytest.raises(ValueError, match="multiple of 6"):
        create_backbone("vit").narrow(40, 1)
