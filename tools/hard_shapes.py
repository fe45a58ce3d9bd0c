"""The pictures and the table of nbs/explanations/hard_shapes.ipynb: python tools/hard_shapes.py FOLDER_OF_MESHES [NAME...]"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trimesh.intersections import slice_faces_plane

from sdfvq import geometry
from sdfvq.core import voxel_size, voxel_to_cube
from sdfvq.mesh import load_mesh, make_mesh, merge
from sdfvq.metrics import compare, topology
from sdfvq.view import CLAY, Drawable, camera_axes, picture
from sdfvq.voxelize import SparseSDF, march, planned, voxelize

OUT = Path(__file__).resolve().parent.parent/'nbs'/'images'/'hard_shapes'
R = 256
OUTER, BURIED, SHELL = CLAY, (214, 92, 82), (84, 148, 214)  # colour of a face that bounds the solid, is left out, gets a shell
BACK = (232, 172, 96)  # the side of a closed surface that looks into the solid

SHAPES = {  # name: (file, axis that is up, normal of the cut or None, its place from -1 to 1 in the box, naive way)
    'house':       ('bench/gazebo_house_1.dae', 'z', (0, -1, 0), .01, 'unsigned'),
    'doorway':     ('train/gazebo_robot_src_doorway_doorway_base.ply', 'z', (1, 0, 0), .3, 'unsigned'),
    'hammer':      ('train/gazebo_robot_hammer.ply', 'z', None, 0, 'winding'),
    'houseplant':  ('bench/quaternius_houseplant.glb', 'y', None, 0, 'winding'),
    'bottle':      ('train/kenney_misc_bottle.glb', 'y', (0, 0, 1), .01, 'winding'),
    'package':     ('train/medieval_village_package_2.glb', 'y', (0, 0, 1), .02, 'unsigned'),
    'bowl':        ('train/gazebo_robot_bowl.ply', 'z', (0, -1, 0), .01, 'unsigned'),
    'heart':       ('bench/hra_heart_f.glb', 'y', (0, 0, 1), .01, 'winding'),
    'vasculature': ('bench/hra_vasculature_f.glb', 'y', None, 0, 'unsigned'),
    'brain':       ('bench/ct_brain_1M.ply', 'z', (0, 0, 1), .01, 'unsigned'),
}

class Judged:
    "A mesh as `voxelize` sees it."
    def __init__(self, mesh):
        vertices, faces, self.to_cube, self.plan = planned(mesh, resolution=R)
        world = lambda v, f: make_mesh(self.to_cube.to_world(v), f)
        self.mesh, solid = world(vertices, faces), self.plan.solid
        self.solid = [] if solid is None else [world(*solid)]
        buried = ~self.plan.shell
        if buried.any():  # what is not of the solid
            middle = vertices[faces[buried]].mean(1)
            buried[buried] = geometry.closest_point(*map(torch.from_numpy, (middle, *solid)))[0].numpy() > 1e-6
        self.kind = {OUTER: ~(buried | self.plan.shell), BURIED: buried, SHELL: self.plan.shell}

    def part(self, mask): return make_mesh(self.mesh.vertices, self.mesh.faces[mask])

    def share(self, kind): return self.mesh.area_faces @ self.kind[kind] / self.mesh.area

def naive(mesh, way):
    "Marched from a field that knows nothing of faces: |d| = 1 voxel, or the distance to all faces with the winding's sign."
    sdf = voxelize(mesh, resolution=R, sign='unsigned')
    if way == 'unsigned': return march(sdf)
    soup = torch.from_numpy(sdf.transform.to_cube(mesh.vertices)), torch.from_numpy(np.array(mesh.faces, np.int64))
    coords, d = geometry.voxelize(*soup, R, 4.0)
    inside = geometry.winding(voxel_to_cube(coords.double(), R), *soup).abs() > .5
    return march(SparseSDF(coords.numpy(), (torch.where(inside, -d, d) / (4 * voxel_size(R))).numpy(), R, 4.0, sdf.transform))

def behind(mesh, normal, at):
    "What lies behind the plane through `at`."
    return mesh if normal is None else make_mesh(*slice_faces_plane(mesh.vertices, mesh.faces, -np.array(normal, float), at)[:2])

def drawn(parts, *cut):
    "Meshes, each in its colour, cut open."
    parts = [(behind(m, *cut), c) for m, c in parts if len(m.faces)]
    whole = merge([m for m, _ in parts])
    return Drawable(whole.vertices, whole.faces, np.concatenate([np.tile(np.uint8(c), (len(m.faces), 1)) for m, c in parts]))

def before(judged, *cut): return drawn([(judged.part(mask), colour) for colour, mask in judged.kind.items()], *cut)

def after(mesh, up, *cut):
    away = mesh.face_normals @ camera_axes(up)[2] < 0
    return drawn([(make_mesh(mesh.vertices, mesh.faces[away == a]), c) for a, c in ((False, CLAY), (True, BACK))], *cut)

def palette():
    "White, greys for words, and shades of each colour: what median cut finds turns rare red to orange."
    shades = [np.outer(np.linspace(.48, 1.02, 12), c).clip(0, 255) for c in (OUTER, BURIED, SHELL, BACK)]
    image = Image.new('P', (1, 1))
    image.putpalette(np.concatenate([np.outer([255, 230, 180, 130, 80, 40], np.ones(3)), *shades]).astype(np.uint8).tobytes())
    return image

def show(name, mesh, judged, again):
    "One row of three panels, as a PNG of few colours."
    _, up, normal, place, way = SHAPES[name]
    lo, hi = mesh.bounds
    cut = normal, (lo + hi) / 2 + place * (hi - lo) / 2
    title = {'unsigned': '|d| = 1 voxel', 'winding': 'winding, all faces'}[way]
    panels = {'the mesh': before(judged, *cut), title: after(naive(mesh, way), up, *cut), 'sdfvq': after(again, up, *cut)}
    image = picture(panels, size=320, up=up).quantize(palette=palette(), dither=0)
    OUT.mkdir(parents=True, exist_ok=True)
    image.save(OUT/f'{name}.png', optimize=True)

def row(name, mesh, judged, again):
    "A line of the table."
    bare = merge([*judged.solid, judged.part(judged.plan.shell)])  # what is not buried
    every, seen = (compare(m, again, voxel=voxel_size(R) / judged.to_cube.scale) for m in (mesh, bare))
    t, pct = topology(mesh), lambda x: f'{100 * x:.1f}'
    return [name, f'{len(mesh.faces):,}', t.components, f'{t.boundary_edges:,}', t.nonmanifold_edges,
            pct(judged.share(BURIED)), pct(judged.share(SHELL)),
            pct(every.precision[0]), pct(every.recall[0]), pct(every.f1), f'{every.chamfer_voxels:.2f}',
            pct(seen.recall[0]), pct(seen.f1), pct(seen.f2), f'{seen.chamfer_voxels:.2f}']

def main(folder, *names):
    for name in names or SHAPES:
        mesh = load_mesh(Path(folder)/SHAPES[name][0])
        judged, sdf = Judged(mesh), voxelize(mesh, resolution=R)
        assert judged.plan.why == sdf.sign
        again = march(sdf)
        show(name, mesh, judged, again)
        print(f"| {' | '.join(map(str, row(name, mesh, judged, again)))} |", flush=True)
        print(f'{sdf.sign}; {topology(mesh)}; again: {topology(again)}', file=sys.stderr, flush=True)

if __name__ == '__main__': main(*sys.argv[1:])
