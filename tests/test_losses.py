"""Losses against float64 loops, finite differences and the properties that a training run leans on."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from be_nb.losses import be_consistency, info_nce, info_nce_logits, triplet


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def unit(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist()))


def slow_logits(query, key, queue, extra, temperature):
    "The definition, number by number, in Python's own floats."
    rows = []
    for i in range(len(query)):
        candidates = [key[i], *queue, *(extra[i] if extra is not None else ())]
        rows.append([dot(query[i], candidate) / temperature for candidate in candidates])
    return rows


def slow_info_nce(rows):
    return sum(math.log(sum(math.exp(x - row[0]) for x in row)) for row in rows) / len(rows)


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 5), d=st.integers(1, 9), size=st.integers(0, 12), n=st.integers(0, 3),
       temperature=st.sampled_from([0.02, 0.07, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_logits_match_the_loop(b, d, size, n, temperature, seed):
    extra = unit(b, n, d, seed=seed + 3) if n else None
    tensors = unit(b, d, seed=seed), unit(b, d, seed=seed + 1), unit(size, d, seed=seed + 2), extra
    expected = slow_logits(*tensors, temperature)
    logits = info_nce_logits(*tensors, temperature)
    assert logits.dtype == torch.float32 and logits.shape == (b, 1 + size + n)
    torch.testing.assert_close(logits, torch.tensor(expected).float(), atol=2e-6 / temperature, rtol=1e-5)
    assert math.isclose(info_nce(*tensors, temperature).item(), slow_info_nce(expected), rel_tol=1e-4, abs_tol=1e-4)


def test_float64_stays_float64():
    tensors = [unit(n, 5, seed=n, dtype=torch.float64) for n in (3, 3, 7)]
    tensors[1] = -tensors[1].roll(1, 0)
    found = info_nce(*tensors)
    assert found.dtype == torch.float64
    assert math.isclose(found.item(), slow_info_nce(slow_logits(*tensors, None, 0.07)), rel_tol=1e-12)


def test_gradients_match_finite_differences():
    query, extra = unit(3, 4, dtype=torch.float64), unit(3, 2, 4, seed=1, dtype=torch.float64)
    key, queue = unit(3, 4, seed=2, dtype=torch.float64), unit(6, 4, seed=3, dtype=torch.float64)
    query.requires_grad_(), extra.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, e: info_nce(q, key, queue, e, 0.3), (query, extra))
    features = [torch.randn(2, 3, 2, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for pool in ("avg", "max"):
        assert torch.autograd.gradcheck(lambda o, d, pool=pool: be_consistency(o, d, pool), features)
    points = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    negatives = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, p, n: triplet(a, p, n, 5.0), (*points, negatives))


def test_key_and_queue_get_no_gradient_and_the_extra_negative_does():
    query, key, queue, extra = (x.requires_grad_() for x in (unit(4, 8), unit(4, 8, seed=1), unit(9, 8, seed=2),
                                                            unit(4, 1, 8, seed=3)))
    info_nce(query, key, queue, extra).backward()
    assert key.grad is None and queue.grad is None
    assert (query.grad.norm(dim=1) > 0).all() and (extra.grad.norm(dim=2) > 0).all()


def test_a_step_against_the_gradient_moves_towards_the_key_and_away_from_the_negative():
    query, key, extra = unit(6, 8).requires_grad_(), unit(6, 8, seed=1), unit(6, 1, 8, seed=2).requires_grad_()
    info_nce(query, key, unit(20, 8, seed=3), extra).backward()
    assert ((-query.grad * key).sum(1) > 0).all()
    push = F.normalize(extra.grad[:, 0], dim=1)                   # the negative is moved away from the query itself
    torch.testing.assert_close(push, query.detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [1, 63, 3569])
def test_reference_loss(size):
    "Embeddings that are all alike give exactly log(K + 1), whatever the temperature."
    one = unit(1, 16)
    for temperature in (0.07, 1.0):
        loss = info_nce(one.expand(5, -1), one.expand(5, -1), one.expand(size, -1), temperature=temperature)
        assert math.isclose(loss.item(), math.log(size + 1), abs_tol=1e-4)


@pytest.mark.parametrize("dim", [64, 128])
def test_random_embeddings_start_above_the_reference(dim):
    loss = info_nce(unit(256, dim), unit(256, dim, seed=1), unit(2048, dim, seed=2)).item()
    assert abs(loss - (math.log(2048) + 1 / (2 * dim * 0.07**2))) < 0.25


def test_perfect_and_hopeless_answers():
    query = torch.eye(4)
    assert info_nce(query, query, -query) < 1e-5
    assert math.isclose(info_nce(query, -query, query[:0], query[:, None]).item(), 2 / 0.07, rel_tol=1e-4)


def test_large_logits_do_not_overflow():
    query = unit(4, 8).requires_grad_()
    loss = info_nce(query, -query, query.detach(), temperature=1e-4)
    loss.backward()
    assert loss.isfinite() and query.grad.isfinite().all() and math.isclose(loss.item(), 2e4, rel_tol=1e-3)


def test_order_of_queue_and_batch_does_not_matter():
    query, key, queue, extra = unit(5, 8), unit(5, 8, seed=1), unit(30, 8, seed=2), unit(5, 2, 8, seed=3)
    loss = info_nce(query, key, queue, extra)
    shuffle = torch.randperm(30)
    torch.testing.assert_close(info_nce(query, key, queue[shuffle], extra), loss)
    torch.testing.assert_close(info_nce(query.flip(0), key.flip(0), queue, extra.flip(0)), loss)


def test_a_batch_of_one_works():
    assert info_nce_logits(unit(1, 8), unit(1, 8), unit(1, 8, seed=1), unit(1, 1, 8)).shape == (1, 3)
    assert info_nce(unit(1, 8), unit(1, 8), unit(1, 8, seed=1)).ndim == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    query, key, queue, extra = (x.to(dtype) for x in (unit(4, 32), unit(4, 32, seed=1), unit(50, 32, seed=2),
                                                     unit(4, 1, 32, seed=3)))
    maps = torch.randn(2, 2, 3, 4, 5, 5).to(dtype)
    calls = [lambda: info_nce_logits(query, key, queue, extra), lambda: info_nce(query, key, queue, extra),
             lambda: be_consistency(*maps), lambda: be_consistency(*maps, pool="max"),
             lambda: triplet(query, key, extra)]
    for call in calls:
        with torch.autocast("cpu", torch.bfloat16):
            inside = call()
        assert inside.dtype == torch.float32
        assert torch.equal(inside, call())


def test_bfloat16_inputs_lose_only_their_own_precision():
    tensors = unit(4, 32).bfloat16(), unit(4, 32, seed=1).bfloat16(), unit(50, 32, seed=2).bfloat16()
    assert torch.equal(info_nce_logits(*tensors), info_nce_logits(*(x.float() for x in tensors)))


def test_writing_the_queue_before_the_backward_pass_is_an_error():
    query, queue = unit(4, 8).requires_grad_(), unit(10, 8, seed=1)
    loss = info_nce(query, unit(4, 8, seed=2), queue)
    queue[:4] = unit(4, 8, seed=3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("changes, message", [
    (dict(query=unit(8)), "query must be"),
    (dict(query=unit(2, 4, 8)), "query must be"),
    (dict(key=unit(1, 8)), "key must have the shape of query"),
    (dict(key=unit(4, 9)), "key must have the shape of query"),
    (dict(queue=unit(8, 10)), r"queue must be \(K, 8\)"),
    (dict(queue=unit(8)), r"queue must be \(K, 8\)"),
    (dict(extra_negatives=unit(4, 8)), r"negative\[:, None\]"),
    (dict(extra_negatives=unit(1, 2, 8)), "extra_negatives must be"),
    (dict(extra_negatives=unit(4, 2, 7)), "extra_negatives must be"),
    (dict(temperature=0.0), "temperature must be above 0"),
    (dict(temperature=-1.0), "temperature must be above 0"),
    (dict(temperature=math.nan), "temperature must be above 0"),
])
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        info_nce(**(dict(query=unit(4, 8), key=unit(4, 8), queue=unit(10, 8)) | changes))


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_consistency_matches_the_loop(pool):
    original, distracted = torch.randn(2, 2, 3, 4, 3, 5).double()
    total = 0.0
    for b in range(2):
        for c in range(3):
            for t in range(4):
                cells = [original[b, c, t].flatten().tolist(), distracted[b, c, t].flatten().tolist()]
                psi = [sum(x) / len(x) if pool == "avg" else max(x) for x in cells]
                total += (psi[0] - psi[1]) ** 2
    assert math.isclose(be_consistency(original, distracted, pool).item(), total / 24, rel_tol=1e-12)


@settings(max_examples=20, deadline=None)
@given(pool=st.sampled_from(["avg", "max"]), seed=st.integers(0, 1000))
def test_consistency_forgets_place_and_keeps_time(pool, seed):
    generator = torch.Generator().manual_seed(seed)
    original, distracted = torch.randn(2, 2, 3, 4, 3, 3, generator=generator)
    loss = be_consistency(original, distracted, pool)
    place = torch.randperm(9, generator=generator)
    moved = distracted.flatten(3)[..., place].unflatten(3, (3, 3))
    torch.testing.assert_close(be_consistency(original, moved, pool), loss)
    torch.testing.assert_close(be_consistency(distracted, original, pool), loss)
    torch.testing.assert_close(be_consistency(original.flip(2), distracted.flip(2), pool), loss)
    assert not torch.isclose(be_consistency(original, distracted.flip(2), pool), loss, rtol=1e-4)
    assert be_consistency(original, original, pool) == 0


def test_consistency_pulls_both_sides_in_opposite_directions():
    original, distracted = (torch.randn(2, 3, 4, 3, 3, requires_grad=True) for _ in range(2))
    be_consistency(original, distracted).backward()
    torch.testing.assert_close(original.grad, -distracted.grad)
    assert original.grad.abs().sum() > 0


def test_consistency_refuses_what_it_cannot_compare():
    maps = torch.randn(2, 3, 4, 3, 3)
    for other in (maps[:, :, :2], maps[:1], maps[0], maps.mean((3, 4))):
        with pytest.raises(ValueError, match="of one shape"):
            be_consistency(maps, other)
    with pytest.raises(ValueError, match="pool must be avg or max"):
        be_consistency(maps, maps, "sum")


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_triplet_matches_torch_and_the_loop(margin):
    anchor, positive, negative = torch.randn(3, 7, 5).double()
    found = triplet(anchor, positive, negative, margin).item()
    loop = [max(0.0, math.dist(*pair) - math.dist(pair[0], n) + margin)
            for pair, n in zip(zip(anchor.tolist(), positive.tolist()), negative.tolist())]
    assert math.isclose(found, sum(loop) / 7, rel_tol=1e-4)
    if margin > 0:  # PyTorch's refuses 0
        official = torch.nn.TripletMarginLoss(margin=margin, p=2)(anchor, positive, negative)
        assert math.isclose(found, official.item(), rel_tol=1e-9)


def test_several_negatives_add_up():
    anchor, positive, first, second = torch.randn(4, 7, 5)
    both = triplet(anchor, positive, torch.stack([first, second], dim=1))
    torch.testing.assert_close(both, triplet(anchor, positive, first) + triplet(anchor, positive, second))
    assert triplet(anchor, positive, torch.randn(7, 0, 5)) == 0


def test_triplet_has_a_gradient_where_anchor_and_positive_coincide():
    anchor = unit(3, 4).requires_grad_()
    triplet(anchor, anchor.detach(), anchor.detach() + 0.01).backward()
    assert anchor.grad.isfinite().all()


def test_triplet_refuses_what_does_not_fit():
    a = unit(4, 8)
    for wrong in ((a, a[:1], a), (a, a, a[:1]), (a, a, unit(4, 2, 7)), (a, a, unit(4, 1, 2, 8)), (a[0], a[0], a[0])):
        with pytest.raises(ValueError, match="triplet needs"):
            triplet(*wrong)
