"""sdfvq's losses on the CPU against torch and a Python dict: the seed case, where 100,000 voxels became 42,632,192.

    python bench/losses.py [--quick] [--rows dict] [--threads 2] [--out folder]"""
import json, sys
from functools import cache

import torch
from torch.nn import functional as F

from harness import Row, forget_peak, machine, main, peak, resident
from sdfvq.losses import VQVAELoss
from sdfvq.sparse import SparseTensor, pool, subdivide

LATENTS, INPUTS, SIDE, DICT_ROWS = 83_266, 100_000, 64, 1_000_000   # of a 512³ grid at factor 8

# What is worked on

def blocks(x):
    "Every voxel that decoding makes of the latents which hold a voxel of `x`."
    for _ in range(3): x = pool(x)
    for _ in range(3): x = subdivide(x)
    return x

def scattered():
    "INPUTS voxels, at least one in each of LATENTS cells of 8³."
    g = torch.Generator().manual_seed(0)
    cell = torch.randperm(SIDE**3, generator=g)[:LATENTS]
    rest = torch.randperm(LATENTS * 511, generator=g)[:INPUTS - LATENTS]                    # other places of the same cells
    first = torch.randint(0, 512, (LATENTS,), generator=g)
    cell, place = torch.cat([cell, cell[rest // 511]]), torch.cat([first, (first[rest // 511] + 1 + rest % 511) % 512])
    at = lambda i, n: torch.stack([i // n**2, i // n % n, i % n], 1)
    return SparseTensor.from_unsorted(F.pad(8 * at(cell, SIDE) + at(place, 8), (1, 0)), 2 * torch.rand(INPUTS, 1, generator=g) - 1)

def as_batch(x): return dict(sparse_sdf=x.feats, sparse_index=x.coords[:, 1:], batch_idx=x.coords[:, 0])

@cache
def seed():
    "The reconstruction, whose features want a gradient; the input, and the batch that holds it."
    target = scattered()
    coords = blocks(target).coords
    y = 2 * torch.rand(len(coords), 1, generator=torch.Generator().manual_seed(1)) - 1
    return SparseTensor(coords, y.requires_grad_()), target, as_batch(target)

def keys(coords): return ((coords[:, 0].long() << 16 | coords[:, 1]) << 16 | coords[:, 2]) << 16 | coords[:, 3]

@cache
def dictionary():
    "Building it is not timed."
    return *seed(), {tuple(row): i for i, row in enumerate(seed()[1].coords.tolist())}

@cache
def ball(r=33.):
    "A ±4 band around a sphere, and the voxels that decoding makes of it with their true values."
    i = torch.cartesian_prod(*[torch.arange(88)] * 3)
    sdf = lambda c: ((c - 43.5).float().norm(dim=1, keepdim=True) - r).div(4).clamp(-1, 1)
    band = i[sdf(i)[:, 0].abs() < 1]
    target = SparseTensor(F.pad(band, (1, 0)).int(), sdf(band))
    truth = blocks(target)
    truth = truth.replace(sdf(truth.coords[:, 1:]))
    return truth.replace(torch.zeros_like(truth.feats).requires_grad_()), truth, as_batch(target)

# Both sides give loss and gradient

def with_gradient(loss, y): return loss.detach(), *torch.autograd.grad(loss, y)

def aligned(x, loss=VQVAELoss('l1', lambda_extra=0, lambda_sharp=0)): return with_gradient(loss(dict(recon=x[0]), x[2]), x[0].feats)

def every(x): return aligned(x, VQVAELoss())

def isin(x):
    "Both lists are sorted, so what they share stands in the same order."
    recon, target = x[:2]
    mine, theirs = keys(recon.coords), keys(target.coords)
    loss = F.l1_loss(recon.feats[torch.isin(mine, theirs)], target.feats[torch.isin(theirs, mine)])
    return with_gradient(loss, recon.feats)

def look_up(x):
    "The first DICT_ROWS rows, as a loop over voxels does it."
    recon, target, _, places = x
    pairs = [(row, at) for row, c in enumerate(recon.coords[:DICT_ROWS].tolist()) if (at := places.get(tuple(c), -1)) >= 0]
    rows, at = torch.tensor(pairs).T
    return with_gradient((recon.feats[rows] - target.feats[at]).abs().sum() / INPUTS, recon.feats)

# The gates

def same(x, ours, theirs):
    gap, touched = ((a - b).abs().max().item() for a, b in zip(ours, theirs)), (ours[1] != 0).sum().item()
    loss, grad = gap
    return loss <= 1e-5 and grad <= 1e-9 and touched == INPUTS, f'loss {loss:.0e} apart, gradients {grad:.0e}, {touched:,} voxels have one'

def same_beginning(x, ours, theirs):
    "The peer did a part: its loss is a part too, its gradient there must be ours."
    gap = (ours[1] - theirs[1])[:DICT_ROWS].abs().max().item()
    return gap <= 1e-9 and theirs[1].any().item(), f'gradients {gap:.0e} apart on the first {DICT_ROWS:,} rows'

def true_field_costs_nothing(x, ours, theirs):
    loss, truth = VQVAELoss(), x[1]
    total = loss(dict(recon=truth), x[2]).item()
    return total <= 1e-6 and len(loss.parts['extra'].shape) == 0 and bool(ours[1].all()), f'the true field has loss {total:.0e}, every other voxel a gradient'

# The table

def print_peak(threads):
    "The high-water mark of this program while it computes, voxels and gradient with it."
    torch.set_num_threads(threads)
    x = seed()
    forget_peak()
    loss, grad = aligned(x)
    print(json.dumps(dict(GB=resident('VmHWM') / 1e9, voxels=len(x[0]), touched=(grad != 0).sum().item())))

WORK = f'L1 on {INPUTS:,} of {512 * LATENTS:,} voxels and its gradient'

ROWS = [
    Row('seed isin', WORK, aligned, same, seed, None, isin, 'torch: pack keys, isin both ways', most=1.0),
    Row('seed dict', WORK, aligned, same_beginning, dictionary, None, look_up, f'Python dict, its time for {DICT_ROWS:,} rows scaled up',
        share=DICT_ROWS / (512 * LATENTS), most=1.0),
    Row('seed memory', WORK + ': largest resident set, everything in it', lambda x: peak(torch.get_num_threads()),
        lambda x, ours, theirs: (ours['voxels'] == 512 * LATENTS and ours['touched'] == INPUTS, f"{ours['voxels']:,} voxels, {ours['touched']:,} have a gradient"),
        most=3.0, unit='GB'),
    Row('all terms', f'all terms and their gradient, {len(ball()[0]):,} voxels, {len(ball()[2]["batch_idx"]):,} of them given', every, true_field_costs_nothing, ball),
]

if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: sys.exit(print_peak(int(sys.argv[2])))
    sys.exit(main(__doc__, 'Losses on the CPU', 'losses_cpu', ROWS, lambda: machine({})))
