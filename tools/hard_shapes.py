"""The pictures and the table of nbs/explanations/hard_shapes.ipynb: python tools/hard_shapes.py FOLDER_OF_MESHES [NAME...]"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trimesh.intersections import slice_faces_plane

from sdfvq import geometry
from sdfvq.core import voxel_size, voxel_to_cube
from sdfvq.mesh import load_mesh, make_mesh, merge, normalize
from sdfvq.metrics import compare, topology
from sdfvq.sign import BURIED, OUTER, SHEET, face_kinds, is_closed, make_plan, oriented
from sdfvq.view import CLAY, Drawable, camera_axes, picture
from sdfvq.voxelize import SparseSDF, march, voxelize

OUT = Path(__file__).resolve().parent.parent/'nbs'/'images'/'hard_shapes'
R = 256
KIND = {OUTER: CLAY, BURIED: (214, 92, 82), SHEET: (84, 148, 214)}
BACK = (232, 172, 96)  # the side of a closed surface that looks into the solid

SHAPES = {  # name: (file, axis that is up, normal of the cut or None, its place from -1 to 1 in the box, naive way)
    'house':       ('bench/gazebo_house_1.dae', 'z', (0, -1, 0), .01, 'unsigned'),
    'doorway':     ('train/gazebo_robot_src_doorway_doorway_base.ply', 'z', (1, 0, 0), .3, 'unsigned'),
    'window':      ('train/aws_house_room_window.ply', 'z', (0, 0, 1), .01, 'unsigned'),
    'houseplant':  ('bench/quaternius_houseplant.glb', 'y', None, 0, 'winding'),
    'corn':        ('train/crops_corn_4.glb', 'y', None, 0, 'unsigned'),
    'package':     ('train/medieval_village_package_2.glb', 'y', (0, 0, 1), .02, 'unsigned'),
    'bowl':        ('train/gazebo_robot_bowl.ply', 'z', (0, -1, 0), .01, 'unsigned'),
    'heart':       ('bench/hra_heart_f.glb', 'y', (0, 0, 1), .01, 'winding'),
    'vasculature': ('bench/hra_vasculature_f.glb', 'y', None, 0, 'unsigned'),
    'brain':       ('bench/ct_brain_1M.ply', 'z', (0, 0, 1), .01, 'unsigned'),
}

def naive(mesh, way):
    "Marched from a field that knows nothing of faces: |d| = 1 voxel, or the distance to all faces with the winding's sign."
    if way == 'unsigned': return march(voxelize(mesh, resolution=R, sign='unsigned'))
    v, to_cube = normalize(mesh.vertices)
    soup = torch.from_numpy(v), torch.from_numpy(np.array(mesh.faces, np.int64))
    coords, d = geometry.voxelize(*soup, R, 4.0)
    inside = geometry.winding(voxel_to_cube(coords.double(), R), *soup).abs() > .5
    return march(SparseSDF(coords.numpy(), (torch.where(inside, -d, d) / (4 * voxel_size(R))).numpy(), R, 4.0, to_cube))

def behind(mesh, normal, at):
    "What lies behind the plane through `at`."
    return mesh if normal is None else make_mesh(*slice_faces_plane(mesh.vertices, mesh.faces, -np.array(normal, float), at)[:2])

def in_cube(mesh):
    "Vertices and faces as `voxelize` sees them, and the way into the cube."
    v, to_cube = normalize(mesh.vertices)
    return v, oriented(v, np.array(mesh.faces, np.int64)), to_cube

def kinds(mesh):
    "OUTER, BURIED or SHEET of each face."
    v, f, _ = in_cube(mesh)
    return face_kinds(v, f, is_closed(v, f))

def drawn(parts, *cut):
    "Meshes, each in its colour, cut open."
    parts = [(behind(m, *cut), c) for m, c in parts if len(m.faces)]
    whole = merge([m for m, _ in parts])
    return Drawable(whole.vertices, whole.faces, np.concatenate([np.tile(np.uint8(c), (len(m.faces), 1)) for m, c in parts]))

def before(mesh, *cut):
    kind = kinds(mesh)
    return drawn([(make_mesh(mesh.vertices, mesh.faces[kind == k]), c) for k, c in KIND.items()], *cut)

def after(mesh, up, *cut):
    away = mesh.face_normals @ camera_axes(up)[2] < 0
    return drawn([(make_mesh(mesh.vertices, mesh.faces[away == a]), c) for a, c in ((False, CLAY), (True, BACK))], *cut)

def palette():
    "White, greys for words, and shades of each colour: what median cut finds turns rare red to orange."
    shades = [np.outer(np.linspace(.48, 1.02, 12), c).clip(0, 255) for c in (*KIND.values(), BACK)]
    image = Image.new('P', (1, 1))
    image.putpalette(np.concatenate([np.outer([255, 230, 180, 130, 80, 40], np.ones(3)), *shades]).astype(np.uint8).tobytes())
    return image

def show(name, mesh, again):
    "One row of three panels, as a PNG of few colours."
    _, up, normal, place, way = SHAPES[name]
    lo, hi = mesh.bounds
    cut = normal, (lo + hi) / 2 + place * (hi - lo) / 2
    title = {'unsigned': '|d| = 1 voxel', 'winding': 'winding, all faces'}[way]
    panels = {'the mesh': before(mesh, *cut), title: after(naive(mesh, way), up, *cut), 'sdfvq': after(again, up, *cut)}
    image = picture(panels, size=320, up=up).quantize(palette=palette(), dither=0)
    OUT.mkdir(parents=True, exist_ok=True)
    image.save(OUT/f'{name}.png', optimize=True)

def row(name, mesh, again):
    "A line of the table."
    v, f, transform = in_cube(mesh)
    plan = make_plan(v, f, 'auto', voxel_size(R))
    outer = [] if plan.solid is None else [make_mesh(transform.to_world(plan.solid[0]), plan.solid[1])]
    bare = merge([*outer, make_mesh(mesh.vertices, mesh.faces[plan.shell])])  # what is not buried
    voxel = voxel_size(R) / transform.scale
    every, seen = compare(mesh, again, voxel=voxel), compare(bare, again, voxel=voxel)
    t, share, pct = topology(mesh), np.bincount(kinds(mesh), mesh.area_faces, 3) / mesh.area, lambda x: f'{100 * x:.1f}'
    return [name, f'{len(mesh.faces):,}', t.components, f'{t.boundary_edges:,}', t.nonmanifold_edges, pct(share[BURIED]), pct(share[SHEET]),
            pct(every.precision[0]), pct(every.recall[0]), pct(every.f1), f'{every.chamfer_voxels:.2f}',
            pct(seen.recall[0]), pct(seen.f1), pct(seen.f2), f'{seen.chamfer_voxels:.2f}']

def main(folder, *names):
    for name in names or SHAPES:
        mesh = load_mesh(Path(folder)/SHAPES[name][0])
        sdf = voxelize(mesh, resolution=R)
        again = march(sdf)
        show(name, mesh, again)
        print('| ' + ' | '.join(map(str, row(name, mesh, again))) + ' |', flush=True)
        print(f'{sdf.sign}; {topology(mesh)}; again: {topology(again)}', file=sys.stderr)

if __name__ == '__main__': main(*sys.argv[1:])
