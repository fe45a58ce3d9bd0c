"The package as others import it: light, with its public names right in any order, and without the extension too."
import importlib.machinery, itertools, shutil, subprocess, sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import sdfvq

SDFVQ = Path(sdfvq.__file__).parent
HIDE_EDITABLE = 'import sys; sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]; '
HEAVY = {'torch', 'fastai', 'trimesh', 'k3d', 'transformers', 'matplotlib'}
ROOMS = sorted(p.stem for p in SDFVQ.glob('*.py') if not p.stem.startswith('_'))

def run(code, folder=None):
    "What `code` prints in a fresh interpreter; modules of `folder` come first."
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()

def loaded(*modules):
    "The heavy packages that importing `modules` brings."
    code = f'import sys, {", ".join(modules)}; print(*({HEAVY} & set(sys.modules)))'
    return set(run(code).split())

def test_import_is_light():
    "The command line, too: it says what it can do before torch would be there."
    assert loaded('sdfvq', 'sdfvq.cli') == set()

def test_rooms_without_training_are_light():
    "Only data, training and what is built on them need fastai, only the language bridge transformers. The command line loads them when a command does."
    heavy = {'data', 'learner', 'callbacks', 'config', 'runs', 'train', 'train_items', 'ranking', 'recommend',
             'processor3d', 'vl', 'align_data', 'align', 'describe', 'evaluate_vl'} | ({'kernels', 'hopper', 'nearest', 'norm'} if find_spec('triton') is None else set())
    assert not loaded(*(f'sdfvq.{m}' for m in ROOMS if m not in heavy)) & {'fastai', 'transformers'}

@pytest.mark.parametrize('name', sdfvq.__all__)
def test_public_name(name):
    value = getattr(sdfvq, name)
    assert value.__name__ == name and callable(value)
    assert value is getattr(import_module(f'sdfvq.{sdfvq._PUBLIC[name]}'), name)
    assert name in dir(sdfvq)

def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'volxelize'"): sdfvq.volxelize
    with pytest.raises(ImportError): from sdfvq import volxelize

@pytest.mark.parametrize('order', list(itertools.permutations([
    'import sdfvq.voxelize, sdfvq.view',
    'from sdfvq.voxelize import voxelize, march; from sdfvq.view import view',
    'from sdfvq import voxelize, view',
    'import sdfvq; sdfvq.march, sdfvq.voxelize, sdfvq.view',
], 2)))
def test_functions_named_like_their_module(tmp_path, order):
    "`voxelize` and `view` are functions wherever they are asked of the package, whichever import came first."
    folder = tmp_path/'sdfvq'
    folder.mkdir()
    shutil.copy(SDFVQ/'__init__.py', folder)
    (folder/'voxelize.py').write_text('def voxelize(): pass\ndef march(): pass\n', encoding='utf-8')
    (folder/'view.py').write_text('from sdfvq.voxelize import march\ndef view(): pass\n', encoding='utf-8')
    print_types = ('import sdfvq, sys; from sdfvq import voxelize, view; '
                   'print(*(type(o).__name__ for o in (sdfvq.voxelize, sdfvq.view, voxelize, view, sys.modules["sdfvq.voxelize"])))')
    assert run('; '.join([*order, print_types]), tmp_path) == 'function function function function module'

@pytest.fixture
def without_extension(tmp_path):
    shutil.copytree(SDFVQ, tmp_path/'sdfvq', ignore=shutil.ignore_patterns('_C*', '_cuda*', '__pycache__'))
    return tmp_path

def test_absent_extension_warns_once(without_extension):
    said = run(HIDE_EDITABLE + 'import torch, sdfvq.ops, sdfvq.sparse; from sdfvq.ops import ext, neighbors; '
               'print(ext, neighbors(torch.zeros(1, 4).int())[0, 13].item())', without_extension)
    assert said.count('UserWarning: sdfvq was installed without') == 1 and said.endswith('None 0')

def test_broken_extension_raises(without_extension):
    (without_extension/'sdfvq'/f'_C{importlib.machinery.EXTENSION_SUFFIXES[0]}').write_bytes(b'not a library')
    assert run('try: import sdfvq.ops\nexcept ImportError as e: print("raised")', without_extension) == 'raised'
