"""VICReg and Barlow Twins against closed forms and NumPy's statistics."""
import numpy as np
import pytest
import torch

from be_nb.methods.base import build_method
from be_nb.methods.vicreg import barlow, vicreg, VICReg
from be_nb.settings import PretrainConfig
from be_nb.training.step import as_batch


def embeddings(b=9, d=4, seed=0):
    z = torch.randn(2, b, d, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return z[0], z[0] * .7 + z[1]


def found(**knobs):
    config = PretrainConfig(method="vicreg", **dict(dim=8, hidden=16, frames=4, size=16) | knobs)
    method = build_method(config).train()
    clips = torch.randint(0, 256, (6, 1, 4, 3, 20, 20), generator=torch.Generator().manual_seed(1)).byte()
    return method, *method(as_batch({"clips": clips}, 0, config))


def test_the_terms_have_closed_forms():
    z, other = embeddings()
    loss, terms = vicreg(z, other)
    first, second = z.numpy(), other.numpy()
    tables = [np.cov(x, rowvar=False) for x in (first, second)]
    assert terms["invariance"].item() == pytest.approx(np.mean((first - second) ** 2))
    hinge = [np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4)).mean() for x in (first, second)]
    assert terms["variance"].item() == pytest.approx(np.mean(hinge))
    beside = [(table**2).sum() - (np.diag(table) ** 2).sum() for table in tables]
    assert terms["covariance"].item() == pytest.approx(sum(beside) / 4)
    weights = {"invariance": 25, "variance": 25, "covariance": 1}  # of the authors
    assert 25 * loss.item() == pytest.approx(sum(weights[name] * term.item() for name, term in terms.items()))


def test_white_embeddings_that_agree_cost_nothing_and_a_shift_changes_nothing():
    z = torch.linalg.qr(torch.cat([torch.ones(40, 1), torch.randn(40, 6, generator=torch.Generator().manual_seed(0))],
                                  1))[0][:, 1:].double() * 39**.5  # no mean, variance 1, no covariance
    assert vicreg(z, z)[0].item() == pytest.approx(0, abs=1e-6)
    assert barlow(z, z)[0].item() == pytest.approx(0, abs=1e-6)
    a, b = embeddings()
    moved = vicreg(a + 3, b - 2)[1]
    assert all(moved[name].item() == pytest.approx(vicreg(a, b)[1][name].item()) for name in ("variance", "covariance"))


def test_barlow_is_the_table_of_correlations():
    z, other = embeddings()
    table = np.corrcoef(z.numpy(), other.numpy(), rowvar=False)[:4, 4:]
    twins, beside = ((1 - np.diag(table)) ** 2).sum(), (table**2).sum() - (np.diag(table) ** 2).sum()
    loss, terms = barlow(z, other)
    assert 4 * loss.item() == pytest.approx(twins + .0051 * beside, rel=1e-3)
    assert 4 * terms["off_diagonal"].item() == pytest.approx(beside, rel=1e-3)
    assert barlow(z, 2 * z + 4)[0].item() == pytest.approx(barlow(z, z)[0].item(), abs=1e-4)  # each view by itself


@pytest.mark.parametrize("rule", ["vicreg", "barlow"])
def test_collapse_is_the_reference(rule):
    method, _, _ = found(rule=rule)
    same = torch.ones(5, 8) * 3
    loss = (vicreg if rule == "vicreg" else barlow)(same, same)[0].item()
    assert loss == pytest.approx(method.reference_loss(5), abs=1e-6) and loss > .9


@pytest.mark.parametrize("rule", ["vicreg", "barlow"])
@pytest.mark.parametrize("beta", [0., 2.])
def test_every_switch_learns(rule, beta):
    method, loss, metrics = found(rule=rule, beta=beta)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert ("be" in metrics) == (beta > 0)
    assert VICReg.passes(PretrainConfig(method="vicreg", beta=beta)) == 6 + 1.5 * beta
    plain = found(rule=rule)[1].item()
    assert loss.item() == pytest.approx(plain + beta * metrics.get("be", torch.zeros(())).item(), rel=1e-5)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="set a distractor"):
        PretrainConfig(method="vicreg", beta=1., distractor="none")
    method, _, _ = found()
    config = PretrainConfig(method="vicreg", frames=4, size=16)
    with pytest.raises(ValueError, match="two videos or more"):
        method(as_batch({"clips": torch.zeros(1, 1, 4, 3, 20, 20, dtype=torch.uint8)}, 0, config))
