"""Losses: values by explicit solves, gradients by differences or their formulas, what they vanish at."""

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from layercompiler.derivatives.perturbation.losses import losses

ORACLE = lc.oracles.DagPath.grid(3, 3)
RNG = np.random.default_rng(0)
TRUE, PREDICTED = RNG.uniform(0.1, 1, (4, 12)), RNG.uniform(0.1, 1, (4, 12))
BEST = ORACLE(TRUE)
POOL = np.unique(ORACLE(RNG.uniform(0.1, 1, (20, 12))), axis=0)
CASES = {
    "spo_plus": (lc.losses.SPOPlus(), {"true": [TRUE]}),
    "fenchel_young": (lc.losses.FenchelYoung(iterations=3000), {"solution": [BEST]}),
    "perturbed_fenchel_young": (lc.losses.PerturbedFenchelYoung(samples=400, temperature=0.5), {"solution": [BEST]}),
    "nce": (lc.losses.NCE(), {"solution": [BEST], "pool": [POOL]}),
    "map_contrastive": (lc.losses.MAPContrastive(), {"solution": [BEST], "pool": [POOL]}),
}
LAYER = lc.compile(ORACLE, estimator=lc.Identity())


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_values(name):
    loss, targets = CASES[name]
    value, (gradient,) = LAYER.loss(loss, [PREDICTED], targets, seed=1)
    way = np.random.default_rng(1).standard_normal(PREDICTED.shape)
    h = 1e-4 if name == "fenchel_young" else 1e-7
    ahead, behind = (LAYER.loss(loss, [PREDICTED + s * h * way], targets, seed=1)[0] for s in (1, -1))
    tolerance = 5e-2 if name == "fenchel_young" else 1e-6  # Frank-Wolfe is exact to about 1 / iterations
    np.testing.assert_allclose((ahead - behind) / (2 * h), (gradient * way).sum(1), atol=tolerance)
    assert value.shape == (4,)


def test_values_by_explicit_solves():
    spo = LAYER.loss(lc.losses.SPOPlus(), [PREDICTED], {"true": [TRUE]})[0]
    z = ORACLE(2 * PREDICTED - TRUE)
    np.testing.assert_allclose(spo, (-(2 * PREDICTED - TRUE) * z + 2 * PREDICTED * BEST - TRUE * BEST).sum(1), atol=1e-12)
    same = LAYER.loss(lc.losses.SPOPlus(), [PREDICTED], {"true": [TRUE], "solution": [BEST]})[0]
    np.testing.assert_array_equal(spo, same)
    regret = LAYER.loss(lc.losses.Regret(), [PREDICTED], {"true": [TRUE]})[0]
    np.testing.assert_allclose(regret, (TRUE * (ORACLE(PREDICTED) - BEST)).sum(1), atol=1e-12)
    assert (spo >= regret - 1e-12).all()  # SPO+ bounds the regret
    nce = LAYER.loss(lc.losses.NCE(), [PREDICTED], CASES["nce"][1])[0]
    np.testing.assert_allclose(nce, (PREDICTED * BEST).sum(1) - (PREDICTED @ POOL.T).mean(1), atol=1e-12)
    most = LAYER.loss(lc.losses.MAPContrastive(), [PREDICTED], CASES["map_contrastive"][1])[0]
    np.testing.assert_allclose(most, (PREDICTED * BEST).sum(1) - (PREDICTED @ POOL.T).min(1), atol=1e-12)


def test_losses_vanish_at_the_truth():
    for loss in (lc.losses.SPOPlus(), lc.losses.Regret()):
        value, (gradient,) = LAYER.loss(loss, [TRUE], {"true": [TRUE]})
        np.testing.assert_allclose(value, 0, atol=1e-12)
        assert loss.name == "regret" or not gradient.any()
    value, _ = LAYER.loss(lc.losses.FenchelYoung(weight=1e-3), [TRUE], {"solution": [BEST]})
    np.testing.assert_allclose(value, 0, atol=1e-2)


def test_regret_takes_the_gradient_of_the_layers_estimator():
    for output in ("mean", "all"):
        layer = lc.compile(ORACLE, estimator=lc.IMLE(samples=5, output=output))
        _, (gradient,) = layer.loss(lc.losses.Regret(), [PREDICTED], {"true": [TRUE]}, seed=2)
        sample = layer.sample([PREDICTED], [2])
        dy = TRUE if output == "mean" else np.repeat(TRUE[:, None] / 5, 5, axis=1)
        np.testing.assert_allclose(gradient, layer.pull([PREDICTED], sample.solutions, sample.noise, [dy])[0], atol=1e-12)


def test_the_same_through_a_cvxpy_problem():
    from tests.discrete.problems import shortest_path

    problem, c, x = shortest_path(3)
    layer = lc.compile(problem, parameters=[c], variables=[x], estimator=lc.Identity())
    for name in ("spo_plus", "perturbed_fenchel_young", "nce"):
        loss, targets = CASES[name]
        value, (gradient,) = layer.loss(loss, [PREDICTED], targets, seed=1)
        expected, (other,) = LAYER.loss(loss, [PREDICTED], targets, seed=1)
        np.testing.assert_allclose(value, expected, atol=1e-9)
        np.testing.assert_allclose(gradient, other, atol=1e-9)


def test_wrong_targets_are_refused():
    with pytest.raises(errors.OptionError, match="targets"):
        LAYER.loss(lc.losses.SPOPlus(), [PREDICTED], {"solution": [BEST]})
    with pytest.raises(errors.OptionError, match="targets"):
        LAYER.loss(lc.losses.NCE(), [PREDICTED], {"solution": [BEST], "pool": [POOL], "true": [TRUE]})
    with pytest.raises(errors.OptionError, match="Loss"):
        LAYER.loss("spo+", [PREDICTED], {})
    assert set(losses.names()) >= {"spo_plus", "regret", *CASES}
