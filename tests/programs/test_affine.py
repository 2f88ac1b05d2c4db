"""Affine maps and sparsity patterns against dense matrices, for random structures."""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from layercompiler.programs.affine import AffineMap
from layercompiler.programs.pattern import Pattern, Segments

random_structures = settings(max_examples=150, deadline=None, derandomize=True)
EXACT = 1e-12  # sums of a few dozen products of numbers of size one


@st.composite
def maps(draw):
    """A map of up to three channels: dense matrices with the columns of each, and which of them the batch shares."""
    rows = draw(st.integers(1, 7))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    total = sum(widths) + 1
    values = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 0.5, 3.0])
    M = draw(hnp.arrays(float, (rows, total), elements=values))
    if draw(st.booleans()):  # one entry per row, as canonicalised problems have
        M = M * (np.cumsum(M != 0, axis=1) == 1)
    ends = np.cumsum([0, *widths])
    slices = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    shared = draw(st.lists(st.booleans(), min_size=len(widths), max_size=len(widths)))
    return M, slices, shared, draw(st.integers(1, 4)), draw(st.integers(0, 2**32 - 1))


def channel_values(slices, shared, batch, rng):
    return [rng.standard_normal((1 if one else batch, s.stop - s.start)) for s, one in zip(slices, shared, strict=True)]


def build(M, slices):
    return AffineMap.from_sparse(sp.csr_array(M), list(enumerate(slices)))


def dense(M, slices, thetas, batch):
    wide = [np.broadcast_to(t, (batch, t.shape[1])) for t in thetas]
    return np.concatenate([*wide, np.ones((batch, 1))], axis=1) @ M.T


@given(maps())
@random_structures
def test_a_map_is_its_matrix(drawn):
    M, slices, shared, batch, seed = drawn
    f = build(M, slices)
    thetas = channel_values(slices, shared, batch, np.random.default_rng(seed))
    out = f(thetas)
    assert f.size == len(M) and out.shape == (f.batch(thetas), f.size)
    np.testing.assert_allclose(np.broadcast_to(out, (batch, f.size)), dense(M, slices, thetas, batch), rtol=0, atol=EXACT)
    np.testing.assert_array_equal(f.parametric, (M[:, :-1] != 0).any(axis=1))
    np.testing.assert_array_equal(f.constant, M[:, -1])


@given(maps())
@random_structures
def test_linear_and_adjoint_are_transposes(drawn):
    """<L h, g> = sum over channels of <h, L'g>, where shared channels get sums over the batch; a missing tangent is zero."""
    M, slices, shared, batch, seed = drawn
    rng = np.random.default_rng(seed)
    f = build(M, slices)
    h = [t if rng.random() < 0.8 else None for t in channel_values(slices, shared, batch, rng)]
    g = rng.standard_normal((batch, f.size))
    moved = f.linear(h)
    zero = [np.zeros((1, s.stop - s.start)) if t is None else t for s, t in zip(slices, h, strict=True)]
    expected = dense(M, slices, zero, batch) - M[:, -1]
    if moved is None:
        assert not expected.any()
    else:
        np.testing.assert_allclose(np.broadcast_to(moved, expected.shape), expected, rtol=0, atol=EXACT)
    out = [None] * len(slices)
    f.adjoint(g, out, shared)
    f.adjoint(g, out, shared)  # adds
    for s, one, part in zip(slices, shared, out, strict=True):
        pulled = 2 * g @ M[:, s]
        if part is None:
            assert not M[:, s].any()
        else:
            assert len(part) == (1 if one else batch)
            np.testing.assert_allclose(part, pulled.sum(axis=0, keepdims=True) if one else pulled, rtol=0, atol=10 * EXACT)


@given(maps(), st.data())
@random_structures
def test_rows_restrict(drawn, data):
    M, slices, shared, batch, seed = drawn
    f = build(M, slices)
    keep = np.array(data.draw(st.permutations(range(f.size))), dtype=np.intp)[: data.draw(st.integers(0, f.size))]
    thetas = channel_values(slices, shared, batch, np.random.default_rng(seed))
    full = np.broadcast_to(f(thetas), (batch, f.size))
    np.testing.assert_array_equal(np.broadcast_to(f.rows(keep)(thetas), (batch, len(keep))), full[:, keep])


@st.composite
def patterns(draw):
    """Entries without repetition, in any order, in matrices small (dense products) and large (sparse ones)."""
    large = draw(st.booleans())
    shape = (draw(st.integers(66, 80)), draw(st.integers(66, 80))) if large else (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    total = shape[0] * shape[1]
    count = draw(st.integers(0, min(total, 30)))
    seed = draw(st.integers(0, 2**32 - 1))
    keys = np.random.default_rng(seed).choice(total, count, replace=False)
    return Pattern(keys // shape[1], keys % shape[1], shape), draw(st.integers(1, 3)), draw(st.booleans()), seed


@given(patterns())
@random_structures
def test_products_of_a_pattern(drawn):
    pattern, batch, shared, seed = drawn
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((1 if shared else batch, len(pattern.rows)))
    M = np.zeros((len(values), *pattern.shape))
    M[:, pattern.rows, pattern.cols] = values
    x, y = rng.standard_normal((batch, pattern.shape[1])), rng.standard_normal((batch, pattern.shape[0]))
    np.testing.assert_array_equal(pattern.full(values), M)
    np.testing.assert_allclose(
        pattern.product(values, x), np.einsum("bij,bj->bi", np.broadcast_to(M, (batch, *pattern.shape)), x), atol=EXACT
    )
    np.testing.assert_allclose(
        pattern.transposed(values, y), np.einsum("bij,bi->bj", np.broadcast_to(M, (batch, *pattern.shape)), y), atol=EXACT
    )


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 3))
@random_structures
def test_segments_sum_what_shares_a_target(target, batch):
    terms = np.random.default_rng(len(target)).standard_normal((batch, len(target)))
    expected = np.zeros((batch, 6))
    for k, t in enumerate(target):
        expected[:, t] += terms[:, k]
    np.testing.assert_allclose(Segments.of(np.array(target, dtype=np.intp), 6).sum(terms), expected, rtol=0, atol=EXACT)
