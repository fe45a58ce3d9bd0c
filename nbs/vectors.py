"""Public vectors of Direct3D-S2's own code, for the tests of several notebooks.

    python nbs/vectors.py FOLDER      # writes nbs/data from the vectors as they were published

All is taken as it is, but of the wide case only what goes in and comes out: the narrow one has every layer."""
import json, sys, zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).resolve().parent/'data'

def case(name):
    "Arrays of a case, and what the original's constructor was given."
    z = np.load(DATA/f'{name}.npz')
    return z, json.loads(str(z['config']))

def recipe_weights(shapes):
    "The vectors' own recipe: a parameter's name and shape decide its values."
    def make(name, shape):
        w = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith('bias'): w = 0.1 * w
        elif name.endswith('kernel'): w = w / np.sqrt((9 if len(shape) == 3 else 1) * shape[-2])
        elif len(shape) == 1: w = 1 + 0.1 * w
        else: w = w / np.sqrt(shape[1])
        return torch.from_numpy(w.astype(np.float32))
    return {name: make(name, tuple(shape)) for name, shape in shapes.items()}

def take(folder):
    "Writes what the notebooks need; the same input gives the same bytes."
    for name in ('case_a64_groups4', 'shapellm_grouping', 'case_a_tiny'):
        arrays = dict(np.load(Path(folder)/f'{name}.npz'))
        np.savez_compressed(DATA/f'{name}.npz', **{k: v for k, v in arrays.items() if name != 'case_a_tiny' or not k.startswith('t_')})

if __name__ == '__main__': take(*sys.argv[1:])
