"""MoCo against slow oracles: a deque, closed forms, one BatchNorm a device, and a step written with explicit lists."""
import copy
import io
import math
from collections import deque

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from be_nb.distractor import Distractor, VARIANTS
from be_nb.losses import unit
from be_nb.machine.device import shuffled
from be_nb.methods.base import Batch, build_method, projection, Views, Windows
from be_nb.methods.splitbn import split_batch_norm, split_method, SplitBatchNorm3d
from be_nb.moco import contrast, MoCo, momentum_update, MomentumEncoders, Queue
from be_nb.settings import PretrainConfig

quickly = settings(max_examples=40, deadline=None)


class Small(nn.Module):
    "A backbone with everything that matters here: weights, a bias, a BatchNorm, a mean over time and space."

    def __init__(self, feature_dim=6):
        super().__init__()
        self.feature_dim = feature_dim
        self.conv, self.bn = nn.Conv3d(3, feature_dim, 3, (1, 2, 2)), nn.BatchNorm3d(feature_dim)

    def forward(self, clips):
        return self.bn(self.conv(clips)).relu().mean((2, 3, 4))


class Brighten(nn.Module):
    "A random augmentation in double precision: uint8 (b, t, c, h, w) → (b, c, t, h, w)."

    def forward(self, clips, generator=None):
        return clips.transpose(1, 2).double() / 255 + torch.rand(len(clips), 1, 1, 1, 1, generator=generator).double()


class AsTheyAre(nn.Module):
    "No augmentation at all: any module will do."

    def forward(self, clips, generator=None):
        return clips


def make(seed=0, kind=MoCo, negative="intra_video", distractor=None, bn_groups=1, **options):
    torch.manual_seed(seed)
    views = Views(Brighten(), distractor, negative)
    method = kind(Small(), views=views, **dict(dim=5, queue_size=7, momentum=.9) | options).double()
    return split_method(method, bn_groups) if bn_groups > 1 else method


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def videos(batch=4, windows=2, seed=0):
    return torch.randint(0, 256, (batch, windows, 4, 3, 9, 9), generator=generator(seed)).byte()


def train_step(method, optimizer, clips, seed):
    loss, _ = method(Batch(clips, generator(seed)))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    method.after_step()
    return loss.item()


def learning(method):
    return [p for p in method.parameters() if p.requires_grad]


# The queue


@given(size=st.integers(1, 23), batches=st.lists(st.integers(0, 50), max_size=12))
@quickly
def test_queue_is_a_deque(size, batches):
    queue, number = Queue(2, size), 0
    oracle = deque(map(tuple, queue.keys.tolist()), maxlen=size)
    for batch in batches:
        keys = torch.arange(number, number + batch, dtype=torch.float32)[:, None].expand(-1, 2)
        number += batch
        queue.enqueue(keys)
        oracle.extend(map(tuple, keys.tolist()))
        assert 0 <= queue.pointer < size
        assert queue.keys.roll(-int(queue.pointer), 0).tolist() == [list(key) for key in oracle]


def test_queue_starts_with_unit_vectors():
    keys = Queue(16, 50).keys
    assert torch.allclose(keys.norm(dim=1), torch.ones(50))
    assert keys.unique(dim=0).shape == keys.shape


def test_queue_keeps_its_memory_its_type_and_no_graph():
    queue = Queue(3, 4)
    address = queue.keys.data_ptr()
    queue.enqueue(torch.randn(3, 3, dtype=torch.bfloat16, requires_grad=True) * 2)
    assert queue.keys.data_ptr() == address and queue.keys.dtype == torch.float32 and not queue.keys.requires_grad
    assert dict(queue.named_buffers()).keys() == queue.state_dict().keys() == {"keys", "pointer"}
    assert not list(queue.parameters())


def test_queue_survives_a_checkpoint_in_the_middle_of_a_lap():
    queue, other = Queue(3, 7), Queue(3, 7)
    queue.enqueue(torch.randn(5, 3))
    other.load_state_dict(queue.state_dict())
    keys = torch.randn(4, 3)
    queue.enqueue(keys), other.enqueue(keys)
    assert torch.equal(queue.keys, other.keys) and queue.pointer == other.pointer == 2


# The momentum encoder


@pytest.mark.parametrize("m", [0., .3, .9, .999, 1.])
def test_momentum_closed_form(m):
    torch.manual_seed(0)
    fast = Small().double()
    slow = copy.deepcopy(fast)
    paths = [[p.detach().clone()] for p in fast.parameters()]
    for _ in range(20):
        for parameter, path in zip(fast.parameters(), paths):
            parameter.data += torch.randn_like(parameter)
            path.append(parameter.detach().clone())
        momentum_update(slow, fast, m)
    for parameter, path in zip(slow.parameters(), paths):
        expected = m**20 * path[0] + (1 - m) * sum(m**(20 - j) * path[j] for j in range(1, 21))
        assert torch.allclose(parameter, expected, atol=1e-12)


def test_momentum_leaves_the_fast_network_and_all_buffers_alone():
    fast, slow = Small(), Small()
    fast(torch.randn(3, 3, 4, 9, 9))
    before, statistics = copy.deepcopy(fast.state_dict()), copy.deepcopy(dict(slow.named_buffers()))
    momentum_update(slow, fast, .5)
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert all(torch.equal(value, statistics[name]) for name, value in slow.named_buffers())


# BatchNorm in groups


@given(batch=st.integers(1, 9), groups=st.integers(1, 6), steps=st.integers(1, 3), seed=st.integers(0, 99))
@quickly
def test_split_batch_norm_is_one_layer_per_device(batch, groups, steps, seed):
    torch.manual_seed(seed)
    start = nn.BatchNorm3d(3).double()
    nn.init.normal_(start.weight), nn.init.normal_(start.bias)
    devices = [copy.deepcopy(start) for _ in range(min(groups, batch))]
    layer = split_batch_norm(start, groups)
    for _ in range(steps):
        x = torch.randn(batch, 3, 2, 2, 3).double().add(torch.randn(batch, 3, 1, 1, 1)).requires_grad_()
        sizes = [batch // len(devices) + (i < batch % len(devices)) for i in range(len(devices))]
        expected = torch.cat([device(part) for device, part in zip(devices, x.split(sizes))])
        found = layer(x)
        assert torch.allclose(found, expected, atol=1e-12)
        aim = torch.randn_like(x)
        got = torch.autograd.grad((found * aim).sum(), [x, layer.weight, layer.bias])
        weights, biases = [device.weight for device in devices], [device.bias for device in devices]
        want = torch.autograd.grad((expected * aim).sum(), [x, *weights, *biases])
        assert torch.allclose(got[0], want[0], atol=1e-10)
        assert torch.allclose(got[1], sum(want[1:1 + len(devices)]), atol=1e-10)
        assert torch.allclose(got[2], sum(want[1 + len(devices):]), atol=1e-10)
        # Every device starts a step from the same running statistics, as if their buffers were averaged after each.
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(device, name) for device in devices]).mean(0)
            assert torch.allclose(getattr(layer, name), mean, atol=1e-12)
            for device in devices:
                getattr(device, name).copy_(mean)
    assert layer.num_batches_tracked == steps
    assert torch.allclose(layer.eval()(x), devices[0].eval()(x), atol=1e-12)


def test_split_batch_norm_changes_nothing_but_the_normalisation():
    network = Small()
    parameters, state = list(network.parameters()), copy.deepcopy(network.state_dict())
    assert split_batch_norm(network, 2) is network and isinstance(network.bn, SplitBatchNorm3d)
    assert all(a is b for a, b in zip(network.parameters(), parameters))
    Small().load_state_dict(network.state_dict())                   # a plain network reads the checkpoint
    assert network.state_dict().keys() == state.keys()
    assert "groups" not in "".join(state)


def test_split_batch_norm_keeps_channels_last():
    layer = split_batch_norm(nn.BatchNorm3d(4), 2)
    x = torch.randn(5, 4, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_clip_hears_of_its_group_only():
    torch.manual_seed(0)
    network, clips = split_batch_norm(Small(), 3), torch.randn(7, 3, 4, 9, 9)
    changed = clips.clone()
    changed[3] = 5.                                                  # groups: 0 1 2, 3 4, 5 6
    moved = (network(changed) - network(clips)).abs().amax(1) > 1e-6
    assert moved.tolist() == [False, False, False, True, True, False, False]


@pytest.mark.parametrize("layer", [nn.BatchNorm3d(2, track_running_stats=False), nn.BatchNorm3d(2, momentum=None)])
def test_batch_norm_without_running_average_is_refused(layer):
    with pytest.raises(ValueError, match="running average"):
        split_batch_norm(nn.Sequential(layer), 2)


@given(batch=st.integers(1, 12), seed=st.integers(0, 1000))
@quickly
def test_order_is_restored_after_shuffling(batch, seed):
    numbers = torch.arange(batch)[:, None]
    drawn = lambda: Batch(numbers, generator(seed))
    assert torch.equal(shuffled(lambda x: x, numbers, drawn()), numbers)
    order = torch.randperm(batch, generator=generator(seed))         # what the encoder saw, and where it went
    place = shuffled(lambda x: torch.arange(batch)[:, None], numbers, drawn())
    assert torch.equal(order[place[:, 0]], numbers[:, 0])


def test_shuffled_keys_belong_to_their_clips():
    encoders = split_method(MomentumEncoders(Small(), 5, 8, .9, "linear"), 2).train()
    clips, order = torch.randn(6, 3, 4, 9, 9), torch.randperm(6, generator=generator(1)).tolist()
    keys = encoders.embed_keys(clips, Batch(clips, generator(1)))
    by_hand = [None] * 6
    for group in (order[:3], order[3:]):                             # each group alone through an unsplit copy
        plain = Small()
        plain.load_state_dict(encoders.key_backbone.state_dict())
        for place, key in zip(group, encoders.key_head(plain(clips[group]))):
            by_hand[place] = key / key.norm()
    assert torch.allclose(keys, torch.stack(by_hand), atol=1e-5)
    encoders.eval()                                                  # no neighbours: the shuffle changes nothing
    in_order = unit(encoders.key_head(encoders.key_backbone(clips)))
    assert torch.allclose(encoders.embed_keys(clips, Batch(clips)), in_order, atol=1e-6)


# The whole step, against explicit lists in double precision


class Reference:
    "MoCo + BE word for word: loops over queries and candidates, a Python list as queue, SGD and momentum by hand."

    def __init__(self, method, lr):
        self.net = nn.Sequential(copy.deepcopy(method.backbone), copy.deepcopy(method.head))
        self.slow = nn.Sequential(copy.deepcopy(method.key_backbone), copy.deepcopy(method.key_head))
        self.queue = [key.clone() for key in method.queue.keys]
        self.method, self.lr = method, lr

    def step(self, clips, draw):
        normal = lambda rows: [row / (row * row).sum().sqrt() for row in rows]
        augment, distract, negative = self.method.views.augment, self.method.views.distractor, self.method.views.kind
        windows = [video[0] for video in clips]
        queries = normal(self.net(distract(augment(torch.stack(windows), draw), draw)))
        keys = [key.detach() for key in normal(self.slow(augment(torch.stack(windows), draw)))]
        negatives = [[] for _ in clips]
        if negative != "none":
            same_video = negative == "intra_video"
            others = [video[1] for video in clips] if same_video else [windows[-1], *windows[:-1]]
            negatives = [[n] for n in normal(self.net(augment(torch.stack(others), draw)))]
        losses = []
        for query, key, extra in zip(queries, keys, negatives):
            weights = [((query * c).sum() / self.method.temperature).exp() for c in [key, *self.queue, *extra]]
            losses.append(-(weights[0] / sum(weights)).log())
        loss = sum(losses) / len(losses)
        self.gradients = torch.autograd.grad(loss, list(self.net.parameters()))
        with torch.no_grad():
            for p, s, gradient in zip(self.net.parameters(), self.slow.parameters(), self.gradients):
                p -= self.lr * gradient
                s *= self.method.momentum
                s += (1 - self.method.momentum) * p
        for key in keys:
            self.queue = self.queue[1:] + [key]
        return loss.item()


@pytest.mark.parametrize("negative", ["intra_video", "other_video", "none"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("variant", ["intra_frame", "none"])
def test_three_steps_equal_the_reference(negative, head, variant):
    method = make(negative=negative, head=head, distractor=Distractor(variant))
    reference, optimizer = Reference(method, lr=.1), torch.optim.SGD(learning(method), lr=.1)
    for step, batch in enumerate((4, 3, 5)):                         # ragged, and the queue of 7 wraps
        clips = videos(batch, seed=step)
        expected = reference.step(clips, generator(step))
        assert math.isclose(train_step(method, optimizer, clips, step), expected, rel_tol=1e-9)
        for parameter, gradient in zip(learning(method), reference.gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-9)
    in_order = method.queue.keys.roll(-int(method.queue.pointer), 0)
    assert torch.allclose(in_order, torch.stack(reference.queue), atol=1e-9)
    for ours, theirs in ((method.backbone, reference.net[0]), (method.head, reference.net[1]),
                         (method.key_backbone, reference.slow[0]), (method.key_head, reference.slow[1])):
        for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.allclose(value, other, atol=1e-9), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_distractor_is_one_setting_of_a_step(variant):
    method = build_method(PretrainConfig(distractor=variant, queue_size=8, frames=4, size=16, batch_size=4, amp="fp32"))
    assert method.views.distractor.variant == variant
    before = copy.deepcopy(method.state_dict())
    loss = train_step(method, torch.optim.SGD(learning(method), lr=.1), videos(), 0)
    assert math.isfinite(loss) and method.queue.pointer == 4
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    weights = [f"backbone.{name}" for name, _ in method.backbone.named_parameters() if name.endswith("weight")]
    assert weights and {"queue.keys", "queue.pointer", *weights} <= moved


def test_the_query_of_a_step_is_the_formula():
    method, seen = make(distractor=Distractor("intra_frame", gamma=.3)), []
    method.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    clips = videos()
    method(Batch(clips, generator(5)))
    g = generator(5)
    x = method.views.augment(clips[:, 0], g)
    draw = method.views.distractor.sample(x, g)
    for query, clip, lam, k in zip(seen[0], x, draw.lam.double(), draw.frame.tolist()):
        for t in range(clip.shape[1]):
            assert torch.allclose(query[:, t], (1 - lam) * clip[:, t] + lam * clip[:, k], atol=1e-6)
    unmixed = method.views.augment(clips[:, 1], _after_key(method.views, clips))
    assert torch.equal(seen[1], unmixed)  # and the negative is not mixed


def _after_key(views, clips):
    "The generator as the step has it when it comes to the negative: after query, distractor and key."
    g = generator(5)
    views.distractor(views.augment(clips[:, 0], g), g)
    views.augment(clips[:, 0], g)
    return g


# Gradients


def test_no_gradient_reaches_keys_or_queue():
    method = make()
    key_side = [*method.key_backbone.parameters(), *method.key_head.parameters()]
    assert not any(p.requires_grad for p in key_side)
    loss, metrics = method(Batch(videos()))
    assert not method.seen[1].requires_grad and not method.queue.keys.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
    loss.backward()
    assert all(p.grad is None for p in key_side) and all(p.grad is not None for p in learning(method))


def test_keys_and_queue_get_no_gradient_even_if_they_ask():
    q, k, queue, n = (unit(torch.randn(*s)).requires_grad_() for s in ((4, 5), (4, 5), (7, 5), (4, 5)))
    contrast(q, k, queue, n[:, None], .07)[0].backward()
    assert k.grad is None and queue.grad is None and q.grad.any() and n.grad.any()


def test_intra_video_negative_has_gradient(monkeypatch):
    method, embeddings = make(), []
    embed = method.embed

    def record(clips):
        embeddings.append(embed(clips))
        embeddings[-1].retain_grad()
        return embeddings[-1]

    monkeypatch.setattr(method, "embed", record)
    method(Batch(videos()))[0].backward()
    query, negative = embeddings                                     # dL/dn = p_n · q / T, of a mean over the batch
    logits = torch.cat([(query * method.seen[1]).sum(1, keepdim=True), query @ method.queue.keys.T,
                        (query * negative).sum(1, keepdim=True)], dim=1) / .07
    expected = logits.softmax(1)[:, -1:] * query / .07 / len(query)
    assert torch.allclose(negative.grad, expected, atol=1e-10) and negative.grad.any()


def test_the_negative_reaches_the_weights():
    class Detached(MoCo):
        calls = 0

        def embed(self, clips):
            self.calls += 1
            return super().embed(clips) if self.calls == 1 else super().embed(clips).detach()

    gradients = []
    for kind in (MoCo, Detached):
        method = make(kind=kind)
        method(Batch(videos(), generator()))[0].backward()
        gradients.append(method.backbone.conv.weight.grad)
    assert not torch.allclose(*gradients, rtol=1e-3)


# What a run needs


@pytest.mark.parametrize("bn_groups", [1, 2])
@pytest.mark.parametrize("negative", ["intra_video", "none"])
def test_resume_is_bit_equal(bn_groups, negative):
    method = make(0, bn_groups=bn_groups, negative=negative)
    optimizer = torch.optim.AdamW(learning(method), lr=.01)
    for step in range(5):
        train_step(method, optimizer, videos(seed=step), step)
    file = io.BytesIO()
    torch.save({"method": method.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh = make(99, bn_groups=bn_groups, negative=negative)
    fresh_optimizer = torch.optim.AdamW(learning(fresh), lr=.01)
    fresh.load_state_dict(state["method"])
    fresh_optimizer.load_state_dict(state["optimizer"])
    for step in range(5, 8):
        assert train_step(fresh, fresh_optimizer, videos(seed=step), step) == \
            train_step(method, optimizer, videos(seed=step), step)
    for name, value in method.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_a_step_depends_on_its_generator_alone():
    method = make(bn_groups=2)
    state = copy.deepcopy(method.state_dict())
    losses = []
    for seed, noise in ((3, 0), (3, 1), (4, 1)):
        method.load_state_dict(state)
        torch.manual_seed(noise)
        losses.append(method(Batch(videos(), generator(seed)))[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_the_callers_backbone_is_the_one_that_learns():
    backbone = Small()
    method = MoCo(backbone, dim=4, queue_size=8)
    assert method.backbone is backbone and method.key_backbone is not backbone
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), method.key_backbone.parameters()))


@pytest.mark.parametrize("negative, candidates", [("intra_video", 9), ("other_video", 9), ("none", 8)])
def test_reference_loss_is_that_of_equal_candidates(negative, candidates):
    method = make(negative=negative)
    assert math.isclose(method.reference_loss(4), math.log(candidates))
    same = unit(torch.ones(4, 5))
    extra = None if negative == "none" else same[:, None]
    loss, metrics = contrast(same, same, same[:1].expand(7, -1), extra, .07)
    assert math.isclose(loss, method.reference_loss(4), rel_tol=1e-5)
    assert all(math.isclose(metrics[name], 1, rel_tol=1e-5) for name in metrics.keys() - {"accuracy"})


def test_metrics_are_mean_cosines():
    q, k, queue, n = (unit(torch.randn(*s)) for s in ((4, 5), (4, 5), (7, 5), (4, 5)))
    metrics = contrast(q, k, queue, n[:, None], .07)[1]
    assert torch.allclose(metrics["positive"], (q * k).sum(1).mean(), atol=1e-6)
    assert torch.allclose(metrics["queue"], (q @ queue.T).mean(), atol=1e-6)
    assert torch.allclose(metrics["extra_negative"], (q * n).sum(1).mean(), atol=1e-6)
    assert contrast(k, k, queue * .1, None, .07)[1]["accuracy"] == 1
    assert "extra_negative" not in contrast(q, k, queue, None, .07)[1]


def test_windows_by_role():
    clips = videos(3)
    found = {kind: Views(AsTheyAre(), None, kind) for kind in ("intra_video", "other_video", "none")}
    for views in found.values():
        assert torch.equal(views.clean(Batch(clips)), clips[:, 0])
    assert torch.equal(found["intra_video"].negative(Batch(clips)), clips[:, 1])
    assert torch.equal(found["other_video"].negative(Batch(clips)), clips[[2, 0, 1], 0])  # never the video itself
    assert found["none"].negative(Batch(clips)) is None
    assert {name: MoCo.windows(PretrainConfig(negative=name, negative_offset=6)) for name in found} == \
        {"intra_video": Windows(2, apart=6), "other_video": Windows(), "none": Windows()}


@pytest.mark.parametrize("kind", ["intra_video", "other_video"])
@pytest.mark.parametrize("joint", [False, True])
def test_several_negatives_are_several_columns(kind, joint):
    """Against one candidate at a time; the windows, or other videos, in their order."""
    views = Views(AsTheyAre(), None, kind, negatives=3)
    clips = videos(5, windows=4)
    others = views.negative(Batch(clips)).unflatten(0, (3, 5))
    expected = clips[:, 1:].transpose(0, 1) if kind == "intra_video" else [clips[:, 0].roll(k, 0) for k in (1, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(others, expected, strict=True))
    method = split_method(make(negative=kind), 1, joint).eval()
    method.views.negatives = 3
    query, extra = method.embed_two(*(torch.randn(n, 3, 4, 9, 9).double() for n in (2, 6)))
    assert extra.shape == (2, 3, 5) and method.reference_loss(2) == math.log(1 + 7 + 3)
    loss, found = contrast(query, query, method.queue.keys, extra, .5)
    scores = [[1, *(method.queue.keys @ q), *(n @ q for n in ns)] for q, ns in zip(query, extra)]
    losses = [math.log(sum(math.exp(s / .5) for s in row)) - 2 for row in scores]
    assert math.isclose(loss, sum(losses) / 2, rel_tol=1e-6)
    assert math.isclose(found["extra_negative"], sum(sum(row[8:]) for row in scores) / 6, rel_tol=1e-6)


@pytest.mark.parametrize("method", ["moco", "fame"])
def test_several_negatives_of_none_are_refused(method):
    with pytest.raises(ValueError, match="negatives=3 counts what negative='none' leaves out"):
        PretrainConfig(method=method, negatives=3, negative="none")
    assert PretrainConfig(method=method, negatives=3, negative="other_video").negatives == 3
    assert PretrainConfig(method=method, negative="none").negatives == 1


def test_several_negatives_join_in_their_roles():
    """In one pass with its negatives or alone: BatchNorm normalises the queries by themselves."""
    config = PretrainConfig(negatives=2, queue_size=8, frames=4, size=16, dim=8)
    assert MoCo.windows(config) == Windows(3, apart=4) and MoCo.passes(config) == 10
    together = split_method(build_method(config).train(), 1, joint=True)
    apart = build_method(config).train()
    clips = [torch.randn(n, 3, 4, 16, 16, generator=generator(n)) for n in (3, 6)]
    found = [method.embed_two(*clips)[0] for method in (together, apart)]
    assert torch.allclose(*found, atol=1e-5)
    with pytest.raises(ValueError, match="needs 3 or more"):
        Views(AsTheyAre(), None, "other_video", negatives=2).negative(Batch(videos(2)))


def test_embeddings_have_length_one_and_full_precision_under_autocast():
    method = make().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = method.embed(torch.randn(3, 3, 4, 9, 9))
        keys = method.embed_keys(torch.randn(3, 3, 4, 9, 9), Batch(videos(3)))
    for vectors in (embeddings, keys):
        assert vectors.dtype == torch.float32
        assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize("mistake, says", [
    (lambda: Queue(0, 4), "at least 1"),
    (lambda: Queue(4, 4).enqueue(torch.randn(2, 3)), r"length 4; got a tensor \(2, 3\)"),
    (lambda: split_batch_norm(Small(), 0), "1 group or more"),
    (lambda: projection("mlpp", 4, 4), "Did you mean mlp"),
    (lambda: make(negative="intra-video"), "Did you mean intra_video"),
    (lambda: make(momentum=1.5), r"\[0, 1\]"),
    (lambda: make(temperature=0)(Batch(videos())), "temperature"),
    (lambda: make()(Batch(videos(windows=1))), "windows=2"),
    (lambda: make()(Batch(videos()[:, 0])), r"\(b, windows, t, c, h, w\)"),
    (lambda: make(negative="other_video")(Batch(videos(batch=1))), "2 or more"),
])
def test_mistakes_are_refused_with_advice(mistake, says):
    with pytest.raises(ValueError, match=says):
        mistake()


def test_after_step_wants_a_forward_first():
    method = make()
    with pytest.raises(RuntimeError, match="forward"):
        method.after_step()
    method(Batch(videos()))
    method.after_step()
    with pytest.raises(RuntimeError, match="forward"):
        method.after_step()
    assert method.queue.pointer == 4
