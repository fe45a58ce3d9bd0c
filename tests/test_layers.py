"""Rooms: a module's exported code imports only from a smaller-numbered notebook, and never what its row below forbids.

Imports inside functions and loads by name (`import_module`) count like any other."""
import ast, re, shutil
from pathlib import Path

import pytest

SDFVQ = Path(__file__).resolve().parent.parent/'sdfvq'

MODELS = {'autoencoder', 'vqvae', 'rqvae', 'vl', 'retrieve'}
SHAPES = {'geometry', 'contour', 'faces', 'sign', 'solid', 'mesh', 'voxelize', 'metrics'}   # how a shape is sampled and measured: no business of the network
QUANTIZERS = {'quantizer', 'fsq', 'codebook', 'quantize', 'rqvae'}

class Only(set):
    "The sole modules of ours that a room may import."

ROOMS = {  # module: what it must never import, or `Only` what it may; the numbers already forbid all that stands later
    'core':      Only(),
    'ops':       Only({'core'}),
    'kernels':   Only({'core', 'ops'}),
    'hopper':    Only({'ops', 'kernels'}),
    'geometry':  Only({'core', 'ops'}),
    'contour':   Only({'core', 'ops'}),
    'cuda':      Only({'core', 'ops', 'geometry', 'contour'}),
    'faces':     Only({'ops'}),
    'sign':      Only({'core', 'ops', 'geometry', 'faces'}),
    'solid':     Only({'core', 'faces', 'sign'}),
    'nearest':   Only({'core', 'ops', 'hopper'}),
    'norm':      Only({'core', 'ops', 'kernels'}),
    'mesh':      MODELS,
    'voxelize':  MODELS | {'sparse'},
    'volume':    MODELS | {'sparse'},
    'labels':    MODELS | {'sparse'},
    'organ':     MODELS | {'sparse'},
    'images':    MODELS | {'sparse'},
    'compact':   MODELS | {'sparse', 'fastai'},
    'view':      MODELS,
    'report':    MODELS,
    'metrics':   Only({'core', 'geometry', 'faces', 'mesh'}),
    'draco':     Only({'core', 'geometry', 'mesh', 'metrics'}),
    'sparse':    SHAPES | {'fastai'},
    'conv':      SHAPES | QUANTIZERS,
    'attention': SHAPES | QUANTIZERS | {'conv'},
    'weights':   Only({'core'}),
    'memory':    SHAPES | QUANTIZERS | {'conv', 'attention'},
    'autoencoder': SHAPES | QUANTIZERS | {'fastai'},
    'quantizer': Only({'core'}),
    'fsq':       Only({'core', 'quantizer'}),
    'codebook':  Only({'core', 'ops', 'quantizer'}),
    'quantize':  Only({'core', 'ops', 'kernels', 'quantizer', 'fsq', 'codebook'}),
    'vqvae':     SHAPES | {'losses', 'fastai'},
    'rqvae':     Only({'core', 'weights', 'quantizer', 'quantize'}),
    'losses':    MODELS | {'fastai'},
    'loader':    MODELS | {'losses', 'fastai'},
    'items':     MODELS | {'fastai'},
    'workers':   Only({'core'}),
    'ledger':    Only({'core', 'items'}),
    'prepare':   MODELS | {'fastai'},
    'data':      MODELS | {'losses'},
    'learner':   {'tokens', 'vl', 'retrieve'},
    'augment':   MODELS | {'losses', 'fastai'},
    'callbacks': Only({'core', 'quantizer', 'learner'}),
    'config':    {'tokens', 'vl', 'retrieve'},
    'runs':      {'tokens', 'vl', 'retrieve'},
    'train':     {'tokens', 'vl', 'retrieve'},
    'inspect':   MODELS | {'losses', 'fastai'},
    'interactions': Only({'core'}),
    'histories': Only({'core'}),
    'texts':     Only({'core'}),
    'simulate':  Only({'core', 'interactions'}),
    'catalogue': Only({'core', 'weights'}),
    'coder':     Only(),
    'tokens':    MODELS | QUANTIZERS | {'conv', 'attention', 'fastai'},
    'tokenizer': {'learner', 'fastai'},
    'evaluate':  {'vl', 'retrieve'},
    'explore':   {'vl', 'retrieve'},
    'sequence3d': Only({'core', 'sparse'}),
    'selftest':  MODELS | {'fastai'},
    'demo':      {'learner', 'train', 'vl', 'retrieve', 'fastai'},
    'processor3d': MODELS | {'losses', 'conv', 'attention', 'fastai'},
    'vl':        {'retrieve', 'fastai'},
    'words':     MODELS | QUANTIZERS | {'fastai', 'transformers'},
    'semantic':  {'conv', 'attention', 'vl', 'retrieve', 'fastai'},
    'train_items': {'conv', 'attention', 'vl', 'retrieve'},
    'retrieve':  {'conv', 'attention', 'vl'},
    'baselines': {'conv', 'attention', 'vl'},
    'questions': MODELS | QUANTIZERS | {'fastai', 'transformers', 'tokens'},
    'align_data': {'retrieve', 'losses', 'conv', 'attention', 'fastai'},
    'align':     {'retrieve', 'losses', 'conv', 'attention'},
    'describe':  {'retrieve', 'losses', 'conv', 'attention'},
    'evaluate_vl': {'retrieve', 'losses', 'conv', 'attention'},
    'windows':   {'conv', 'attention', 'vl', 'fastai'},
    'ranking':   {'conv', 'attention', 'vl'},
    'recommend': {'conv', 'attention', 'vl'},
    'commands':  Only({'core', 'workers', 'train'}),
    'commands_data': MODELS | {'tokenizer', 'train', 'fastai'},
    'commands_tokens': {'vl', 'retrieve'},
    'commands_view': {'vl', 'retrieve'},
    'commands_items': {'conv', 'attention', 'vl'},
    'commands_language': {'retrieve', 'losses', 'conv', 'attention'},
    'cli':       Only({'commands', 'commands_data', 'commands_tokens', 'commands_view', 'commands_items', 'commands_language'}),
}
CORE_NEVER = {'fastai', 'transformers'}                     # `Only` speaks of our modules; core has this besides
ALONE = {'transformers': {'processor3d', 'vl'}, 'peft': {'processor3d', 'vl'},            # package: the only modules that import it
         'spconv': {'conv'}, 'torchsparse': {'conv'}}
LATE = {('ops', 'kernels'), ('ops', 'nearest'), ('ops', 'norm'), ('ops', 'cuda'), ('kernels', 'hopper'),   # loads of a later room, by name at the first CUDA call
        ('voxelize', 'compact'), ('view', 'explore')}                                                # or at the first such file, the first sparse tensor to draw
FREE = {'_C', '_cuda'}                                      # the extensions are no rooms

def number(source):
    "The two digits of the notebook that a module was exported from."
    found = re.search(r'File to edit: \S*?(\d\d)_\w+\.ipynb', source)
    return int(found[1]) if found else None

def public(folder):
    "Names that the package itself gives, and the module that each comes from."
    for node in ast.parse((folder/'__init__.py').read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_PUBLIC':
            return {k.arg: k.value.value for k in node.value.keywords}
    return {}

def imported(source, names):
    "(module, by name?) of each import: `core` for one of ours, the top-level package for others."
    ours = lambda name: (name.split('.')[1:] or [None])[0] if name.split('.')[0] == 'sdfvq' else name.split('.')[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((ours(a.name), False) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = '.'.join(filter(None, ['sdfvq' if node.level else '', node.module]))
            if module == 'sdfvq': yield from ((names.get(a.name, a.name), False) for a in node.names if a.name != '__version__')
            else: yield ours(module), False
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
            target = node.args[0].value
            if called in ('import_module', '__import__') and isinstance(target, str):
                yield ours('sdfvq' + target if target.startswith('.') else target), True

def violations(folder):
    "One line for each import in `folder`'s modules that breaks a rule."
    sources = {p.stem: p.read_text(encoding='utf-8') for p in sorted(folder.glob('*.py')) if not p.stem.startswith('_')}
    numbers, names = {m: number(s) for m, s in sources.items()}, public(folder)
    for module, source in sources.items():
        if numbers[module] is None: yield f'{module}: not exported from a numbered notebook'; continue
        if module not in ROOMS: yield f'{module}: has no row in ROOMS'; continue
        rule = ROOMS[module]
        for target, by_name in imported(source, names):
            if target is None or target in FREE or (by_name and (module, target) in LATE): continue
            if target in ALONE and module not in ALONE[target]: yield f'{module} imports {target}, which only {ALONE[target]} may'
            if module == 'core' and target in CORE_NEVER: yield f'core never imports {target}'
            if target in sources:
                if not (numbers[target] or 0) < numbers[module]:
                    yield f'{module} ({numbers[module]:02}) imports {target}, which is no smaller room'
                if isinstance(rule, Only) and target not in rule: yield f'{module} may import only {sorted(rule)}, not {target}'
            if not isinstance(rule, Only) and target in rule: yield f'{module} never imports {target}'

def test_rooms():
    assert not list(violations(SDFVQ))

def test_numbers_are_unique():
    numbers = [number(p.read_text(encoding='utf-8')) for p in SDFVQ.glob('*.py') if not p.stem.startswith('_')]
    assert len(numbers) == len(set(numbers))

NOTEBOOKS = dict(core=0, ops=1, kernels=2, mesh=10, voxelize=11, view=13, sparse=20, quantize=30, vqvae=31, data=41, tokens=50)

@pytest.fixture
def planted(tmp_path):
    "A copy of the library, with an empty module for each room not there yet, and a way to add a line to one."
    folder = tmp_path/'sdfvq'
    shutil.copytree(SDFVQ, folder, ignore=shutil.ignore_patterns('*.so', '__pycache__'))
    for module, n in NOTEBOOKS.items():
        if not (folder/f'{module}.py').exists():
            (folder/f'{module}.py').write_text(f'# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/{n:02}_{module}.ipynb.\n', encoding='utf-8')
    def plant(module, line):
        with open(folder/f'{module}.py', 'a', encoding='utf-8') as f: f.write(f'\n{line}\n')
        return list(violations(folder))
    return plant

@pytest.mark.parametrize('module, line', [
    ('core', 'from sdfvq.ops import join'),                        # a later room
    ('core', 'def f():\n    from .sparse import SparseTensor'),    # inside a function, relative
    ('core', 'from . import sparse'),
    ('core', 'from sdfvq import view'),                            # through the package's public names
    ('core', 'import fastai.basics'),
    ('ops', 'import sdfvq.kernels'),                               # the late load is by name only
    ('ops', "import_module('sdfvq.sparse')"),
    ('ops', "__import__('sdfvq.sparse')"),
    ('core', "importlib.import_module('.kernels', 'sdfvq')"),
    ('sparse', 'from sdfvq.mesh import load_mesh'),                # a smaller number, yet forbidden
    ('sparse', 'from fastai.basics import *'),
    ('quantize', 'from sdfvq.sparse import SparseTensor'),
    ('vqvae', 'def f():\n    def g():\n        import sdfvq.voxelize'),
    ('tokens', 'from sdfvq import SparseSDFVQVAE'),
    ('data', 'from transformers import AutoModel'),
    ('selftest', 'def f():\n    import spconv.pytorch'),
])
def test_planted_violation_is_found(planted, module, line):
    assert any(v.startswith(module) for v in planted(module, line))

@pytest.mark.parametrize('module, line', [
    ('ops', "import_module('sdfvq.kernels')"),
    ('sparse', 'from sdfvq.ops import join'),
    ('voxelize', 'from sdfvq import __version__'),
    ('vqvae', 'import torch, numpy as np'),
])
def test_allowed_import_is_not(planted, module, line):
    assert not planted(module, line)

def test_module_without_a_room(planted):
    assert planted('attic', '# no notebook') == ['attic: not exported from a numbered notebook']
    assert planted('cellar', '# File to edit: ../nbs/09_cellar.ipynb.')[-1] == 'cellar: has no row in ROOMS'
