"""sdfvq's geometry on a GPU: the CPU's results first, then the time. What other systems take is quoted; torch's join runs beside ours.

    python bench/geometry_cuda.py [--rows march join] [--out folder]"""
import sys
from functools import cache

import numpy as np
import torch

from geometry import BAND, JOIN_ROWS, TABLE_ROWS, pack, places, same_places
from harness import Row, gpu, main
from sdfvq import contour, geometry
from sdfvq.mesh import blob, box, normalize
from sdfvq.ops import join

QUOTED = "quoted: Direct3D-S2's unsigned kernel on an H100, {}"

@cache
def shape(subdivisions):
    "Vertices and faces of a wavy ball on the CPU; of a box, 12 faces that lie askew in the grid, for 0."
    m = blob(0, .25, subdivisions) if subdivisions else box((.9, 1.3, 1.1))
    v = normalize(m.vertices)[0]
    if not subdivisions: v = v @ np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0] * .75
    return torch.from_numpy(np.ascontiguousarray(v)), torch.from_numpy(np.asarray(m.faces, np.int64))

def on_gpu(*tensors): return tuple(x.cuda() for x in tensors)

def band(resolution): return lambda x: geometry.voxelize(*x, resolution, BAND)

def same_band(subdivisions, resolution):
    def gate(x, ours, theirs):
        coords, d = geometry.voxelize(*shape(subdivisions), resolution, BAND)
        same = torch.equal(ours[0].cpu(), coords)
        gap = (ours[1].cpu() - d).abs().max().item() if same else np.inf
        return gap <= 1e-6, f'{len(d):,} voxels as on the CPU, largest Δd {gap:.0e}'
    return gate

def peak(run):
    def ours(x):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = run(x)
        return dict(GB=(torch.cuda.max_memory_allocated() - before) / 1e9, voxels=len(out[1]))
    return ours

def same_count(x, ours, theirs):
    n = len(geometry.voxelize(*shape(8), 1024, BAND)[0])
    return ours['voxels'] == n, f"{ours['voxels']:,} voxels, {n:,} on the CPU"

def band_row(name, subdivisions, resolution, most, quoted):
    faces = len(shape(subdivisions)[1])
    return Row(name, f'distances at all voxels within ±{BAND:g}, R={resolution}, {faces:,} faces', band(resolution), same_band(subdivisions, resolution),
               lambda: on_gpu(*shape(subdivisions)), most=most, by=QUOTED.format(quoted) if quoted else 'none', device='cuda')

def marched(resolution):
    coords, d = geometry.voxelize(*shape(6), resolution, BAND)
    inside = geometry.winding((2 * coords.double() + 1) / resolution - 1, *shape(6), rough=True) > .5
    return *on_gpu(coords, torch.where(inside, -d, d)), contour.march_table().cuda()

def march(x): return contour.march(x[0], x[1], 0.0, x[2])

def same_march(x, ours, theirs):
    v, f = march([t.cpu() for t in x])
    gap = (ours[0].cpu() - v).abs().max().item() if len(v) == len(ours[0]) else np.inf
    return gap <= 1e-6 and torch.equal(ours[1].cpu(), f), f'{len(x[0]):,} voxels, {len(f):,} faces as on the CPU, farthest {gap:.0e} voxel'

def winding_points():
    return *on_gpu(torch.rand(2_000_000, 3, generator=torch.Generator().manual_seed(0)).double() * 2 - 1), *on_gpu(*shape(6))

def same_winding(x, ours, theirs):
    few = x[0][:20_000]
    cpu = geometry.winding(*(t.cpu() for t in (few, *x[1:])))
    gap = (ours[:20_000].cpu() - cpu).abs().max().item()
    return gap < .05 and torch.equal(ours[:20_000].cpu() > .5, cpu > .5), f'inside as on the CPU, numbers {gap:.0e} off'

def joined(shuffled):
    coords, table, where = on_gpu(*places(shuffled))
    return coords, table, where, pack(coords), pack(table)

def same_search(x, ours, theirs):
    "The search gives a place for every key; it is the key's own where ours is not -1."
    at = theirs.clamp(max=len(x[4]) - 1)
    return same_places(x, ours, torch.where(x[4][at] == x[3], at, -1).int())

def join_row(order, shuffled):
    "Against the search alone, its keys packed and sorted beforehand."
    return Row(f'join {order}', f'where {JOIN_ROWS:,} {order} rows stand among {TABLE_ROWS:,}', lambda x: join(*x[:2]),
               same_search, lambda: joined(shuffled), None,
               lambda x: torch.searchsorted(x[4], x[3]), 'torch.searchsorted of packed keys in a sorted table', most=.0006, device='cuda')

ROWS = [
    band_row('band 1024, 82 k', 6, 1024, .0028, '27.8 ms and 12 GB'),
    band_row('band 1024, 1.3 M', 8, 1024, .0057, '57.3 ms for 1 M faces'),
    band_row('band 512, 82 k', 6, 512, None, ''),
    band_row('band 512, 1.3 M', 8, 512, None, ''),
    band_row('band 512, box', 0, 512, .003, '18.5 s'),
    Row('band memory', 'peak beside the input, with the result; R=1024, 1.3 M faces', peak(band(1024)), same_count,
        lambda: on_gpu(*shape(8)), most=.6, by=QUOTED.format('12 GB'), unit='GB', device='cuda'),
    Row('winding', 'winding numbers of 82 k faces at 2 M points in the cube', lambda x: geometry.winding(*x), same_winding, winding_points, device='cuda'),
    Row('march 1024', 'marching cubes on the band of 82 k faces', march, same_march, lambda: marched(1024), most=.001, device='cuda'),
    join_row('sorted', False), join_row('shuffled', True),
]

if __name__ == '__main__': sys.exit(main(__doc__, 'Geometry on the GPU', 'geometry_cuda', ROWS, gpu))
