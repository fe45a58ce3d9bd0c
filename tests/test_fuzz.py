"""What each C++ op does is what its reference means, on any input; what it does not take it refuses. SDFVQ_FUZZ=5000 looks for longer."""
import os
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings, strategies as st

from sdfvq import geometry, sign
from sdfvq.contour import march, march_reference, march_table
from sdfvq.ops import ext, join, join_reference

pytestmark = pytest.mark.skipif(ext is None, reason='the C++ extension is not built')
LONG = int(os.environ.get('SDFVQ_FUZZ', 0))
fuzz = settings(max_examples=LONG or 60, derandomize=not LONG, deadline=None, database=None, suppress_health_check=list(HealthCheck))

# Soups are (vertices, faces) as nested lists, so that a failure prints as an @example. Coordinates: random, on planes of grids and of
# each other, negative zero, denormal, and up to the op's limit.
threads, seeds = st.integers(1, 5), st.integers(0, 2**32 - 1)
common = st.one_of(st.floats(-1, 1), st.sampled_from([0., -0., .5, -.5, .5625, 1., -1., 1e-9, 5e-324, -1e-300]))
def wild(limit): return st.one_of(common, st.floats(-limit, limit), st.sampled_from([limit, -limit, limit * 1e-20]))

@st.composite
def soups(draw, number=common, faces=24, scales=(1.,)):
    v = draw(st.lists(st.tuples(number, number, number), min_size=1, max_size=12))
    corner = st.integers(0, len(v) - 1)
    f, s = draw(st.lists(st.tuples(corner, corner, corner), max_size=faces)), draw(st.sampled_from(scales))
    return [tuple(x * s for x in p) for p in v], f

def tensors(soup): return torch.tensor(soup[0], dtype=torch.float64).view(-1, 3), torch.tensor(soup[1], dtype=torch.int64).view(-1, 3)

@st.composite
def closed_soups(draw):
    "Tetrahedra that overlap and face in or out."
    four = draw(st.lists(st.lists(st.tuples(common, common, common), min_size=4, max_size=4), min_size=1, max_size=4))
    return sum(four, []), [tuple(4 * k + i for i in t) for k in range(len(four)) for t in ((0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2))]

def around(seed, v, n=40):
    "Points near the soup, on its vertices, and far from it."
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(n, 3, generator=g, dtype=torch.float64)
    size = float(v.abs().max())
    return torch.cat([p * size, p, v]).clamp(-geometry.LIMIT, geometry.LIMIT)

def random_voxels(seed, shape, share, corner=(0, 0, 0)):
    g = torch.Generator().manual_seed(seed)
    c = torch.cartesian_prod(*[torch.arange(k) for k in shape]).view(-1, 3)
    return (c[torch.rand(len(c), generator=g) < share] + torch.tensor(corner)).int(), g

@pytest.fixture(autouse=True)
def same_threads():
    n = torch.get_num_threads()
    yield
    torch.set_num_threads(n)

@fuzz
@given(soups(wild(geometry.LIMIT), scales=(1., 1., 1e-30, 1e-80, 1e-300)), seeds, threads)
@example(([(0., 0., 0.), (1e50, 0., 0.), (0., 1e50, 0.)], [(0, 1, 2)]), 0, 1)         # what is squared twice: once inf, and a face -1
@example(([(0., 0., 0.), (1e-80, 0., 0.), (0., 1e-80, 0.)], [(0, 1, 2)]), 0, 1)       # 1 / squared area: once inf, and a distance NaN
@example(([(0., 0., 0.), (5e-324, 0., 0.)], [(0, 1, 0)]), 0, 1)                      # 1 / extent: inf
def test_closest_point(soup, seed, n):
    torch.set_num_threads(n)
    v, f = tensors(soup)
    p = around(seed, v)
    (d, face), (want, _) = geometry.closest_point(p, v, f), geometry.closest_point_reference(p, v, f)
    if not len(f): assert d.isinf().all() and (face == -1).all(); return
    size = max(float(v.abs().max()), float(p.abs().max()))
    own = geometry.triangle_distances(p, v[f])[torch.arange(len(p)), face]
    assert (d - want).abs().max() <= 1e-7 * size and (own - want).abs().max() <= 1e-7 * size

@fuzz
@given(soups(), st.sampled_from([1., 1e-60, 1e-12, 1e12, 1e49]), seeds, st.booleans(), threads)
def test_winding(soup, scale, seed, rough, n):
    torch.set_num_threads(n)
    v, f = tensors(soup)
    p = torch.randn(50, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)   # on no face
    got, want = geometry.winding(p * scale, v * scale, f, rough), geometry.winding_reference(p, v, f)
    assert (got - want).abs().max() < (.2 if rough else .03)

@fuzz
@given(st.lists(soups(faces=6), min_size=1, max_size=4), st.booleans(), st.sampled_from([40, 3000]), seeds, threads)
@example([([(0., 0., 0.)], [(0, 0, 0)]), ([(0., 0., 0.), (0., 1., 0.), (0., 0., 1.)], [(0, 1, 2)])], True, 40, 0, 1)   # a body of no size, helped
@example([*[([(0., 0., 0.)], [(0, 0, 0)])] * 3, ([(0., 0., 0.), (0., 0., .25), (0., .5, 0.)], [(0, 1, 2)])], True, 40, 0, 1)   # groups differ: 2e-5
def test_bodies(parts, helped, count, seed, n):
    "Native as in Python: every other body helped by the last, or each asked alone."
    torch.set_num_threads(n)
    faces = [np.array(f or [(0, 0, 0)], np.int64) for _, f in parts]
    start = np.cumsum([0] + [len(v) for v, _ in parts])
    vertices = np.concatenate([np.array(v) + .3 * k for k, (v, _) in enumerate(parts)])
    flags = (np.arange(len(parts)) % 2 == 0) & helped
    flags[-1] = False
    judge = sign.Judge(vertices, np.concatenate([f + s for f, s in zip(faces, start)]), np.cumsum([0, *map(len, faces)]), np.zeros(len(parts), bool), flags)
    points = np.random.default_rng(seed).standard_normal((count, 3))                                # on no face
    def levels(points):
        native = judge.level(points, exact=True)
        with mock.patch.object(sign, 'ext', None): return native, judge.level(points, exact=True)
    for i in range(40): np.testing.assert_allclose(*levels(points[i:i + 1]), rtol=0, atol=1e-9)
    native, plain = levels(points)
    assert ((native == 0) == (plain == 0)).all()                                                   # the same points are asked of the same bodies,
    assert np.abs(native - plain).max() < .03        # in other groups, for which far faces are one dipole: as exact as `winding` is, see above

@fuzz
@given(soups(wild(geometry.LIMIT), scales=(1., 1e-80, 1e-300)), seeds, st.booleans(), threads)
@example(([(7e44, 0., 0.), (0., 0., 1e50), (0., 0., 1e30), (0., 1e30, 0.), (0., 0., 0.)], [(0, 0, 1), (0, 2, 3)]), 0, True, 1)   # 1 / fp32's least: inf
@example(([(0., 0., 0.)] + [(0., 0., 1e50)], [(0, 0, 0)] * 12 + [(0, 0, 1)]), 0, False, 1)  # 1 / distance to where all of a cluster is: inf
def test_winding_is_a_number(soup, seed, rough, n):
    torch.set_num_threads(n)
    v, f = tensors(soup)
    got = geometry.winding(around(seed, v), v, f, rough)
    assert got.isfinite().all() and got.abs().max() < len(f) / 2 + 1

@fuzz
@given(soups(st.one_of(common, st.floats(-2, 2), st.floats(-1e8, 1e8), st.sampled_from([1e8, -1e8])), scales=(1., 1., 1e-12)),
       st.integers(1, 20), st.floats(.5, 16), threads)
def test_voxelize(soup, R, band, n):
    torch.set_num_threads(n)
    v, f = tensors(soup)
    (c, d), (cw, dw) = geometry.voxelize(v, f, R, band), geometry.voxelize_reference(v, f, R, band)
    width, longest = band * 2 / R, float(torch.cdist(v, v).max())
    k, kw = ((x.long() * torch.tensor([R * R, R, 1])).sum(1) for x in (c, cw))
    assert (k.diff() > 0).all()
    one, two = torch.isin(k, kw), torch.isin(kw, k)
    thin = 2e-8 * longest                                            # what is thinner than that may be taken for its longest edge
    rim = torch.cat([d[~one], dw[~two]])
    assert not len(rim) or (rim - width).abs().max() <= 1e-9 + 1e-7 * width + thin
    assert not one.any() or ((d[one] - dw[two]).abs() / dw[two].clamp(min=1)).max() <= 1e-6 + thin

@fuzz
@given(closed_soups(), st.integers(2, 24), threads)
def test_no_region_mixes_signs(soup, R, n):
    torch.set_num_threads(n)
    v, f = tensors(soup)
    coords, d = geometry.voxelize(v, f, R, 3.)
    label, deepest = sign.regions(coords, d, 2 / R)
    w = geometry.winding_reference((2 * coords.double() + 1) / R - 1, v, f).round()
    away = d > 1e-6
    assert torch.equal(w[deepest][label.long()][away & away[deepest][label.long()]], w[away & away[deepest][label.long()]])
    assert len(label) == 0 or (label.max() == len(deepest) - 1 and torch.equal(label[deepest].long(), torch.arange(len(deepest))))

@fuzz
@given(soups(), seeds, st.integers(1, 20), st.floats(0, 6), st.booleans(), threads)
def test_flood(soup, seed, R, gap, real, n):
    torch.set_num_threads(n)
    gap = min(gap, 4 * R)
    if real: coords, d = geometry.voxelize(*tensors(soup), R, max(gap / 2 + 2, 1.))
    else:
        coords, g = random_voxels(seed, (R, R, R), .7)
        d = (torch.rand(len(coords), generator=g) * 6).round() / R
    assert torch.equal(sign.flood(coords, d, R, gap / R), sign.flood_reference(coords, d, R, gap / R))

@fuzz
@given(seeds, st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, 140)), st.floats(0, 1), st.booleans(),
       st.sampled_from([1., .1, 1e-42, 3e38]), st.sampled_from([0., -0., .1, .7, -.3, 1e-45]), threads)
@example(0, (2, 2, 2), 1., False, .1, .1, 1)                                          # a level that no float32 is equal to
def test_march(seed, shape, share, end, size, level, n):
    torch.set_num_threads(n)
    c, g = random_voxels(seed, shape, share, [32768 - k for k in shape] if end else (0, 0, 0))
    s = torch.randint(-3, 4, (len(c),), generator=g) / 3 * size
    (v, f), (vr, fr) = march(c, s, level, march_table()), march_reference(c, s, level, march_table())
    assert torch.equal(f, fr) and v.shape == vr.shape and (not len(v) or (v - vr).abs().max() < 1e-9)

@fuzz
@given(seeds, st.integers(0, 200), st.sampled_from([3, 200, 32766]), st.booleans(), threads)
def test_join(seed, count, span, end, n):
    torch.set_num_threads(n)
    g = torch.Generator().manual_seed(seed)
    low = torch.tensor([32766 - span if end else 0] + [32766 - span if end else -32767] * 3)
    rows = (torch.randint(0, span + 1, (2 * count, 4), generator=g) + low).int()
    table = rows[:count].unique(dim=0)
    assert torch.equal(join(rows, table), join_reference(rows, table))

@fuzz
@given(soups(wild(1e300)))
def test_weld_and_closed(soup):
    v, f = np.array(soup[0]), np.array(soup[1], np.int64).reshape(-1, 3)
    with mock.patch.object(sign, 'ext', None): want = sign.weld(v), sign.is_closed(v, f)
    assert (sign.weld(v) == want[0]).all() and sign.is_closed(v, f) == want[1]

anything = st.one_of(common, st.floats(), st.sampled_from([1e300, -1e300, 1e150, 1e50]))
rows = st.one_of(st.integers(-2, 3), st.integers(-2**31, 2**31 - 1), st.sampled_from([2**31 - 1, -2**31, 32767, -32767, 4095]))

@fuzz
@given(st.lists(st.tuples(anything, anything, anything), max_size=6), st.lists(st.tuples(*[st.integers(-1, 6)] * 3), max_size=6),
       st.lists(st.tuples(rows, rows, rows, rows), max_size=12), st.lists(anything, min_size=12, max_size=12), anything, st.integers(-1, 64), st.integers(-1, 5))
@example([(1e300, 0., 0.)] * 3, [(0, 1, 2)], [], [0.] * 12, 2., 8, 1)                 # cells beyond int32
@example([], [], [], [0.] * 12, float('nan'), 8, 0)                                  # no threads: once divided by
@example([(float('nan'), 0., 0.)] * 3, [], [], [0.] * 12, 1., 8, 1)                   # welding NaN: once without end
@example([], [], [(0, 2**31 - 1, 0, 2**31 - 1)], [1e30] * 12, 1e30, 8, 1)             # a step from the last int32
def test_anything_is_taken_or_refused(v, f, c, d, x, R, n):
    v, f = np.array(v, np.float64).reshape(-1, 3), np.array(f, np.int64).reshape(-1, 3)
    with np.errstate(all='ignore'): c, d = np.array(c, np.int32).reshape(-1, 4), np.array(d[:len(c)], np.float32)
    c3 = np.ascontiguousarray(c[:, 1:])
    for call in (lambda: ext.closest_point(v, v, f, n), lambda: ext.winding(v, v, f, True, n), lambda: ext.winding(v, v, f, False, n),
                 lambda: ext.voxelize(v, f, R, x, n), lambda: ext.weld(v), lambda: ext.closed(f, len(v)), lambda: ext.regions(c3, d, x, n),
                 lambda: ext.flood(c3, d, R, 2 / max(R, 1), x, n), lambda: ext.march(c3, d, x, march_table().numpy(), n), lambda: ext.join(c, c, n)):
        try: call()
        except ValueError: pass
