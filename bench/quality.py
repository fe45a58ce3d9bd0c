"""How faithful the field alone is, without a network: each mesh of a folder to a field and back, compared with itself.

    python bench/quality.py FOLDER results.csv [--resolutions 256 512] [--workers 2] [--limit 20]

A row is appended when its shape is done, and what has a row is skipped: stop and go on as you like. The summary is printed."""
import argparse, csv, sys, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from sdfvq.core import voxel_size
from sdfvq.geometry import closest_point
from sdfvq.mesh import READ, box, load_mesh, make_mesh, merge
from sdfvq.metrics import compare, sample_surface, topology
from sdfvq.voxelize import march, planned, voxelize

COLUMNS = ('file', 'resolution', 'faces', 'closed', 'sign', 'chamfer', 'precision', 'recall', 'f', 'precision2', 'recall2', 'recall_outer',
           'edge_manifold', 'components', 'thin', 'voted', 'agree', 'seconds', 'error')
VOTES = 256  # largest resolution at which rays vote: theirs is a dense grid

def measure(
    path, resolution,         # Mesh file, R
    samples: int = 100_000,   # On each surface
) -> dict:
    "The row of one shape. A closed one is compared with the outer boundary of its solid, others with all that they are made of."
    mesh = load_mesh(path)
    start = time.perf_counter()
    sdf = voxelize(mesh, resolution=resolution)
    back = march(sdf)
    seconds = time.perf_counter() - start
    closed, h = topology(mesh).watertight, voxel_size(resolution)
    vertices, faces = sdf.transform.to_cube(mesh.vertices), np.asarray(mesh.faces, np.int64)
    judged, drawn, _, plan = planned(mesh, resolution=resolution, sign='winding' if closed else 'auto')
    true = make_mesh(*plan.solid) if closed else make_mesh(vertices, faces)
    cube = make_mesh(sdf.transform.to_cube(back.vertices), back.faces)
    c = compare(true, cube, samples, voxel=h, thresholds=(1, 2))
    row = dict(faces=len(faces), closed=closed, sign=sdf.sign, chamfer=c.chamfer_voxels, precision=c.precision[0], recall=c.recall[0], f=c.f1,
               precision2=c.precision[1], recall2=c.recall[1], thin=thin_share(true, h) if closed else '', seconds=seconds)
    if not closed:  # what is buried cannot come back
        parts = [(judged, drawn[plan.shell])] + ([plan.solid] if plan.solid else [])
        outer = merge([make_mesh(*p) for p in parts])
        row['recall_outer'] = compare(outer, cube, samples // 2, voxel=h, thresholds=(1,)).recall[0]
    if resolution <= VOTES and not sdf.sign.startswith('unsigned'):
        row['voted'], row['agree'] = vote(mesh, vertices, faces, sdf, resolution)
    t = topology(back)
    return row | dict(edge_manifold=t.edge_manifold, components=t.components)

def thin_share(mesh, h, samples=20_000):
    "Share of the surface where a wall, or the gap beside it, is thinner than two voxels: a voxel off, the nearest face looks the other way."
    points, face = sample_surface(mesh, samples)
    v, f = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    n = np.cross(v[f[:, 1]] - v[f[:, 0]], v[f[:, 2]] - v[f[:, 0]])
    n /= np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-300)
    thin = np.zeros(samples, bool)
    for side in (1, -1):
        d, hit = (x.numpy() for x in closest_point(*map(torch.from_numpy, (points + side * h * n[face], v, f))))
        thin |= (d < .999 * h) & ((n[face] * n[hit]).sum(1) < -.5)
    return float(thin.mean())

def vote(mesh, vertices, faces, sdf, resolution):
    "Share of the band where rays both ways along all axes agree on inside, and on what share of that the field agrees with them."
    if ', and unsigned' in sdf.sign: sdf = voxelize(mesh, resolution=resolution, sign='winding')  # rays know of no shell
    along = [crossings(vertices, faces, resolution, axis) for axis in range(3)]
    at = tuple(sdf.coords.T)
    ways = [w for axis, (before, total) in enumerate(along)
            for w in (before[at] != 0, before[at] != total[tuple(np.delete(sdf.coords, axis, 1).T)])]
    votes = np.sum(ways, 0)
    sure = (votes == 0) | (votes == 6)
    return float(sure.mean()), float(((votes == 6) == (sdf.sdf < 0))[sure].mean()) if sure.any() else ''

def crossings(vertices, faces, R, axis):
    "Sum of signed crossings (R,R,R) before each voxel along `axis`, and (R,R) in all: the rays run through the centres, less a hair."
    u, v = (k for k in range(3) if k != axis)
    t = (vertices[faces] + 1) * (R / 2) - .5                                       # in voxels, centres at whole numbers
    t[:, :, u] += 1.1e-6; t[:, :, v] += 1.7e-6                                     # no ray hits an edge
    lo, hi = (np.ceil(t.min(1)).astype(int).clip(0, R), (np.floor(t.max(1)).astype(int) + 1).clip(0, R))
    size = (hi - lo).clip(0)
    before, total = np.zeros((R,) * 3, np.int16), np.zeros((R, R), np.int32)
    count = size[:, u] * size[:, v]
    for part in np.split(np.arange(len(t)), np.searchsorted(np.cumsum(count), np.arange(2**22, count.sum(), 2**22))):
        face = np.repeat(part, count[part])
        k = np.arange(len(face)) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
        i, j = lo[face, u] + k // size[face, v].clip(1), lo[face, v] + k % size[face, v].clip(1)
        a, b, c = t[face].swapaxes(0, 1)
        cross = lambda p, q: (p[:, u] - i) * (q[:, v] - j) - (p[:, v] - j) * (q[:, u] - i)
        w = np.stack([cross(b, c), cross(c, a), cross(a, b)])
        hit = (w > 0).all(0) | (w < 0).all(0)
        w, i, j, z = w[:, hit], i[hit], j[hit], np.stack([a, b, c])[:, hit, axis]
        area = w.sum(0)
        at, sign = np.ceil((w * z).sum(0) / area).astype(int), np.sign(area).astype(np.int16)
        np.add.at(total, (i, j), sign)
        first = at.clip(0, R); inside = first < R
        place = [None] * 3
        place[u], place[v], place[axis] = i[inside], j[inside], first[inside]
        np.add.at(before, tuple(place), sign[inside])
    return before.cumsum(axis, dtype=np.int16), total

def warm_up(threads):
    "What a process does only once is not a shape's time."
    torch.set_num_threads(threads)
    march(voxelize(box(), resolution=8))

def read_rows(path):
    if not path.exists(): return []
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

def summary(rows):
    "One Markdown line for each folder, resolution and kind of shape; how inside was told; what rays say of the signs."
    groups = {}
    for r in rows:
        thick = r['closed'] == 'True' and float(r['thin']) == 0
        kind = 'failed' if r['error'] else 'closed, no wall or gap under 2 voxels' if thick else 'closed, thin walls or gaps' if r['closed'] == 'True' else \
               f"open or overlapping: {r['sign'].split(' (')[0].split(',')[0]}" + (' and shells' if ', and unsigned' in r['sign'] else '')
        groups.setdefault((Path(r['file']).parent.as_posix(), int(r['resolution']), kind), []).append(r)
    lines = [['folder', 'R', 'kind', 'shapes', 'Chamfer, median', '95 %', 'worst', 'precision', 'recall', 'F, mean', 'F, worst', 'precision, 2 voxels',
              'recall, 2 voxels', 'recall of what is not buried', 'edge-manifold', 'empty', 'seconds, median', 'rays agree', 'in shapes at 99.5 %']]
    lines.append(['---'] * len(lines[0]))
    for (folder, R, kind), group in sorted(groups.items()):
        cells = [folder, R, kind, len(group)]
        if kind != 'failed':
            col = lambda k: np.array([float(r[k]) for r in group])
            mean = lambda k: f'{col(k).mean():.2%}'
            ok, agree = np.isfinite(col('chamfer')), np.array([float(r['agree']) for r in group if r['agree']])
            d = col('chamfer')[ok] if ok.any() else np.zeros(1)
            cells += [f'{np.median(d):.4f}', f'{np.quantile(d, .95):.4f}', f'{d.max():.4f}', mean('precision'), mean('recall'), mean('f'),
                      f"{col('f').min():.2%}", mean('precision2'), mean('recall2'),
                      mean('recall_outer') if group[0]['recall_outer'] else '',
                      f"{np.mean([r['edge_manifold'] == 'True' for r in group]):.1%}", int((~ok).sum()), f"{np.median(col('seconds')):.2f}",
                      f'{agree.mean():.3%}' if len(agree) else '', f'{(agree >= .995).mean():.1%}' if len(agree) else '']
        lines.append(cells + [''] * (len(lines[0]) - len(cells)))
    return '\n'.join(f"| {' | '.join(map(str, c))} |" for c in lines)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', type=Path, help='meshes, at any depth')
    p.add_argument('rows', type=Path, help='the CSV file that grows')
    p.add_argument('--resolutions', type=int, nargs='+', default=[256, 512])
    p.add_argument('--samples', type=int, default=100_000, help='points on each surface')
    p.add_argument('--limit', type=int, help='only so many files, in the order of their names')
    p.add_argument('--workers', type=int, default=1)
    a = p.parse_args()
    files = sorted(f.relative_to(a.folder).as_posix() for f in a.folder.rglob('*') if f.suffix.lower() in READ)[:a.limit]
    done = {(r['file'], r['resolution']) for r in read_rows(a.rows)}
    todo = [(f, R) for R in a.resolutions for f in files if (f, str(R)) not in done]
    new, threads = not a.rows.exists(), max(1, torch.get_num_threads() // a.workers)
    pool = ProcessPoolExecutor(a.workers, get_context('spawn'), warm_up, (threads,))
    running = {pool.submit(measure, a.folder/f, R, a.samples): (f, R) for f, R in todo}
    try:
        with open(a.rows, 'a', newline='', encoding='utf-8') as out:
            table = csv.DictWriter(out, COLUMNS)
            if new: table.writeheader()
            for i, job in enumerate(as_completed(running), 1):
                f, R = running[job]
                try: row = job.result()
                except BrokenProcessPool: raise                     # killed from outside: no fault of this shape
                except Exception as e: row = dict(error=f"{type(e).__name__}: {' '.join(str(e).split())}".replace(str(a.folder/f), f))
                table.writerow(dict(file=f, resolution=R) | row)
                out.flush()
                said = row.get('error') or f"{row['chamfer']:.4f} voxel, F {row['f']:.2%}"
                print(f'{i}/{len(todo)}', f, R, said, file=sys.stderr, flush=True)
    finally: pool.shutdown(cancel_futures=True)
    print(summary(read_rows(a.rows)))

if __name__ == '__main__': main()
