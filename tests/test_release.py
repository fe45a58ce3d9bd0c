"""What people install: a wheel and an sdist that hold what they must, few packages, extras that are named where they are missing, types that
a user's checker accepts, workflows that call what there is."""
import configparser, os, re, subprocess, sys, tarfile, zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sdfvq

ROOT = Path(__file__).resolve().parent.parent
parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
parser.read(ROOT/'settings.ini', encoding='utf-8')
CFG = parser['DEFAULT']
EXTRAS = sorted(k.removesuffix('_requirements') for k in CFG if k.endswith('_requirements'))

def read(name): return (ROOT/name).read_text(encoding='utf-8')

def run(*command, cwd=ROOT, code=0, **env):
    "What `command` prints; it must end with `code`."
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')
    assert done.returncode == code, done.stdout[-6000:]
    return done.stdout

# Version and extras

def test_one_version():
    "settings.ini has it, nbdev writes it to the package, `setup.py` reads it; the changelog begins with it."
    newest = re.search(r'^## (\S+)', read('CHANGELOG.md'), re.M)[1]
    assert sdfvq.__version__ == CFG['version'] == newest
    assert "version=cfg['version']" in read('setup.py') and not re.search(r'^\s*version\s*=', read('pyproject.toml'), re.M)

def test_extras_are_documented():
    "Each has a row in the install page's table, and no row is without one; README and `setup.py` know them all."
    rows = re.findall(r'"\| `\[(\w+)\]` \|', read('nbs/explanations/install.ipynb'))
    assert sorted(rows) == sorted(re.findall(r'`\[(\w+)\]`', read('README.md'))) == EXTRAS
    namespace = {}
    exec(re.search(r'^EXTRAS = .*$', read('setup.py'), re.M)[0], namespace)
    assert sorted([*namespace['EXTRAS'], 'dev']) == EXTRAS

# Packages

def closure(*requirements):
    "Names of the distributions that `requirements` bring, as the metadata of those installed here has it."
    seen, todo = {}, [Requirement(r) for r in requirements]
    while todo:
        r = todo.pop()
        name, extras = canonicalize_name(r.name), {'', *r.extras}
        new = extras - seen.setdefault(name, set())
        seen[name] |= new
        try: found = requires(name) or []
        except PackageNotFoundError: found = []     # torchvision, spacy: named by fastai, left out of the locks
        todo += [q for q in map(Requirement, found) if any(not q.marker or q.marker.evaluate({'extra': e}) for e in new)]
    return set(seen)

def test_core_is_small():
    "What `pip install sdfvq` brings beside torch and what torch brings."
    more = closure(*CFG['requirements'].split()) - closure('torch')
    assert {'numpy', 'trimesh'} < more and len(more) <= 15, sorted(more)

def absent_from_core():
    "Modules at the top that are installed here, but not by the core."
    core = closure(*CFG['requirements'].split()) | {'sdfvq'}
    inside, outside = set(), set()
    for d in distributions():
        names = {f.parts[0].split('.')[0] for f in d.files or () if f.suffix in ('.py', '.so', '.pyd') and f.parts[0] not in ('..', '__pycache__')}
        (inside if canonicalize_name(d.name) in core else outside).update(names)
    return sorted(outside - inside - set(sys.stdlib_module_names))

CORE_ONLY = f'''
import sys
sys.modules.update(dict.fromkeys({absent_from_core()!r}))    # as if not installed
'''

def test_core_does_its_job(tmp_path):
    "These commands run on the core's packages alone; what trains says which extra it needs."
    import torch
    from sdfvq.mesh import torus
    from sdfvq.vqvae import SparseSDFVQVAE, preset, save_model
    torch.manual_seed(0)
    (tmp_path/'shapes').mkdir()
    for name in ('a.ply', 'shapes/b.ply'): torus(1, .4).export(tmp_path/name)
    save_model(SparseSDFVQVAE(preset('tiny')), tmp_path/'model.safetensors')
    lines = ['voxelize a.ply -o a.npz --resolution 64', 'mesh a.npz -o b.glb', 'encode a.ply -o a.s3d --model model.safetensors', 'info',
             'decode a.s3d -o c.glb --model model.safetensors', 'view a.ply a.npz a.s3d --model model.safetensors -o view.html', 'inspect data',
             'prepare a.ply -o data --resolutions 64 --workers 1', 'inspect data --overwrite',
             'evaluate shapes --weights model.safetensors -o report', 'demo a.ply -o demo']
    needing = ['train a.ply -o run', 'rqvae a.npy -o run', 'retrieve train a.csv -o run']
    said = run(sys.executable, '-c', CORE_ONLY + f'''
from typer.testing import CliRunner
from sdfvq.cli import app
for line in {lines + needing!r}:
    r = CliRunner().invoke(app, line.split())
    print(r.exit_code, r.output.replace(chr(10), ' '), r.exception if r.exit_code not in (0, 2) else '')
''', cwd=tmp_path, COLUMNS='200').splitlines()
    done, refused = said[:len(lines)], said[len(lines):]
    assert [d[0] for d in done] == ['0'] * 6 + ['2', '0', '0', '0', '0'] and 'WRONG' not in done[3], done
    assert (tmp_path/'c.glb').stat().st_size > 1000 and 'sdfvq[view]' in read(tmp_path/'view.html')
    assert len(refused) == len(needing) and all(r.startswith('2 error: ') and 'pip install "sdfvq[train]"' in r for r in refused), refused

def test_every_room_says_what_it_needs():
    "Imported without the extras, a module works or names the extra."
    rooms = sorted(p.stem for p in (ROOT/'sdfvq').glob('*.py') if not p.stem.startswith('_'))
    said = run(sys.executable, '-c', CORE_ONLY + f'''
from importlib import import_module
for name in {rooms!r}:
    try: import_module('sdfvq.' + name)
    except Exception as e: print(name, type(e).__name__, e)
''').splitlines()
    only_gpu = [l for l in said if 'triton' in l]                # no extra: torch brings it, where there is a GPU
    named = [l for l in said if re.match(r"\w+ InputError .*pip install \"sdfvq\[([\w,]+)\]", l)]
    assert sorted(only_gpu + named) == sorted(said) and len(named) > 5, said

def test_help_loads_little():
    "`sdfvq --help`, a command's own, and --version."
    code = 'import sys; from typer.testing import CliRunner; from sdfvq.cli import app; r = CliRunner().invoke(app, sys.argv[1:]); print(r.exit_code, *({"torch", "numpy", "scipy", "trimesh", "fastai"} & set(sys.modules)))'
    for line in ('--help', 'train --help', 'retrieve train --help', '--version'): assert run(sys.executable, '-c', code, *line.split()).strip() == '0'

def test_version_and_help():
    from typer.testing import CliRunner
    from sdfvq.cli import app
    call = lambda *args: CliRunner().invoke(app, args)
    assert call('--version').output == f"sdfvq {CFG['version']}\n"
    assert CFG['description'] in call('--help').output and call().output.strip() == call('--help').output.strip()

# Wheel and sdist

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "An sdist, and the wheel that it makes where it lies alone: the two that people get."
    dist = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--sdist', '-o', dist, ROOT)
    sdist, = dist.glob('*.tar.gz')
    flags = '-O0' if sys.platform != 'win32' else '/Od'       # what is in it counts here, not how fast it runs
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '-w', dist, sdist, cwd=dist,
        SDFVQ_REQUIRE_EXT='1', SDFVQ_CUDA='0', SDFVQ_CXXFLAGS=flags)
    wheel, = dist.glob('*.whl')
    return sdist, wheel

def test_wheel_holds_what_it_must(built, tmp_path):
    wheel = built[1]
    assert wheel.stat().st_size <= 70e6
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        z.extractall(tmp_path)
    ours = {p.relative_to(ROOT).as_posix() for pattern in ('*.py', 'py.typed', 'pretrained/*', 'configs/*') for p in (ROOT/'sdfvq').glob(pattern)}
    assert ours <= names, ours - names
    extension, = (n for n in names - ours if '.dist-info/' not in n)      # and nothing else: no notebook, test, source in C++
    assert extension in {f'sdfvq/_C{s}' for s in EXTENSION_SUFFIXES}
    code = 'import sys; sys.path.insert(0, "."); import sdfvq.ops, sdfvq._C as c; print(sdfvq.ops.ext is c, c.__file__)'
    assert run(sys.executable, '-I', '-c', code, cwd=tmp_path).strip() == f'True {tmp_path/extension}'

def test_wheel_says_what_settings_say(built):
    with zipfile.ZipFile(built[1]) as z:
        at = next(n.removesuffix('METADATA') for n in z.namelist() if n.endswith('.dist-info/METADATA'))
        meta, entry = (z.read(at + f).decode('utf-8') for f in ('METADATA', 'entry_points.txt'))
    field = lambda name: [l.removeprefix(f'{name}: ') for l in meta.split('\n\n')[0].splitlines() if l.startswith(f'{name}: ')]
    assert field('Version') == [CFG['version']] and field('License-Expression') == ['Apache-2.0'] and field('License-File') == ['LICENSE']
    assert sorted(field('Provides-Extra')) == EXTRAS
    wanted = {str(Requirement(r)) for r in CFG['requirements'].split()}
    assert {str(Requirement(r)) for r in field('Requires-Dist') if 'extra ==' not in r} == wanted
    assert 'sdfvq = sdfvq.cli:main' in entry
    links = re.findall(r'\]\(([^)]*)\)', meta)
    assert len(links) > 9 and all(l.startswith(('https://', '#')) for l in links), links      # the page on PyPI has no folder beside it

def test_sdist_holds_the_sources(built):
    with tarfile.open(built[0]) as t: names = {n.split('/', 1)[1] for n in t.getnames() if '/' in n}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT/'csrc').rglob('*') if p.is_file()}
    assert sources | {'settings.ini', 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'sdfvq/cli.py'} <= names
    assert not [n for n in names if n.endswith(('.ipynb', '.so', '.png', '.pyc')) or n.startswith('tests/')]

# Warnings

def test_imports_warn_of_nothing():
    "Every room, with each warning an error but for those that pyproject.toml gives a reason for."
    import tomllib
    allowed = [f'-W{f}' for f in tomllib.loads(read('pyproject.toml'))['tool']['pytest']['ini_options']['filterwarnings']]
    assert allowed[0] == '-Werror' and len(allowed) < 6
    rooms = [p.stem for p in (ROOT/'sdfvq').glob('*.py') if not p.stem.startswith('_')]
    assert not run(sys.executable, *allowed, '-c', f'''
from importlib import import_module
for name in {sorted(rooms)!r}:
    try: import_module('sdfvq.' + name)
    except ModuleNotFoundError as e: assert e.name == 'triton', e
''')

# Types

USER = '''
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
import trimesh

from sdfvq import ShapeTokenizer, SparseSDFVQVAE, load_mesh, march, view, voxelize
from sdfvq.core import InputError, Transform
from sdfvq.sparse import SparseTensor
from sdfvq.tokens import ShapeTokens
from sdfvq.voxelize import SparseSDF

def there_and_back(path: Path, depth: int | None = None) -> trimesh.Trimesh:
    mesh = assert_type(load_mesh(path), trimesh.Trimesh)
    sdf = assert_type(voxelize(mesh.vertices, mesh.faces, resolution=256, band=4.0, sign='auto'), SparseSDF)
    assert_type(voxelize(mesh), SparseSDF)
    assert_type(march(sdf, level=0.0), trimesh.Trimesh)
    assert_type((sdf.resolution, sdf.band, sdf.transform, sdf.sign, len(sdf)), tuple[int, float, Transform, str, int])
    assert_type(SparseSDF.load(sdf.save('a.npz', overwrite=True), grid=None), SparseSDF)
    try: tok = ShapeTokenizer.from_pretrained('small')
    except InputError as e: raise SystemExit(str(e))
    tokens = assert_type(tok.encode(mesh), ShapeTokens)
    assert_type((tokens.nbytes, tokens.fingerprint, len(tokens)), tuple[int, str, int])
    tokens = assert_type(ShapeTokens.load(tokens.save('a.s3d')), ShapeTokens)
    view(mesh, tokens, titles=['a', 'b'])
    return tok.decode(tokens, depth=depth, level=0.0, prune=True)

def learn(model: SparseSDFVQVAE, batch: dict[str, Any]) -> SparseTensor:
    q, ids, losses = model.encode(batch)
    assert_type((q, ids), tuple[SparseTensor, torch.Tensor])
    assert_type(q.coords, torch.Tensor)
    z = model.encode_continuous(batch)
    assert_type(model.decode_continuous(z.feats, z.coords, factor=None, prune=True), SparseTensor)
    SparseSDFVQVAE.from_vae_checkpoint(Path('vae.ckpt'), config=None)
    return model.decode(ids, q.coords)

there_and_back(Path('chair.glb'), {depth})
'''

def test_user_is_typed(tmp_path):
    "What the docs show passes a strict mypy, with types known and not merely `Any`; a wrong argument does not."
    assert (ROOT/'sdfvq/py.typed').exists()
    for name, depth in (('right', 'None'), ('wrong', "'all'")): (tmp_path/f'{name}.py').write_text(USER.replace('{depth}', depth), encoding='utf-8')
    said = run(sys.executable, '-m', 'mypy', '--strict', '--follow-imports=silent', f'--cache-dir={tmp_path}', 'right.py', 'wrong.py',
               cwd=tmp_path, code=1, MYPYPATH=ROOT).splitlines()
    assert len(said) == 2 and 'wrong.py' in said[0] and '"str"; expected "int | None"' in said[0], said

# Workflows

def workflows(): return {p.name: yaml.safe_load(p.read_text(encoding='utf-8')) for p in sorted((ROOT/'.github/workflows').glob('*.yml'))}

def steps(): return [step for flow in workflows().values() for job in flow['jobs'].values() for step in job['steps']]

def test_workflows_call_what_there_is():
    "Targets of the Makefile, extras of the package, files; actions by a version, none by a branch that moves."
    targets, commands = set(re.findall(r'^([a-z-]+):', read('Makefile'), re.M)), '\n'.join(s.get('run', '') for s in steps())
    assert set(workflows()) == {'docs.yml', 'test.yml', 'wheels.yml'} and 'make test\n' in read('.ci/run')
    called = set(re.findall(r'\bmake ([a-z-]+)', commands + read('.ci/run')))
    assert called == {'docs', 'test', 'test-browser'} <= targets
    assert {e for es in re.findall(r'"\.\[([\w,]+)\]"', commands) for e in es.split(',')} <= set(EXTRAS)
    assert all((ROOT/f).exists() for f in re.findall(r'^(\.[\w/]+)$', commands, re.M)) and '.ci/run' in commands
    for uses in (s['uses'] for s in steps() if 'uses' in s): assert re.fullmatch(r'[\w-]+(/[\w-]+)+@(v\d+(\.\d+)*|release/v1)', uses), uses

def test_workflows_use_pythons_that_we_support():
    import tomllib
    least, of = tuple(map(int, CFG['min_python'].split('.'))), lambda v: tuple(map(int, v.split('.')))
    matrix = workflows()['test.yml']['jobs']['newest']['strategy']['matrix']['python']
    wheels = [of(f'3.{b[3:5]}') for b in tomllib.loads(read('pyproject.toml'))['tool']['cibuildwheel']['build']]
    fixed = [of(v) for s in steps() if (v := s.get('with', {}).get('python-version', '$')) and v[0] != '$']
    assert min(wheels) == min(map(of, matrix)) == least and set(fixed) == {least} and set(map(of, matrix)) <= set(wheels)

# What comes along

def test_commands_take_what_ships():
    "The default of the commands is the library's, and is there."
    from inspect import signature
    from sdfvq.commands_tokens import encode, evaluate
    from sdfvq.commands_view import demo
    from sdfvq.tokenizer import DEFAULT, shipped
    assert {str(signature(f).parameters['model'].default) for f in (encode, evaluate, demo)} == {DEFAULT} and DEFAULT in shipped()
