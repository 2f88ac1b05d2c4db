"""Noise has the distribution it claims, and follows its seed."""

import time

import numpy as np
import pytest
from scipy import stats

from layercompiler import errors
from layercompiler.derivatives.perturbation.noise import Gumbel, Noise, Normal, SumOfGamma, generator, noises

CASES = [(1.0, 1), (5.0, 10), (10.0, 10), (13.0, 10), (13.0, 100), (2.5, 3), (100.0, 10), (0.5, 4)]


def _direct(k, m, count, seed=0):
    rng = np.random.default_rng(seed)
    total = np.zeros(count)
    for i in range(1, m + 1):
        total += rng.gamma(1 / k, k / i, count)
    return (total - np.log(m)) / k


@pytest.mark.parametrize(("k", "m"), CASES)
def test_sum_of_gamma_is_distributed_as_direct_sampling(k, m):
    x = SumOfGamma(k, m).sample(generator(np.array([7])), (100_000,))
    assert stats.ks_2samp(x, _direct(k, m, 100_000)).pvalue > 1e-3
    sums = np.arange(1, m + 1)
    mean, variance = (np.sum(1 / sums) - np.log(m)) / k, np.sum(1 / sums**2) / k
    assert abs(x.mean() - mean) < 5 * np.sqrt(variance / len(x))
    assert abs(x.var() / variance - 1) < 0.06


@pytest.mark.parametrize(("k", "m"), [c for c in CASES if c[0] < 50])
def test_sum_of_gamma_follows_its_distribution_function(k, m):
    noise = SumOfGamma(k, m)
    assert stats.kstest(noise.sample(generator(np.array([1, 2])), (8_000,)), noise.cdf).pvalue > 1e-3
    assert stats.kstest(_direct(k, m, 8_000, 3), noise.cdf).pvalue > 1e-3


def test_the_distribution_function_of_one_gamma_is_known():
    x = np.logspace(-8, 2, 300)
    for k in (0.5, 1.0, 7.0):
        np.testing.assert_allclose(SumOfGamma(k, 1).cdf(x / k), stats.gamma(1 / k, scale=k).cdf(x), atol=1e-8)


def test_both_tails_are_drawn():
    x = SumOfGamma(5.0, 10).sample(generator(np.array([5])), (1_000_000,))
    y = _direct(5.0, 10, 1_000_000)
    for q in (1e-4, 1e-3, 1 - 1e-3, 1 - 1e-4):
        low, high = np.quantile(y, [max(0, q - 6e-5), min(1, q + 6e-5)])
        assert low - 1e-9 <= np.quantile(x, q) <= high + 1e-9


def test_sum_of_gamma_is_much_faster_than_drawing_gammas():
    noise, rng, shape = SumOfGamma(13.0, 10), generator(np.array([0])), (32, 10, 144)
    noise.sample(rng, shape)

    def best(call):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return min(times)

    # 20 times and more on a quiet machine: benchmarks/discrete.py
    assert best(lambda: noise.sample(rng, shape)) * 8 < best(lambda: [rng.gamma(1 / 13, 13 / i, shape) for i in range(1, 11)])


@pytest.mark.parametrize("noise", [Gumbel(), Normal(), SumOfGamma(5)])
def test_equal_seeds_equal_samples(noise):
    a, b, c = (noise.sample(generator(np.array(s)), (3, 4)) for s in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(a, b)
    assert (a != c).all()


@pytest.mark.parametrize(("noise", "law"), [(Gumbel(), stats.gumbel_r), (Normal(), stats.norm)])
def test_smooth_noise_has_its_law_and_score(noise, law):
    assert stats.kstest(noise.sample(generator(np.array([3])), (20_000,)), law.cdf).pvalue > 1e-3
    x = np.linspace(-2, 3, 7)
    slope = -(law.logpdf(x + 1e-5) - law.logpdf(x - 1e-5)) / 2e-5
    np.testing.assert_allclose(noise.score(x), slope, atol=1e-8)


def test_what_is_wrong_is_refused():
    with pytest.raises(errors.OptionError):
        SumOfGamma(0.0)
    with pytest.raises(errors.OptionError):
        SumOfGamma(1.0, 0)
    with pytest.raises(errors.UnsupportedTransformError, match="score"):
        SumOfGamma(5.0).score(np.zeros(3))


def test_a_new_noise_is_one_registration():
    @noises.register
    class Flat(Noise):
        name = "flat"

        def sample(self, rng, shape):
            return rng.uniform(-1, 1, shape)

    assert noises.find("flat") is Flat
    assert {"gumbel", "normal", "sum_of_gamma"} <= set(noises.names())
    with pytest.raises(errors.OptionError):
        noises.find("pink")
