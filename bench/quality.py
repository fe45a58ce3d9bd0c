"""How faithful the field alone is, without a network: each mesh of a folder to a field and back, compared with itself.

    python bench/quality.py FOLDER results.csv [--resolutions 256 512] [--workers 2] [--limit 20]

A row is appended when its shape is done, and what has a row is skipped: stop and go on as you like. The summary is printed."""
import argparse, csv, statistics, sys, time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from sdfvq.core import voxel_size
from sdfvq.mesh import READ, box, load_mesh
from sdfvq.metrics import compare, topology
from sdfvq.voxelize import march, voxelize

COLUMNS = ('file', 'resolution', 'faces', 'closed', 'sign', 'chamfer', 'precision', 'recall', 'f', 'edge_manifold', 'components', 'seconds',
           'error')

def measure(
    path, resolution,         # Mesh file, R
    samples: int = 100_000,   # On each surface
    outer=None,               # mesh → mesh without its buried faces: what a closed shape is compared with; None: the mesh itself
) -> dict:
    "The row of one shape: Chamfer distance in voxels, precision, recall and F-score at 1 voxel, seconds there and back."
    mesh = load_mesh(path)
    start = time.perf_counter()
    sdf = voxelize(mesh, resolution=resolution)
    back = march(sdf)
    seconds = time.perf_counter() - start
    closed = topology(mesh).watertight
    true, voxel = outer(mesh) if outer and closed else mesh, voxel_size(resolution) / sdf.transform.scale
    c = compare(true, back, samples, voxel=voxel, thresholds=(1,))
    t = topology(back)
    return dict(faces=len(mesh.faces), closed=closed, sign=sdf.sign, chamfer=c.chamfer_voxels, precision=c.precision[0], recall=c.recall[0],
                f=c.f1, edge_manifold=t.edge_manifold, components=t.components, seconds=seconds)

def warm_up(threads):
    "What a process does only once is not a shape's time."
    torch.set_num_threads(threads)
    march(voxelize(box(), resolution=8))

def read_rows(path):
    if not path.exists(): return []
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

def summary(rows):
    "One Markdown line for each folder, resolution, and closed or open."
    groups = {}
    for r in rows:
        kind = 'failed' if r['error'] else 'closed' if r['closed'] == 'True' else 'open'
        groups.setdefault((Path(r['file']).parent.as_posix(), int(r['resolution']), kind), []).append(r)
    head = ['folder', 'R', 'kind', 'shapes', 'Chamfer, median', 'Chamfer, worst', 'precision', 'recall', 'F, mean', 'F, worst',
            'edge-manifold', 'seconds, median']
    lines = [head, ['---'] * len(head)]
    for (folder, R, kind), group in sorted(groups.items()):
        cells = [folder, R, kind, len(group)]
        if kind != 'failed':
            col = lambda k: [float(r[k]) for r in group]
            manifold = sum(r['edge_manifold'] == 'True' for r in group) / len(group)
            cells += [f"{statistics.median(col('chamfer')):.4f}", f"{max(col('chamfer')):.4f}", f"{statistics.mean(col('precision')):.2%}",
                      f"{statistics.mean(col('recall')):.2%}", f"{statistics.mean(col('f')):.2%}", f"{min(col('f')):.2%}",
                      f'{manifold:.1%}', f"{statistics.median(col('seconds')):.2f}"]
        lines.append(cells + [''] * (len(head) - len(cells)))
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
