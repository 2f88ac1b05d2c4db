"""Every estimator, derived again by explicit solves; against enumeration of all solutions."""

import itertools

import numpy as np
import pytest

import layercompiler as lc
from layercompiler import errors
from layercompiler.derivatives.perturbation.estimators import Estimator, StepSize, estimators
from layercompiler.derivatives.perturbation.noise import generator
from layercompiler.solvers.oracles import Assignment, TopK

N, K, B, S = 10, 4, 3, 6


def top(u):
    z = np.zeros_like(u)
    z[np.argsort(u)[-K:]] = 1
    return z


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((B, N)), rng.standard_normal((B, N)), rng.standard_normal((B, S, N))


def run(estimator, u, dy, oracle=None, seed=3):
    compiled = lc.compile(oracle or TopK(N, K), estimator=estimator)
    sample = compiled.sample([u], [seed])
    return sample, compiled.pull([u], sample.solutions, sample.noise, [dy])[0]


def noise_of(estimator, shape, seed=3):
    return estimator.noise.sample(generator(np.array([seed])), shape)


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("scaling", ["instance", "raw", "torch-imle"])
@pytest.mark.parametrize("output", ["mean", "all"])
def test_imle_by_explicit_solves(data, difference, scaling, output):
    u, dy_mean, dy_all = data
    estimator = lc.IMLE(
        samples=S, noise=lc.noise.SumOfGamma(4), temperature=0.7, target_temperature=0.4, alpha=0.9, step=2.0,
        difference=difference, scaling=scaling, output=output,
    )  # fmt: skip
    dy = dy_mean if output == "mean" else dy_all
    sample, found = run(estimator, u, dy)
    e = noise_of(estimator, (B, S, N))
    expected = np.zeros((B, N))
    for i in range(B):
        step = 2.0 / np.abs(dy[i]).max() if scaling == "instance" else 2.0
        for s in range(S):
            d = dy[i] if output == "mean" else dy[i, s]
            base = 0.9 * u[i] + 0.4 * e[i, s]
            if difference == "forward":
                g = top(u[i] + 0.7 * e[i, s]) - top(base - step * d)
            else:
                g = (top(base + step * d) - top(base - step * d)) / 2
            expected[i] += g if scaling == "torch-imle" else g / step
        if output == "mean" or scaling == "torch-imle":
            expected[i] /= S if difference == "forward" or scaling != "torch-imle" else S / 2
    z = np.array([[top(u[i] + 0.7 * e[i, s]) for s in range(S)] for i in range(B)])
    np.testing.assert_allclose(sample.outputs[0], z.mean(1) if output == "mean" else z, atol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_blackbox_differentiation_by_explicit_solves(data):
    u, dy, _ = data
    _, found = run(lc.DBB(step=3.0, scaling="raw"), u, dy)
    np.testing.assert_allclose(found, [(top(u[i]) - top(u[i] - 3.0 * dy[i])) / 3.0 for i in range(B)], atol=1e-12)


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_adaptive_imle_by_explicit_solves_and_its_step(data, difference):
    u, dy, _ = data
    estimator = lc.AdaptiveIMLE(samples=S, difference=difference, state=StepSize(0.8), rate=0.1)
    _, found = run(estimator, u, dy)
    e = noise_of(estimator, (B, S, N))
    expected, nonzeros = np.zeros((B, N)), []
    for i in range(B):
        step = 0.8 * np.linalg.norm(u[i]) / np.linalg.norm(dy[i])
        for s in range(S):
            v = u[i] + e[i, s]
            g = top(v) - top(v - step * dy[i]) if difference == "forward" else top(v + step * dy[i]) - top(v - step * dy[i])
            nonzeros.append((g != 0).sum())
            expected[i] += g / (step * S * (1 if difference == "forward" else 2))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert estimator.state.value == pytest.approx(0.8 * 1.1 if np.mean(nonzeros) < 1 else 0.8 / 1.1)


def test_adaptive_imle_reaches_its_target_density(data):
    u, dy, _ = data
    estimator = lc.AdaptiveIMLE(samples=S, state=StepSize(1e-3), rate=0.1, target=2.0)
    for seed in range(120):
        run(estimator, u, dy, seed=seed)
    mean = estimator.state.nonzeros
    assert 1.3 < mean < 2.7
    frozen = lc.AdaptiveIMLE(samples=S, state=StepSize(1.0), adapt=False)
    run(frozen, u, dy)
    assert frozen.state.value == 1.0


@pytest.mark.parametrize("noise", [lc.noise.Normal(), lc.noise.Gumbel()])
@pytest.mark.parametrize("baseline", ["leave-one-out", "none"])
def test_perturbed_by_explicit_solves(data, noise, baseline):
    u, dy, _ = data
    estimator = lc.Perturbed(samples=S, noise=noise, temperature=0.5, baseline=baseline, project="none")
    _, found = run(estimator, u, dy)
    e = noise_of(estimator, (B, S, N))
    expected = np.zeros((B, N))
    for i in range(B):
        r = np.array([top(u[i] + 0.5 * e[i, s]) @ dy[i] for s in range(S)])
        for s in range(S):
            base = np.delete(r, s).mean() if baseline == "leave-one-out" else 0.0
            expected[i] += (r[s] - base) * noise.score(e[i, s]) / (0.5 * S)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_single_perturbed_sample_is_held_against_the_solution_without_noise(data):
    u, dy, _ = data
    estimator = lc.Perturbed(samples=1, project="none")
    _, found = run(estimator, u, dy)
    e = noise_of(estimator, (B, 1, N))[:, 0]
    np.testing.assert_allclose(found, [(top(u[i] + e[i]) - top(u[i])) @ dy[i] * e[i] for i in range(B)], atol=1e-12)


def test_identity_and_straight_through(data):
    u, dy, dy_all = data
    projections = {
        "none": dy,
        "mean": dy - dy.mean(1, keepdims=True),
        "auto": dy - dy.mean(1, keepdims=True),  # the oracle knows that sums are constant
        "sphere": np.array([(d - (d @ v) * v / (v @ v)) / np.linalg.norm(v) for d, v in zip(dy, u, strict=True)]),
    }
    for project, expected in projections.items():
        np.testing.assert_allclose(run(lc.Identity(project=project), u, dy)[1], expected, atol=1e-12)
    sample, found = run(lc.StraightThrough(samples=S, output="all"), u, dy_all)
    np.testing.assert_allclose(found, dy_all.sum(1), atol=1e-12)
    assert sample.outputs[0].shape == (B, S, N)


def test_projection_removes_what_no_permutation_depends_on(data):
    dy = np.random.default_rng(1).standard_normal((2, 4, 4))
    _, found = run(lc.Identity(), np.zeros((2, 4, 4)), dy, Assignment(4))
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(found.sum(2), 0, atol=1e-12)


@pytest.mark.parametrize(
    "estimator", [lc.IMLE(samples=3), lc.AdaptiveIMLE(samples=3, adapt=False), lc.DBB(), lc.Perturbed(), lc.Identity()]
)
def test_gradients_are_proportional_to_the_cotangent_and_independent_of_the_batch(data, estimator):
    u, dy, _ = data
    oracle = TopK(N, K)
    np.testing.assert_allclose(run(estimator, u, 1e-3 * dy, oracle)[1], 1e-3 * run(estimator, u, dy, oracle)[1], rtol=1e-9, atol=1e-15)
    two = dy.copy()
    two[1:] *= 7.0
    np.testing.assert_allclose(run(estimator, u, two, oracle)[1][0], run(estimator, u, dy, oracle)[1][0], rtol=1e-12)


def test_costs_are_scores_with_the_other_sign(data):
    u, dy, _ = data
    for estimator in (lc.IMLE(samples=4), lc.Perturbed(), lc.Identity(project="none")):
        box = lc.BlackBox(lambda c: np.stack([top(-x) for x in c]), sense="min")
        z, g = run(estimator, u, dy)
        if estimator.name != "identity":
            estimator = lc.Perturbed(project="none") if estimator.name == "perturbed" else estimator
            _, g = run(estimator, u, dy)
        sample, found = run(estimator, -u, dy, box)
        np.testing.assert_array_equal(sample.outputs[0], z.outputs[0])
        np.testing.assert_allclose(found, -g, atol=1e-14)


# ------------------------------------------------------------------------------------------------------------------ enumeration

SUBSETS = np.array([z for z in itertools.product([0.0, 1.0], repeat=10) if sum(z) == 5])
PERMUTATIONS = np.array([np.eye(4)[list(p)].ravel() for p in itertools.permutations(range(4))])
FLOORS = {  # mean cosine with the exact gradient for S = 1, 10, 100 as measured with prototypes, k-subset: quadratic f, linear f
    "imle central": ((0.69, 0.82, 0.83), (0.80, 0.92, 0.93)),
    "imle forward": ((0.48, 0.60, 0.63), (0.50, 0.76, 0.78)),
    "imle gumbel": ((0.49, 0.77, 0.81), (0.37, 0.83, 0.94)),
    "adaptive forward": ((0.15, 0.49, 0.77), (0.25, 0.70, 0.78)),
    "adaptive central": ((0.19, 0.58, 0.77), (0.26, 0.71, 0.81)),
    "perturbed normal": ((0.05, 0.56, 0.91), (0.08, 0.52, 0.90)),
    "perturbed gumbel": ((0.00, 0.52, 0.87), (0.11, 0.53, 0.88)),
    "score function": ((-0.04, 0.53, 0.90), (0.14, 0.56, 0.91)),
    "identity": ((0.73, 0.76, 0.77), (0.91, 0.91, 0.91)),
    "identity mean": ((0.82, 0.87, 0.88), (0.97, 0.97, 0.97)),
    "black box": ((0.46, 0.46, 0.46), (0.53, 0.53, 0.53)),
}
_SOG = lc.noise.SumOfGamma(5)
MADE = {
    "imle central": lambda s: lc.IMLE(samples=s, noise=_SOG, scaling="raw", output="all"),
    "imle forward": lambda s: lc.IMLE(samples=s, noise=_SOG, scaling="raw", output="all", difference="forward"),
    "imle gumbel": lambda s: lc.IMLE(samples=s, scaling="raw", output="all", difference="forward"),
    # targets of 0.5, 1, 2 and 3 were compared on other pairs; two subsets differ in two entries at least
    "adaptive forward": lambda s: lc.AdaptiveIMLE(samples=s, noise=_SOG, output="all", difference="forward", target=2.0),
    "adaptive central": lambda s: lc.AdaptiveIMLE(samples=s, noise=_SOG, output="all", target=3.0),
    "perturbed normal": lambda s: lc.Perturbed(samples=s),
    "perturbed gumbel": lambda s: lc.Perturbed(samples=s, noise=lc.noise.Gumbel()),
    "score function": lambda s: lc.ScoreFunction(samples=s),
    "identity": lambda s: lc.Identity(samples=s, noise=_SOG, output="all", project="none"),
    "identity mean": lambda s: lc.Identity(samples=s, noise=_SOG, output="all", project="mean"),
    "black box": lambda s: lc.DBB(step=1.0, scaling="raw"),
}


def cosine(estimator, states, oracle, theta, b, linear=False, repeats=1):
    """Mean cosine of an estimate of d E f(z) with the exact gradient under p(z) ~ exp <theta, z>, f(z) = |z - b|^2 or <b, z>."""
    count, n = theta.shape
    p = np.exp(theta @ states.T - (theta @ states.T).max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p @ states
    scored = isinstance(estimator, lc.ScoreFunction)
    if linear:
        values = b @ states.T
    elif isinstance(estimator, lc.Perturbed) and not scored:  # differentiates f(E z)
        values = 2 * (mean - b) @ states.T
    else:
        values = ((states[None] - b[:, None]) ** 2).sum(-1)
    exact = (p * values) @ states - (p * values).sum(1, keepdims=True) * mean
    compiled = lc.compile(oracle, estimator=estimator)
    arrays = [(oracle_sign(oracle) * theta).reshape(count, *oracle.shape)]
    found = []
    adapting = 60 if isinstance(estimator, lc.AdaptiveIMLE) else 0
    for seed in range(adapting + repeats):
        sample = compiled.sample(arrays, [seed])
        z = sample.solutions
        if scored:
            f = (z * b[:, None]).sum(-1) if linear else ((z - b[:, None]) ** 2).sum(-1)
            (g,) = compiled.weights(arrays, z, sample.noise, f)
        else:
            at = z if estimator.output == "all" else z.mean(1)
            at = at - (b[:, None] if estimator.output == "all" else b)
            dy = np.broadcast_to(b[:, None] if estimator.output == "all" else b, at.shape) if linear else 2 * at
            (g,) = compiled.pull(arrays, z, sample.noise, [dy.reshape(sample.outputs[0].shape)])
        g = oracle_sign(oracle) * g.reshape(count, n)
        norms = np.linalg.norm(g, axis=1) * np.linalg.norm(exact, axis=1)
        if seed >= adapting:
            found.append(((g * exact).sum(1) / np.maximum(norms, 1e-12)).mean())
    return float(np.mean(found))


def pairs(count, n, seed=0):
    """Scores and targets."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, n)), rng.standard_normal((count, n))


def oracle_sign(oracle):
    return 1.0 if oracle.sense == "max" else -1.0


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", FLOORS)
def test_cosines_on_subsets_reach_those_measured_before(name, linear):
    for samples, floor in zip((1, 10, 100), FLOORS[name][linear], strict=True):
        found = cosine(MADE[name](samples), SUBSETS, TopK(10, 5), *pairs(200, 10), linear)
        assert found > floor - 0.03, f"{name}, {samples} samples: {found:.3f} against {floor}"  # the table's own error is about 0.02


@pytest.mark.parametrize("name", FLOORS)
def test_estimates_on_assignments_point_along_the_exact_gradient(name):
    assert cosine(MADE[name](10), PERMUTATIONS, Assignment(4), *pairs(200, 16)) > (0.2 if name == "black box" else 0.4)


def test_unbiased_estimators_come_close_to_the_exact_gradient():
    for name in ("perturbed normal", "perturbed gumbel", "score function"):
        assert cosine(MADE[name](1000), SUBSETS, TopK(10, 5), *pairs(40, 10)) > 0.95


# ----------------------------------------------------------------------------------------------------------------- declarations


@pytest.mark.parametrize(
    "make",
    [
        lambda: lc.IMLE(samples=0),
        lambda: lc.IMLE(step=0.0),
        lambda: lc.IMLE(difference="backward"),
        lambda: lc.IMLE(scaling="none"),
        lambda: lc.IMLE(output="median"),
        lambda: lc.IMLE(temperature=-1.0),
        lambda: lc.IMLE(noise="gumbel"),
        lambda: lc.Perturbed(noise=None),
        lambda: lc.Perturbed(baseline="mean"),
        lambda: lc.Identity(project="plane"),
        lambda: lc.AdaptiveIMLE(rate=0.0),
        lambda: estimators.find("reinforce"),
    ],
)
def test_impossible_estimators_are_refused(make):
    with pytest.raises(errors.OptionError):
        make()


def test_a_new_estimator_is_one_registration(data):
    @estimators.register
    class Signs(Estimator):
        name = "signs"

        def pull(self, scores, draw, cotangents, oracle):
            return np.sign(cotangents.sum(axis=1))

    u, dy, _ = data
    assert estimators.find("signs") is Signs
    np.testing.assert_array_equal(run(Signs(), u, dy)[1], np.sign(dy))
