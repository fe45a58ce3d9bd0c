"""sdfvq's geometry on the CPU against libigl, scikit-image, PyMCubes, mesh2sdf, torch and a Python dict.

    python bench/geometry.py [--quick] [--rows march join] [--threads 2] [--out folder]"""
import json, os, sys
from functools import cache
from importlib import import_module

import numpy as np
import torch
from scipy.spatial import cKDTree

from harness import Row, machine, main, peak, resident
from sdfvq import contour, geometry
from sdfvq.core import voxel_to_cube
from sdfvq.mesh import blob, normalize
from sdfvq.metrics import topology
from sdfvq.ops import join, join_reference
from sdfvq.voxelize import march, voxelize

BAND, JOIN_ROWS, TABLE_ROWS, DICT_ROWS, SIDE = 4.0, 42_600_000, 100_000, 1_000_000, 512
PEERS = dict(igl='libigl', skimage='scikit-image', mcubes='PyMCubes', mesh2sdf='mesh2sdf')  # module → package

# What is worked on

@cache
def shape():
    "Vertices and faces of a wavy ball of 81,920 faces, in the cube."
    m = blob(0, .25, 6)
    return normalize(m.vertices)[0], np.asarray(m.faces, np.int64)

def field(resolution): return voxelize(*shape(), resolution=resolution, band=BAND, normalize=False)

def soup(): return tuple(map(torch.from_numpy, shape()))

def centres(coords, resolution): return voxel_to_cube(np.asarray(coords, np.float64), resolution)

def in_cube(s):
    "The field's values as distances in cube units."
    return s.sdf.astype(np.float64) * (s.band * 2 / s.resolution)

def dense(s):
    "The field on the whole grid, ±1 outside the band: a gap in the order of keys has the sign of the voxel before it."
    R, key = s.resolution, s.coords.astype(np.int64) @ [s.resolution**2, s.resolution, 1]
    out = np.repeat(np.r_[np.float32(1), np.sign(s.sdf)], np.diff(np.r_[0, key, R**3]))
    out[key] = s.sdf
    return out.reshape(R, R, R)

@cache
def places(shuffled):
    "Rows (b,x,y,z) with the table that half stands among them, and where each row stands in it, from the plain reference."
    g = np.random.default_rng(0)
    keys = np.sort(g.integers(0, 8 * SIDE**3, JOIN_ROWS))
    table = np.unique(np.r_[g.choice(keys, TABLE_ROWS // 2), g.integers(0, 8 * SIDE**3, TABLE_ROWS // 2)])
    if shuffled: g.shuffle(keys)
    rows = lambda k: torch.from_numpy(np.stack(np.unravel_index(k, (8, SIDE, SIDE, SIDE)), 1).astype(np.int32))
    coords, table = rows(keys), rows(table)
    return coords, table, join_reference(coords, table)

@cache
def dictionary():
    "The sorted rows, and the table as a dict: building it is not timed."
    x = places(False)
    return *x, {tuple(r): i for i, r in enumerate(x[1].tolist())}

# The peers

def igl_distance(kind):
    def run(x):
        os.environ['IGL_NUM_THREADS'] = str(torch.get_num_threads())   # read at its first call
        igl = import_module('igl')
        return igl.signed_distance(x, *shape(), getattr(igl, f'SIGNED_DISTANCE_TYPE_{kind}'))[0]
    return run

def mesh2sdf_compute(resolution):
    "Its samples are the nodes -1 + 2i/R: the shape goes half a voxel back, so that they fall on our centres."
    v, f = shape()
    return import_module('mesh2sdf').core.compute(v - 1 / resolution, f.astype(np.int32), resolution)

def pack(c): return ((c[:, 0].long() * SIDE + c[:, 1]) * SIDE + c[:, 2]) * SIDE + c[:, 3]

def sort_and_search(coords, table):
    keys, (table, order) = pack(coords), pack(table).sort()
    at = torch.searchsorted(table, keys).clamp_(max=len(table) - 1)
    return torch.where(table[at] == keys, order[at], -1).int()

def look_up(coords, rows): return [rows.get(tuple(r), -1) for r in coords[:DICT_ROWS].tolist()]

def read(coords): coords.view(torch.int64).sum()

# The gates

def same_distance(d, theirs, bound=1e-6, share=.9999):
    "Equal where the signs agree, and the signs nearly everywhere."
    agree = np.sign(d) == np.sign(theirs)
    gap = np.abs(d - theirs)[agree].max()
    return bool(gap <= bound and agree.mean() >= share), f'largest Δd {gap:.0e}, signs {agree.mean():.4%}'

def same_signed(x, s, theirs):
    "With the fast winding number w igl gives d·(1 - 2|w|), where w is approximate: its sign is compared, and the d it has without sign."
    d = in_cube(s)
    ok, said = same_distance(d, np.copysign(igl_distance('UNSIGNED')(x), theirs))
    said += f"; the peer's own d·(1-2w) is {np.abs(d - theirs).max():.0e} off"
    return ok and np.array_equal(centres(s.coords, s.resolution), x), said

def same_unsigned(x, ours, theirs):
    ok, said = same_distance(ours[1].double().numpy(), np.abs(theirs))
    return ok and np.array_equal(centres(ours[0], 512), x), said

def same_dense(x, s, theirs):
    "The peer is exact only next to the surface, and hands distances on from there."
    d, theirs = in_cube(s), theirs[tuple(s.coords.T)].astype(np.float64)
    near = np.abs(d) < 2 / s.resolution
    ok, said = same_distance(d[near], theirs[near])
    return ok, f'{said} within 1 voxel; {np.abs(d - theirs).max() * s.resolution / 2:.2g} voxel at worst in the band'

def same_sample(x, s, theirs):
    pick = np.random.default_rng(0).choice(len(s), min(20_000, len(s)), replace=False)
    points = torch.from_numpy(centres(s.coords[pick], s.resolution))
    d, w = geometry.closest_point(points, *soup())[0].numpy(), geometry.winding(points, *soup()).numpy()
    ok, said = same_distance(in_cube(s)[pick], np.where(w > .5, -d, d))
    return ok, f'{said} at {len(pick):,} voxels by closest point'

def same_vertices(x, ours, theirs):
    "Every vertex of ours is one of theirs, and there are as many. Ours keep `MARGIN` from the ends of their edge, skimage's are float32."
    s, others = x[0], theirs[0]
    mine = (ours.vertices + 1) * s.resolution / 2 - .5
    far = cKDTree(others).query(mine, workers=-1)[0].max()
    more, t = len(mine) / len(others) - 1, topology(ours)
    ok = far <= contour.MARGIN + np.spacing(np.float32(s.resolution)) and abs(more) <= 1e-3 and t.watertight
    return bool(ok), f'farthest {far:.0e} voxel, {more:+.3%} vertices, {closed(t)}'

def on_surface(x, ours, theirs):
    pick = np.random.default_rng(0).choice(len(ours.vertices), 100_000)
    d = geometry.closest_point(torch.from_numpy(ours.vertices[pick]), *soup())[0].max().item() * x[0].resolution / 2
    t = topology(ours)
    return d <= .05 and t.watertight and t.genus == 0, f'farthest {d:.1g} voxel from the shape, {closed(t)}, genus {t.genus}'

def closed(t): return 'watertight' if t.watertight else 'not watertight'

def same_places(x, ours, theirs):
    "Those of the plain reference, and the peer's, if it looks for any."
    ok = torch.equal(ours, x[2])
    if theirs is not None: ok = ok and torch.equal(ours[:len(theirs)], torch.as_tensor(theirs, dtype=torch.int32))
    return ok, f"indices {'identical' if ok else 'differ'}, {int((ours >= 0).sum()):,} found"

def same_voxels(x, ours, theirs):
    want = len(field(ours['resolution']))
    return ours['voxels'] == want, f"{ours['voxels']:,} voxels" + ('' if ours['voxels'] == want else f', not {want:,}')

# The table

def band_points(): return centres(field(512).coords, 512)

def marched(resolution, whole=True):
    def setup(): s = field(resolution); return s, dense(s) if whole else None
    return setup

def print_peak(resolution):
    "The high-water mark of this program alone."
    voxels = len(field(resolution))
    print(json.dumps(dict(resolution=resolution, voxels=voxels, GB=resident('VmHWM') / 1e9)))

def whole_field(resolution): return lambda x: field(resolution)

ORDERS = 'sorted', 'shuffled'

def join_row(name, order, goal, peer, by, **kwargs):
    work = f'where {JOIN_ROWS:,} {ORDERS[order]} rows stand among {TABLE_ROWS:,}'
    setup = kwargs.pop('setup', lambda: places(order))
    return Row(f'join {name}', work, lambda x: join(*x[:2]), same_places, setup, goal, peer, by, **kwargs)

ROWS = [
    Row('band signed 512', 'signed distance at all voxels of the band', whole_field(512), same_signed, band_points, 40,
        igl_distance('FAST_WINDING_NUMBER'), 'igl.signed_distance, fast winding number, at the same points', 'igl'),
    Row('band unsigned 512', 'the same without sign', lambda x: geometry.voxelize(*soup(), 512, BAND), same_unsigned, band_points, None,
        igl_distance('UNSIGNED'), 'igl.signed_distance, unsigned, at the same points', 'igl'),
    Row('band signed 128', 'signed distance, ours in the band, the peer on the whole grid', whole_field(128), same_dense, goal=500,
        peer=lambda x: mesh2sdf_compute(128), by='mesh2sdf.compute', needs='mesh2sdf'),
    *[Row(f'band signed {R} alone', 'signed distance at all voxels of the band', whole_field(R), same_sample, most=most)
      for R, most in ((64, None), (256, None), (1024, .75))],
    Row('band memory 1024', 'largest resident set of a process that does only this', lambda x: peak(1024), same_voxels,
        most=1.5, unit='GB'),
    Row('march 512 skimage', 'marching cubes, ours on the band, the peer on the dense grid', lambda x: march(x[0]), same_vertices,
        marched(512), 20, lambda x: import_module('skimage.measure').marching_cubes(x[1], 0.0, method='lewiner'),
        'skimage.measure.marching_cubes', 'skimage'),
    Row('march 512 mcubes', 'the same', lambda x: march(x[0]), same_vertices, marched(512), 80,
        lambda x: import_module('mcubes').marching_cubes(x[1], 0.0), 'mcubes.marching_cubes', 'mcubes'),
    Row('march 1024 alone', 'marching cubes on the band', lambda x: march(x[0]), on_surface, marched(1024, False), most=.4),
    *[join_row(f'{order} read', k, 1 / 4, lambda x: read(x[0]), 'one read of the rows: torch sum over int64, all threads')
      for k, order in enumerate(ORDERS)],
    join_row('sorted dict', 0, 200, lambda x: look_up(x[0], x[3]), f'Python dict, its time for {DICT_ROWS:,} rows scaled up',
             setup=dictionary, share=DICT_ROWS / JOIN_ROWS),
    *[join_row(f'{order} search', k, 8, lambda x: sort_and_search(*x[:2]), 'torch: pack keys, sort the table, searchsorted')
      for k, order in enumerate(ORDERS)],
]

if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: sys.exit(print_peak(int(sys.argv[2])))
    sys.exit(main(__doc__, 'Geometry on the CPU', 'geometry_cpu', ROWS, lambda: machine(PEERS)))
