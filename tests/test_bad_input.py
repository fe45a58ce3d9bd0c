"""Bad input: through the command line, one clear line that names the file, exit code 2, and nothing half-written; through `voxelize`, at every resolution and sign."""
import resource, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from typer.testing import CliRunner

from sdfvq.cli import app
from sdfvq.config import read_config
from sdfvq.conv import subm_conv
from sdfvq.core import COORD_MAX, COORD_MIN, InputError
from sdfvq.mesh import box, load_mesh, make_mesh, merge, sphere, torus
from sdfvq.metrics import topology
from sdfvq.runs import RunFolder
from sdfvq.tokens import ShapeTokens
from sdfvq.solid import SIGNS
from sdfvq.sparse import SparseTensor, batch_tensor, child_mask, from_dense, pool, prune, sparse_cat, subdivide, to_dense, upsample
from sdfvq.voxelize import march, voxelize
from sdfvq.vqvae import SparseSDFVQVAE, preset, save_model


def run(*args): return CliRunner().invoke(app, [str(a) for a in args])

def refused(result, *words):
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    line = result.stderr.strip()
    assert '\n' not in line and line.startswith('error: '), line
    for w in words: assert str(w) in line, (w, line)

@pytest.fixture(scope='module')
def model(tmp_path_factory):
    torch.manual_seed(0)
    return save_model(SparseSDFVQVAE(preset('tiny')), tmp_path_factory.mktemp('run') / 'model.safetensors').parent

@pytest.fixture
def ball(tmp_path):
    path = tmp_path / 'ball.ply'
    sphere(1.).export(path)
    return path

OBJ = 'v 0 0 0\nv 1 0 0\nv 0 1 0\n'
PLY = 'ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n'
BAD = {
    'text.ply': ('this is no mesh', 'not'),
    'text.glb': ('this is no mesh', 'not'),
    'notes.txt': ('this is no mesh', 'glb'),
    'empty.obj': ('', 'empty'),
    'cloud.ply': (PLY + 'end_header\n0 0 0\n1 0 0\n0 1 0\n', 'point'),
    'nan.obj': (OBJ.replace('1 0 0', 'nan 0 0') + 'f 1 2 3\n', 'NaN'),
    'inf.obj': (OBJ.replace('1 0 0', 'inf 0 0') + 'f 1 2 3\n', 'NaN or Inf'),
    'range.off': ('OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n', 'range'),
    'degenerate.obj': (OBJ + 'f 1 1 2\nf 2 3 3\n', 'degenerate'),
    'point.obj': ('v 1 2 3\nv 1 2 3\nv 1 2 3\nf 1 2 3\n', ''),
}

@pytest.mark.parametrize('name', BAD)
def test_bad_mesh(tmp_path, model, name):
    text, word = BAD[name]
    path, out = tmp_path / name, tmp_path / 'out'
    path.write_text(text, encoding='utf-8')
    refused(run('voxelize', path, '-o', out / 'a.npz', '--resolution', 16), name, word)
    refused(run('encode', path, '-o', out / 'a.s3d', '-m', model), name, word)
    assert not list(out.glob('*'))

def test_missing_file(tmp_path, model):
    for args in (('voxelize', 'none.glb', '-o', tmp_path / 'a.npz'), ('encode', 'none.glb', '-o', tmp_path / 'a.s3d', '-m', model)):
        refused(run(*args), 'none.glb', 'exist')
    for args in (('mesh', 'none.npz', '-o', tmp_path / 'a.glb'), ('decode', 'none.npz', '-o', tmp_path / 'a.glb', '-m', model)):
        refused(run(*args), 'none.npz', 'exist')
    refused(run('encode', 'none.glb', '-o', tmp_path / 'a.s3d', '-m', tmp_path / 'nomodel'), 'nomodel', 'exist')
    refused(run('train', tmp_path / 'nodata', '-o', tmp_path / 'run'), 'nodata', 'exist')

@pytest.mark.parametrize('size', [1e12, 1e-12])
def test_any_size_works(tmp_path, size):
    m = sphere(1.)
    m.vertices = m.vertices * size + [3 * size, 0, 0]
    m.export(tmp_path / 'm.obj', digits=20)
    assert run('voxelize', tmp_path / 'm.obj', '-o', tmp_path / 'm.npz', '--resolution', 64).exit_code == 0
    assert run('mesh', tmp_path / 'm.npz', '-o', tmp_path / 'back.ply').exit_code == 0
    back = load_mesh(tmp_path / 'back.ply')
    assert abs(back.bounds - m.bounds).max() < .01 * size

def test_scene_of_several_meshes_is_merged(tmp_path):
    a, b = sphere(1.), sphere(1.)
    b.apply_translation([0, 0, 9])
    scene = trimesh.Scene()
    scene.add_geometry(a)
    scene.add_geometry(b, transform=trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))     # (x, y, z) to (x, -z, y)
    scene.export(tmp_path / 's.glb')
    m = load_mesh(tmp_path / 's.glb')
    assert len(m.faces) == 2 * len(a.faces) and np.allclose(m.bounds, [[-1, -10, -1], [1, 1, 1]], atol=1e-2)

def test_resolution(tmp_path, ball, model):
    for r in (70, 0, -8, 4096): refused(run('voxelize', ball, '-o', tmp_path / 'a.npz', '--resolution', r), 'resolution', r)
    refused(run('encode', ball, '-o', tmp_path / 'a.s3d', '-m', model, '--resolution', 70), 'multiple', 70)
    assert not (tmp_path / 'a.npz').exists()

def test_tokens_that_do_not_fit(tmp_path, ball, model):
    t = tmp_path / 't.s3d'
    assert run('encode', ball, '-o', t, '-m', model).exit_code == 0
    assert run('decode', t, '-o', tmp_path / 'm.glb', '-m', model).exit_code == 0
    torch.manual_seed(1)
    other = save_model(SparseSDFVQVAE(preset('tiny')), tmp_path / 'other' / 'model.safetensors')
    refused(run('decode', t, '-o', tmp_path / 'n.glb', '-m', other), ShapeTokens.load(t).fingerprint)
    t.write_bytes(t.read_bytes()[:-50])
    refused(run('decode', t, '-o', tmp_path / 'n.glb', '-m', model), 't.s3d', 'truncated')
    refused(run('mesh', t, '-o', tmp_path / 'n.glb'), 't.s3d')
    assert not (tmp_path / 'n.glb').exists()

def test_outputs_are_kept(tmp_path, ball, model):
    for name, begin, args in (('a.s3d', b'\x89S3D', ('encode', '-m', model)), ('a.npz', b'PK\3\4', ('voxelize', '--resolution', 16))):
        out = tmp_path / name
        out.write_text('precious', encoding='utf-8')
        args = *args, ball, '-o', out
        refused(run(*args), name, '--overwrite')
        assert out.read_text(encoding='utf-8') == 'precious'
        assert run(*args, '--overwrite').exit_code == 0 and out.read_bytes()[:4] == begin
    refused(run('voxelize', ball, '-o', ball / 'below' / 'a.npz', '--resolution', 16), 'not writable')
    assert run('voxelize', ball, '-o', out, '--resolution', 16, '--overwrite').exit_code == 0
    refused(run('mesh', out, '-o', tmp_path / 'a.xyz'), '.xyz')
    assert not (tmp_path / 'a.xyz').exists()

def test_one_bad_of_many_costs_itself_alone(tmp_path, ball, model):
    bad = tmp_path / 'bad.ply'
    bad.write_text('no mesh', encoding='utf-8')
    r = run('encode', bad, ball, '-o', tmp_path / 'out', '-m', model)
    assert r.exit_code == 2 and 'bad.ply' in r.stderr and '1 of 2 failed' in r.stderr
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['ball.s3d']

def test_two_inputs_never_share_an_output(tmp_path, ball, model):
    twin = tmp_path / 'twin' / 'ball.ply'
    twin.parent.mkdir()
    twin.write_bytes(ball.read_bytes())
    refused(run('encode', ball, twin, '-o', tmp_path / 'out', '-m', model, '--overwrite'), ball, twin, 'ball.s3d')

def test_names_that_look_like_markup(tmp_path, ball):
    refused(run('voxelize', tmp_path / 'chair[old].glb', '-o', tmp_path / 'a.npz'), 'chair[old].glb')
    assert 'b[red].npz' in run('voxelize', ball, '-o', tmp_path / 'b[red].npz', '--resolution', 16).stdout

def test_device_that_is_not_there(tmp_path, ball, model):
    refused(run('encode', ball, '-o', tmp_path / 'a.s3d', '-m', model, '--device', 'cuda:99'), 'cuda:99')
    refused(run('train', ball, '-o', tmp_path / 'run', '--device', 'toaster'), 'toaster')

def test_language_bridge(tmp_path, ball):
    refused(run('describe', ball, '--run', tmp_path), tmp_path, 'holds no run')
    refused(run('evaluate-vl', '--run', tmp_path, '-o', tmp_path / 'out'), '--dummy-data')
    refused(run('smoke-vl'), '--quick')
    assert not (tmp_path / 'out').exists()

def test_stage_without_a_start(tmp_path, ball):
    refused(run('train', tmp_path, '-o', tmp_path / 'run', '--stage', 1), '--init')
    refused(run('train', tmp_path, '-o', tmp_path / 'run', '--stage', 7), 'stage')
    refused(run('train', tmp_path, '-o', tmp_path / 'run', '--preset', 'huge'), 'huge', 'tiny')

def test_resumed_with_another_preset(tmp_path):
    RunFolder(tmp_path / 'run').begin(read_config(name='tiny').to_dict())
    refused(run('train', tmp_path / 'nodata', '-o', tmp_path / 'run', '--resume', '--preset', 'small'), 'other settings', 'model.depth: 1, now 3')
    refused(run('train', tmp_path / 'nodata', '-o', tmp_path / 'run', '--resume', '--preset', 'tiny'), 'nodata', 'exist')      # the same

@pytest.mark.parametrize('name', ['voxelize', 'mesh', 'train', 'encode', 'decode', 'evaluate', 'demo', 'info', 'align', 'describe', 'evaluate-vl', 'smoke-vl'])
def test_help(name):
    r = run(name, '--help')
    assert r.exit_code == 0 and 'Usage' in r.stdout

CUBE = box().vertices, box().faces
def changed(array, row, value):
    out = np.array(array); out[row] = value; return out
REFUSED = {
    '1 of 8 vertices are NaN or Inf': (changed(CUBE[0], 3, np.nan), CUBE[1]),
    'run from 0 to 8': (CUBE[0], changed(CUBE[1], (2, 1), 8)),
    'run from -1 to 7': (CUBE[0], changed(CUBE[1], (2, 1), -1)),
    '8 points but no faces': (CUBE[0], CUBE[1][:0]),
    'no vertices': (CUBE[0][:0], CUBE[1][:0]),
    'zero extent': (CUBE[0] * 0 + 7, CUBE[1]),
    'all 12 faces are degenerate': (CUBE[0], CUBE[1][:, [0, 1, 1]]),
    r'extent 1e\+300': (CUBE[0] * 1e300, CUBE[1]),
    'extent 1e-300': (CUBE[0] * 1e-300, CUBE[1]),
}

every_sign, every_resolution = pytest.mark.parametrize('sign', SIGNS), pytest.mark.parametrize('resolution', [64, 256, 1024])

@every_sign
@every_resolution
@pytest.mark.parametrize('why', REFUSED)
def test_refused(why, resolution, sign):
    with pytest.raises(InputError, match=why): voxelize(*REFUSED[why], resolution=resolution, sign=sign)

def same(a, b): return np.array_equal(a.coords, b.coords) and np.allclose(a.sdf, b.sdf, atol=1e-6)

@every_sign
@pytest.mark.parametrize('resolution', [64, 256])
def test_cut_off_by_the_cube(resolution, sign):
    m = sphere(.5, 3); m.apply_translation([.8, 0, 0])
    s = voxelize(m, resolution=resolution, sign=sign, normalize=False)
    assert 'cut off by the cube' in s.sign and 'of the vertices lie outside' in s.sign
    back = march(s)
    assert len(back.faces) and abs(back.vertices).max() < 1 and (sign == 'unsigned') == s.sign.startswith('unsigned')

@every_sign
@every_resolution
def test_three_faces(resolution, sign):
    fan = np.array([[0, 0, 0], [.05, 0, .01], [0, .05, .01], [-.05, 0, 0], [0, -.05, 0]]) , np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4]])
    start = time.time()
    s = voxelize(*fan, resolution=resolution, sign=sign, normalize=False)
    assert time.time() - start < 20 and len(s)
    if sign in ('auto', 'unsigned'): assert s.sign.startswith('unsigned') and len(march(s).faces)

@every_sign
def test_self_intersecting(sign):
    half = sphere(.6, 3), sphere(.5, 3)
    half[1].apply_translation([.4, .1, 0])
    back = march(voxelize(merge(half), resolution=64, sign=sign))
    t = topology(back)
    assert t.watertight and t.edge_manifold, t
    if sign != 'unsigned': assert t.components == 1, t

@every_sign
@pytest.mark.parametrize('resolution', [64, 256])
def test_normals_and_copies_of_faces_do_not_matter(resolution, sign):
    m = torus(sections=32, sides=16)
    field = lambda faces: voxelize(m.vertices, faces, resolution=resolution, sign=sign)
    once = field(m.faces)
    for faces in (m.faces[:, ::-1], np.tile(m.faces, (2, 1)), np.r_[m.faces, m.faces[:7]]): assert same(field(faces), once), once.sign

def test_two_million_faces_in_two_gigabytes(tmp_path):
    n = 1000
    u, v = np.meshgrid(*[np.arange(n) * 2 * np.pi / n] * 2, indexing='ij')
    xyz = np.stack([(2 + np.cos(v)) * np.cos(u), (2 + np.cos(v)) * np.sin(u), np.sin(v)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing='ij')
    a, b, c, d = (((i + p) % n * n + (j + q) % n).ravel() for p, q in ((0, 0), (1, 0), (1, 1), (0, 1)))
    trimesh.Trimesh(xyz, np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]), process=False).export(tmp_path / 'm.ply')
    code = 'import sys; from sdfvq.cli import app; app(sys.argv[1:], standalone_mode=False)'
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, '-c', code, 'voxelize', tmp_path / 'm.ply', '-o', tmp_path / 'm.npz', '--resolution', '64'], check=True)
    assert max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) < 2 * 2**20, 'kilobytes'

GRID = torch.cartesian_prod(*[torch.arange(n) for n in (2, 3, 3, 3)]).int()
def sparse(row=None, value=None, channels=2, batch_size=2):
    coords = GRID.clone()
    if row is not None: coords[row] = torch.tensor(value, dtype=torch.int32)
    return SparseTensor(coords, torch.ones(len(coords), channels), batch_size)

UNFIT = {   # what is wrong with the rows: (tensor, what is said of it)
    'unsorted':       (lambda: sparse(5, [0, 2, 2, 2]), 'rows 5 and 6 are [0, 2, 2, 2] and [0, 0, 2, 0]: rows must be unique and sorted'),
    'twice':          (lambda: sparse(5, [0, 0, 1, 1]), 'rows 4 and 5 are [0, 0, 1, 1] and [0, 0, 1, 1]: rows must be unique and sorted'),
    'negative batch': (lambda: sparse(0, [-1, 0, 0, 0]), 'row 0 is [-1, 0, 0, 0]: the batch index must be >= 0'),
    'too low':        (lambda: sparse(27, [1, COORD_MIN - 1, 0, 0]), 'row 27 is [1, -32768, 0, 0]: coordinates must lie in [-32767, 32766]'),
    'too high':       (lambda: sparse(53, [1, 2, 2, COORD_MAX + 1]), 'row 53 is [1, 2, 2, 32767]: coordinates must lie in [-32767, 32766]'),
    'least int':      (lambda: sparse(27, [1, -2**31, 0, 0]), 'row 27 is [1, -2147483648, 0, 0]: coordinates must lie in'),
}

@pytest.mark.parametrize('why', UNFIT)
def test_unfit_rows_are_named(why):
    make, said = UNFIT[why]
    for use in (SparseTensor.check, pool, child_mask, subdivide, lambda x: subdivide(x, torch.ones(54, 8).bool()), lambda x: to_dense(x, 3),
                lambda x: upsample(sparse(), x)):
        with pytest.raises(InputError) as e: use(make())
        assert said in str(e.value) and '\n' not in str(e.value)
    with pytest.raises(InputError, match='must (lie in|be unique)'): make().kernel_map
    assert 'INVALID' in repr(make())

def test_only_a_full_check_looks_at_these():
    with pytest.raises(InputError, match=r'row 27 is \[1, 0, 0, 0\]: the batch index must lie in \[0, 1\)'): sparse(batch_size=1).check()
    for value in (np.nan, np.inf, -np.inf):
        x = sparse(); x.feats[40, 1] = value
        with pytest.raises(InputError, match=r'row 40 is \[1, 1, 1, 1\]: its features hold NaN or Inf'): x.check()
    assert sparse().check().replace(torch.zeros(54, 1, dtype=torch.int64)).check()      # ids are features too

BAD_PARTS = {
    'coords must be (N,4) int32, got (54,4) int64': lambda: SparseTensor(GRID.long(), torch.ones(54, 2)),
    'coords must be (N,4) int32, got (54,3) int32': lambda: SparseTensor(GRID[:, 1:], torch.ones(54, 2)),
    'feats must be (N,C), got (54) float32': lambda: SparseTensor(GRID, torch.ones(54)),
    'as many rows, got 54 and 53': lambda: SparseTensor(GRID, torch.ones(53, 2)),
    'must share a device, got cpu and meta': lambda: SparseTensor(GRID, torch.ones(54, 2, device='meta')),
    'as many rows, got 54 and 55': lambda: sparse().replace(torch.ones(55, 2)),
    'weight takes 3 channels, the tensor has 2': lambda: subm_conv(sparse(), torch.ones(27, 3, 5)),
    'item 0 has 2 channels float32 on cpu, item 1 has 3 channels': lambda: sparse_cat([sparse(), sparse(channels=3)]),
    'item 1 has 2 channels float64 on cpu': lambda: sparse_cat([sparse(), sparse().to(torch.double)]),
    'keep must be (54) bool, got (54) float32': lambda: prune(sparse(), torch.ones(54)),
    'children must be (54,8) bool, got (54,27) bool': lambda: subdivide(sparse(), torch.ones(54, 27).bool()),
    'lies in no voxel of `x`': lambda: upsample(prune(pool(sparse()), torch.arange(16) > 0), sparse()),
    'lie in [0, 2) to become dense': lambda: to_dense(sparse(), 2),
    'mask must be (1,3,3,3) bool': lambda: from_dense(torch.ones(1, 2, 3, 3, 3), torch.ones(1, 3, 3, 3)),
    'coords must be unique, got [0, 0, 0, 0] twice': lambda: SparseTensor.from_unsorted(GRID[[0, 3, 0]], torch.ones(3, 1)),
    'that differ': lambda: sparse() + prune(sparse(), torch.arange(54) > 0),
    'coords must lie in [-32767, 32766]':
        lambda: batch_tensor(dict(sparse_sdf=torch.ones(54), sparse_index=GRID[:, 1:].long() + 2**32, batch_idx=GRID[:, 0]), torch.ones(1)),
}

@pytest.mark.parametrize('said', BAD_PARTS)
def test_bad_parts_are_named(said):
    with pytest.raises(InputError) as e: BAD_PARTS[said]()
    assert said in str(e.value) and '\n' not in str(e.value)
