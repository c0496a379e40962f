"""One contract for all methods, plain and with Background Erasing: what trainer, recipes and course rely on."""
import functools
import io
import json

import pytest
import torch
from conftest import ROOT
from ranks import joined, on_ranks

from be_nb.config import annotations, override
from be_nb.data.sources import build_loader, build_source
from be_nb.machine.device import unwrap, world_size
from be_nb.machine.distributed import wrap
from be_nb.methods import find_method, METHODS, SHARED
from be_nb.methods.base import build_method
from be_nb.methods.splitbn import split_method
from be_nb.moco import EncoderPair
from be_nb.recipes import list_recipes, recipe
from be_nb.settings import NEUTRAL, pretrain_config, PretrainConfig
from be_nb.train import pretrain
from be_nb.training.step import as_batch, build_optimizer, train_step

SIZES = dict(data_size=8, batch_size=4, frames=4, size=16, warmup_steps=0, schedule="constant", device="cpu",
             amp="fp32")
OWN = dict(dim=8, queue_size=8, gap=1)  # small, for methods that have these knobs
ARMS = [(name, erasing) for name in METHODS for erasing in (False, True)]
each_method = pytest.mark.parametrize("name", METHODS)
each_arm = pytest.mark.parametrize("name, erasing", ARMS, ids=[name + "-be" * erasing for name, erasing in ARMS])


def small(name, erasing, **changes):
    "A tiny run of a method: plain, or with all of Background Erasing that it makes use of."
    known = annotations(pretrain_config(name))
    plain = {key: NEUTRAL[key] for key in ("distractor", "negative") if key in find_method(name).uses}
    own = {key: value for key, value in OWN.items() if key in known}
    return PretrainConfig(method=name, **SIZES | own | ({} if erasing else plain) | changes)


def test_shared_knobs_are_those_that_can_be_idle():
    assert set(SHARED) == set(NEUTRAL)


@functools.cache
def loaded(config):
    "The first batch of a run, as the loader gives it: a rank's share where there are several."
    return next(iter(build_loader(config, find_method(config.method).windows(config), build_source(config))))


def learning(method):
    return {key: p for key, p in method.named_parameters() if p.requires_grad}


def loss_of(method, config, step=0):
    batch = as_batch(loaded(config), step, config)
    torch.manual_seed(step)  # of dropout
    return method(batch)


def tell_nothing_apart(method):
    "Make every feature zero and every output of a head the same, for keys and queries alike."
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.zero_()
        for head in (method.head, getattr(method, "key_head", method.head)):
            list(head.parameters())[-1].fill_(1.)  # the bias of the last layer
    return method


# The loss


@each_arm
def test_reference_loss_is_that_of_a_network_whose_features_are_constant(name, erasing):
    config = small(name, erasing)
    method = tell_nothing_apart(build_method(config).train())
    for step in range(3):  # a queue of 8 has forgotten its random start after two batches of 4
        loss, metrics = loss_of(method, config, step)
        method.after_step()
    assert loss.item() == pytest.approx(method.reference_loss(config.batch_size), rel=1e-5)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


@each_arm
def test_the_first_loss_is_finite_and_near_the_reference(name, erasing):
    """A fresh network says hardly anything: logits of a new classifier differ by some tenths, cosines by hundredths.

    Noise of standard deviation s on equal logits costs about s² / 2, and a hundredth of a cosine is 0.14 of a logit at
    T = 0.07. Only after two batches: keys of a queue that still holds its random start are easy to tell apart. The mean
    of four seeds, for with four clips in eight dimensions a single one may be off by 1.
    """
    losses = []
    for seed in range(4):
        config = small(name, erasing, seed=seed)
        method = build_method(config).train()
        for step in range(3):
            loss, metrics = loss_of(method, config, step)
            assert all(value.detach().isfinite() for value in (loss, *metrics.values()))
            method.after_step()
        losses.append(loss.item() - method.reference_loss(config.batch_size))
    assert abs(sum(losses) / 4) < 0.6


@each_method
def test_an_eraser_that_adds_nothing_is_the_plain_method(name):
    "λ = 0 and no negative of the same video: the same losses, bit for bit, for the same numbers are drawn."
    none = {"negative": "none"} if "negative" in find_method(name).uses else {}
    losses = [loss_of(build_method(config).train(), config)[0]
              for config in (small(name, False), small(name, True, gamma=0.0, **none))]
    assert torch.equal(*losses)


# What learns


@each_arm
def test_what_learns_gets_a_gradient_and_nothing_else_does(name, erasing):
    config = small(name, erasing)
    method = build_method(config).train()
    loss_of(method, config)[0].backward()
    found = {key for key, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert found == set(learning(method))
    assert {key for key in found if key.startswith("backbone.")}, "the backbone does not learn"
    in_optimizer = [p for group in build_optimizer(config, method).param_groups for p in group["params"]]
    assert {id(p) for p in in_optimizer} == {id(p) for p in learning(method).values()}


# What a run needs


@each_arm
def test_a_state_goes_round_bit_for_bit(name, erasing):
    config, fresh = small(name, erasing), small(name, erasing, seed=7)
    found, file = loaded(config), io.BytesIO()
    method, other = build_method(config).train(), build_method(fresh).train()
    optimizer, others = build_optimizer(config, method), build_optimizer(config, other)
    for step in range(2):
        train_step(method, found, optimizer, step, config)
    torch.save([method.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state[0]), others.load_state_dict(state[1])
    losses = [train_step(m, found, o, 2, config)["loss"] for m, o in ((method, optimizer), (other, others))]
    assert torch.equal(*losses)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())


@each_arm
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, erasing, tmp_path):
    config = small(name, erasing, steps=4, checkpoint_every=2, log_every=1, out=str(tmp_path), checks=False)
    straight = pretrain(config, progress=False)
    rows, state = straight.history, torch.load(straight.checkpoint, weights_only=True)
    straight.checkpoint.unlink()  # as if it had been killed after the checkpoint of step 2
    resumed = pretrain(config, resume=True, progress=False)
    again = torch.load(resumed.checkpoint, weights_only=True)
    assert (state["step"], again["step"]) == (4, 4)
    assert all(torch.equal(value, again["method"][key]) for key, value in state["method"].items())
    fast = {"clips_per_second"}
    assert [{k: v for k, v in row.items() if k not in fast} for row in rows] == \
        [{k: v for k, v in row.items() if k not in fast} for row in resumed.history]


def one_step(name, erasing, parts):
    """Loss, gradients and state after a step whose batch is cut into parts.

    Running statistics are left out: two parts move them twice, two ranks once.
    """
    config = small(name, erasing, accumulate=parts, optimizer="sgd", lr=0.1)
    method, found = build_method(config).train(), loaded(config)
    if isinstance(method, EncoderPair):  # two ranks shuffle the keys: so must one, and no clip may hear of another
        split_method(method, 2 // world_size())
        for layer in method.modules():
            if isinstance(layer, torch.nn.BatchNorm3d):
                layer.eval()
    loss = train_step(wrap(method), found, build_optimizer(config, method), 3, config)["loss"]
    gradients = {key: p.grad.numpy() for key, p in learning(unwrap(method)).items()}
    return loss.item(), gradients, {
        key: value.numpy() for key, value in method.state_dict().items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))}


def test_one_rank_with_two_parts_is_two_ranks(tmp_path):
    def all_arms():
        loaded.cache_clear()
        return {arm: one_step(*arm, 1) for arm in ARMS}

    for rank, found in enumerate(on_ranks(2, joined(all_arms), tmp_path)):
        for arm in ARMS:
            loss, gradients, state = one_step(*arm, 2)
            assert found[arm][0] == pytest.approx(loss, rel=1e-5), (rank, arm)
            for ours, theirs in ((gradients, found[arm][1]), (state, found[arm][2])):
                assert ours and ours.keys() == theirs.keys()
                for key, value in ours.items():
                    assert torch.allclose(torch.tensor(value), torch.tensor(theirs[key]), atol=1e-5), (rank, arm, key)


# What reaches the network


def watched(config):
    "One forward pass; the clips that reached a backbone, and whether they were to learn."
    method, seen = build_method(config).train(), []
    for key, network in method.named_modules():  # a method may hold another one
        if key.endswith("backbone"):
            network.stages[0].register_forward_hook(  # a network may leave out a part of what comes behind it
                lambda _, inputs, out: seen.append((inputs[0].shape, out.requires_grad)))
    loss_of(method, config)
    return seen


@each_arm
def test_the_backbone_sees_clips_of_the_size_that_the_config_names(name, erasing):
    config = small(name, erasing)
    shapes = {tuple(shape[1:]) for shape, _ in watched(config)}
    if name == "puzzles":  # boxes cut out of the picture: three quarters of half of its side
        config = override(config, size=6)
    assert shapes == {(3, config.frames, config.size, config.size)}


@each_arm
def test_passes_are_those_that_are_counted(name, erasing):
    "In pixels of a clip `frames` × `size`²: 3 where there is a gradient, 1 where there is none."
    if name == "videomae":
        pytest.skip("what is hidden costs nothing: tests/test_videomae.py counts with PyTorch's counter")
    config = small(name, erasing)
    work = sum((3 if learns else 1) * shape[0] * shape[2:].numel() for shape, learns in watched(config))
    one = config.batch_size * config.frames * config.size**2
    assert find_method(name).passes(config) == pytest.approx(work / one)


# Knobs, recipes, lessons


OTHER = {"distractor": "inter_frame", "gamma": 0.1, "negative": "other_video", "negative_offset": 9}


@each_method
@pytest.mark.parametrize("key", OTHER)
def test_a_shared_knob_works_or_is_refused(name, key):
    if key in find_method(name).uses:
        assert getattr(small(name, True, **{key: OTHER[key]}), key) == OTHER[key]
        return
    with pytest.raises(ValueError, match=f"makes no use of {key}"):
        small(name, True, **{key: OTHER[key]})


@each_method
def test_no_own_knob_hides_a_shared_one(name):
    assert not set(annotations(find_method(name).Settings)) & set(annotations(PretrainConfig))


@each_method
def test_a_knob_of_another_method_is_refused(name):
    known = annotations(pretrain_config(name))
    foreign = sorted({key for other in METHODS for key in annotations(find_method(other).Settings)} - set(known))
    for key in foreign:
        with pytest.raises(ValueError, match=key):
            small(name, True, **{key: 1})
    with pytest.raises(ValueError, match=foreign[0]):
        override(small(name, True), **{foreign[0]: 1})


@each_method
def test_there_is_a_recipe_for_each_arm(name):
    method, plain, erasing = find_method(name), f"scenebias-{name}", f"scenebias-{name}-be"
    erasing = {"scenebias-moco-be": "scenebias-be"}.get(erasing, erasing)
    assert {plain, erasing} <= set(list_recipes()) and method.title and method.paper
    plain, erasing = recipe(plain), recipe(erasing)
    assert plain.method == erasing.method == name
    for key in ("distractor", "negative"):
        assert getattr(plain, key) == "none"
        assert (getattr(erasing, key) != "none") == (key in method.uses)


@each_method
def test_there_is_a_lesson(name):
    module = METHODS[name].split(":")[0].removeprefix("be_nb.")
    first = [json.loads(path.read_text(encoding="utf8"))["cells"] for path in (ROOT / "nbs").rglob("[!.]*.ipynb")]
    assert [True for cells in first for cell in cells if "".join(cell["source"]).strip() == f"#| default_exp {module}"]
