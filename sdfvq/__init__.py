"""Any 3D shape as a short list of discrete tokens, and back."""
__version__ = "0.0.1"

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what checkers and editors see of the names below
    from .mesh import load_mesh as load_mesh
    from .tokenizer import ShapeTokenizer as ShapeTokenizer
    from .view import view as view
    from .voxelize import march as march, voxelize as voxelize
    from .vqvae import SparseSDFVQVAE as SparseSDFVQVAE

_PUBLIC = dict(load_mesh='mesh', voxelize='voxelize', march='voxelize', ShapeTokenizer='tokenizer',
               SparseSDFVQVAE='vqvae', view='view')  # name -> module that has it, imported on first use
__all__ = list(_PUBLIC)

def __getattr__(name):
    if name not in _PUBLIC: raise AttributeError(f"module 'sdfvq' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f'sdfvq.{_PUBLIC[name]}'), name)
    return value

def __dir__(): return sorted({*globals(), *_PUBLIC})

class _Package(ModuleType):
    "After any import of `sdfvq.voxelize`, Python binds that module to `voxelize` here: our function of that name stays instead."
    def __setattr__(self, name, value):
        if name in _PUBLIC and isinstance(value, ModuleType): value = getattr(value, name)
        super().__setattr__(name, value)

sys.modules[__name__].__class__ = _Package
