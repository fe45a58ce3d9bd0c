"""What a trained tokenizer's pruning heads leave of the band, and how many of its codes shapes use that are turned as well.

    python bench/heads.py FOLDER [--model small64] [--orientations 3] [--limit N] [--device cuda]

FOLDER holds meshes or fields that training has not seen. Orientations are drawn from the 48 that map the grid onto itself, so fields are turned
exactly. Usage is bounded by how many latents ask: that many for each code stand beside it."""
import argparse
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import torch

from sdfvq.core import pack_keys
from sdfvq.data import find_shapes
from sdfvq.quantize import codebook_health
from sdfvq.tokenizer import ShapeTokenizer

NEAR = 1.5   # voxels from the surface that meshing needs

def keys(coords): return pack_keys(torch.from_numpy(np.pad(coords, ((0, 0), (1, 0))))).numpy()

def kept(tok, field):
    "For heads and for the shell alone: voxels decoded by those of the band, share of the band kept, share of what meshing needs."
    tokens, band, near = tok.encode(field), keys(field.coords), np.abs(field.sdf) <= NEAR / field.band
    made = [keys(tok.decode_sdf(tokens, shell=shell).coords) for shell in (False, True)]
    return [(len(m) / len(band), np.isin(band, m).mean(), np.isin(band[near], m).mean()) for m in made]

def turned(field, order, flips):
    "The field on the same grid, axes in another order, some backwards."
    c = field.coords[:, order]
    c = np.where(flips, field.resolution - 1 - c, c).astype(c.dtype)
    rows = np.lexsort(c.T[::-1])
    return replace(field, coords=c[rows], sdf=field.sdf[rows])

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder'); p.add_argument('--model', default='small64'); p.add_argument('--orientations', type=int, default=3)
    p.add_argument('--limit', type=int); p.add_argument('--device', default='cpu')
    a = p.parse_args()
    tok = ShapeTokenizer.from_pretrained(a.model, a.device)
    fields = [tok.sdf(f) for f in find_shapes(a.folder)[:a.limit]]
    for name, row in zip(('heads', 'shell'), np.array([kept(tok, f) for f in fields]).mean(0)):
        print(f'{name}: {row[0]:.3f} times the band, {row[1]:.3%} of it kept, {row[2]:.3%} of what lies within {NEAR} voxels')
    ways = list(product(map(list, permutations(range(3))), product((False, True), repeat=3)))
    c = tok.model.config
    counts = np.zeros((c.depth, c.num_embeddings), np.int64)
    for i, k in enumerate(np.random.default_rng(0).permutation(len(ways))[:a.orientations], 1):
        for f in fields:
            for row, ids in zip(counts, tok.encode(turned(f, *ways[k])).indices.T): row += np.bincount(ids, minlength=len(row))
        health = [codebook_health(torch.from_numpy(row)) for row in counts]
        print(f"{i} orientations, {counts[0].sum() / c.num_embeddings:.1f} latents a code: usage and perplexity of each depth "
              + ', '.join(f"{h['usage']:.2%} {h['perplexity']:,.0f}" for h in health), flush=True)
