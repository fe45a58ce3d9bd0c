"""sdfvq's sparse engine on the CPU against spconv's CPU wheel, torch and this machine's matrix product.

    python bench/sparse.py [--quick] [--rows forward] [--threads 2] [--out folder]

spconv's CPU wheel gives wrong rows on more than one thread: it runs on one, and its row on all has no gate of its own."""
import json, sys
from functools import cache
from importlib import import_module

import torch

from harness import Row, growth, machine, main, peak
from sdfvq.conv import to_spconv
from sdfvq.ops import conv, mirrored, neighbors, neighbors_reference

PEERS = dict(spconv='spconv')  # module → package
THIRD, SAMPLE = 1 / 3, 1000    # of the torus below, as one CPU can bear it; rows that the gates look at

# What is worked on

@cache
def torus(scale=1.0):
    "Coordinates (N,4) of the voxels within 4 of a torus of radii 120 and 26.4; for 1, as at R=512, N is 1,000,272."
    R, r = 120 * scale, 26.4 * scale
    side, height = int(R + r) + 5, int(r) + 5
    x, y, z = torch.meshgrid(*(torch.arange(2 * n, dtype=torch.float64) - n + .5 for n in (side, side, height)), indexing='ij')
    inside = (((x**2 + y**2).sqrt() - R)**2 + z**2).sqrt().sub(r).abs() <= 4
    return torch.nn.functional.pad(inside.nonzero(), (1, 0)).int()

@cache
def kernel_map(scale=1.0): return neighbors(torus(scale))

@cache
def pairs(scale=1.0): return int((kernel_map(scale) >= 0).sum())

def layer(scale, channels, dtype=torch.float32):
    "Features (N,C), weights (27,C,C) that keep the variance, the kernel map and an output's gradient."
    g, n = torch.Generator().manual_seed(0), len(torus(scale))
    feats, grad = (torch.randn(n, channels, generator=g).to(dtype) for _ in range(2))
    weight = torch.randn(27, channels, channels, generator=g) / (25 * channels)**.5
    return feats, weight.to(dtype), kernel_map(scale), grad

def flops(scale, channels): return 2 * pairs(scale) * channels**2

# The peers

def with_gradients(f, feats, weight, grad):
    feats, weight = feats.detach().requires_grad_(), weight.detach().requires_grad_()
    out = f(feats, weight)
    return out.detach(), *torch.autograd.grad(out, (feats, weight), grad)

def by_offset(feats, weight, table):
    "Torch alone: the pairs of each offset gathered, multiplied and added where they belong."
    out = feats.new_zeros(len(feats), weight.shape[2])
    for k, (rows, places) in enumerate(table):
        out = out.index_add(0, places, feats.index_select(0, rows) @ weight[k])
    return out

def pair_lists(map):
    return [(column[there].long(), there.nonzero()[:, 0]) for column in map.unbind(1) for there in [column >= 0]]

def spconv_layer(scale, channels):
    "(feats, weight) → out, as spconv has it: coordinates (b,z,y,x), weights (Cout,kz,ky,kx,Cin); its map is made once, as ours is."
    sp, ops = import_module('spconv.pytorch'), import_module('spconv.pytorch.ops')
    ops.get_current_stream = lambda: 0     # its backward asks for a CUDA stream, on the CPU too
    coords = torus(scale)[:, [0, 3, 2, 1]].contiguous()
    net = sp.SubMConv3d(channels, channels, 3, bias=False, indice_key='torus', algo=import_module('spconv.core').ConvAlgo.Native)
    x = sp.SparseConvTensor(torch.zeros(len(coords), channels), coords, (coords[:, 1:].amax(0) + 1).tolist(), 1)
    on_one_thread(net)(x)
    del net.weight                         # a parameter; the weights that it is called with take its place
    def run(feats, weight):
        net.weight = to_spconv(weight)
        return net(x.replace_feature(feats)).features
    return run

def on_one_thread(f):
    "spconv's loops are torch's OpenMP's, and give wrong rows on more."
    def run(*args):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try: return f(*args)
        finally: torch.set_num_threads(threads)
    return run

# The gates

def exact(feats, weight, map, grad):
    "Rows of the output and of the features' gradient, and the weights' gradient at some offsets, summed in double; which rows and offsets."
    rows, offsets = torch.arange(0, len(feats), max(len(feats) // SAMPLE, 1)), torch.tensor([0, 13, 22])
    feats, weight, grad = (x.double() for x in (feats, weight, grad))
    def at(x, map): return torch.where((map >= 0)[..., None], x[map.long()], 0.)
    def sum_over(x, w): return torch.einsum('pkc,kcd->pd', at(x, map[rows]), w)
    return (sum_over(feats, weight), sum_over(grad, mirrored(weight)),
            torch.stack([at(feats, map[:, k]).T @ grad for k in offsets])), (rows, rows, offsets)

def gap(got, want): return ((got.double() - want).abs().max() / want.abs().max()).item()

def same_as_exact(bound):
    "Both sides, outputs or outputs with gradients, against sums in double."
    def gate(x, ours, theirs):
        want, which = exact(*x[:4])
        listed = lambda out: out if isinstance(out, tuple) else (out,)
        gaps = [max(gap(y[i], w) for y, w, i in zip(listed(out), want, which)) for out in (ours, theirs) if out is not None]
        return max(gaps) <= bound, f"{' and '.join(f'{v:.0e}' for v in gaps)} of the largest off sums in double"
    return gate

def same_output(bound):
    "Ours only: the peer does other work, or is known to be wrong."
    gate = same_as_exact(bound)
    return lambda x, ours, theirs: gate(x, ours, None)

def same_map(x, ours, theirs):
    ok = torch.equal(theirs, ours)
    return ok, f"maps {'identical' if ok else 'differ'}, {(ours >= 0).sum() / len(ours):.2f} neighbours"

# The table

def forward(x): return conv(*x[:3])

def backward(x):
    feats, weight, map, grad = x[:4]
    return with_gradients(lambda f, w: conv(f, w, map), feats, weight, grad)

def set_up(channels, peer=None, dtype=torch.float32):
    "The layer, and what the peer needs."
    def setup():
        x = layer(THIRD, channels, dtype)
        return *x, spconv_layer(THIRD, channels) if peer == 'spconv' else pair_lists(x[2]) if peer == 'torch' else None
    return setup

def spconv_forward(x): return x[4](*x[:2])

def spconv_backward(x): return with_gradients(x[4], x[0], x[1], x[3])

def torch_forward(x): return by_offset(*x[:2], x[4])

def torch_backward(x): return with_gradients(lambda f, w: by_offset(f, w, x[4]), x[0], x[1], x[3])

def product(x): return SQUARE @ SQUARE

def print_peak(channels, threads):
    "What a convolution takes beside its output."
    torch.set_num_threads(threads)
    x = layer(THIRD, channels)
    conv(*x[:2], x[2][:100])    # threads and code are there now
    out, grown = growth(lambda: forward(x))
    print(json.dumps(dict(GB=grown / 1e9, right=same_output(1e-5)(x, out, None))))

SQUARE = torch.rand(2048, 2048)
ONE, ALL = "spconv's CPU wheel, one thread", "spconv's CPU wheel, all threads (wrong rows)"
PAIRS = 'torch: index_select, mm, index_add for each offset'

def work(what, channels): return f'3×3×3 convolution{what}, {len(torus(THIRD)):,} voxels of a ±4 band, C={channels}'

ROWS = [
    *[Row(f'{name} {C} {peer}', work(what, C), ours, same_as_exact(1e-5), set_up(C, peer), goal if C == 64 else None, theirs, by,
          peer if peer == 'spconv' else '')
      for name, what, ours, sides in (
          ('forward', '', forward, (('spconv', 15, on_one_thread(spconv_forward), ONE), ('torch', None, torch_forward, PAIRS))),
          ('backward', ' with both gradients', backward,
           (('spconv', None, on_one_thread(spconv_backward), ONE), ('torch', None, torch_backward, PAIRS))))
      for peer, goal, theirs, by in sides for C in (16, 64, 128)],
    Row('forward 64 spconv threads', work('', 64), forward, same_output(1e-5), set_up(64, 'spconv'), None, spconv_forward, ALL, 'spconv'),
    *[Row(f'{name} {C} product', work(what, C) + ', useful flops', ours, same_output(1e-5), set_up(C), .5, product,
          'fp32 matrix product of 2048³, its time for as many flops', share=2 * 2048**3 / (times * flops(THIRD, C)))
      for name, what, ours, times in (('forward', '', forward, 1), ('backward', ' with both gradients', backward, 3))
      for C in (16, 64, 128)],
    Row('forward 64 bf16', work('', 64) + ', bf16 against fp32', forward, same_output(2**-8), set_up(64, dtype=torch.bfloat16), None,
        lambda x: conv(x[0].float(), x[1].float(), x[2]), 'ours in fp32, with the conversion'),
    Row('map', f'kernel map of {len(torus(THIRD)):,} voxels', neighbors, same_map, lambda: torus(THIRD), None, neighbors_reference,
        'torch: order checked, 27 searchsorted'),
    Row('memory 64', work('', 64) + ': largest resident set above inputs and output', lambda x: peak(64, torch.get_num_threads()),
        lambda x, ours, theirs: ours['right'], most=.064, unit='GB'),
]

if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: sys.exit(print_peak(*map(int, sys.argv[2:4])))
    sys.exit(main(__doc__, 'The sparse engine on the CPU', 'sparse_cpu', ROWS, lambda: machine(PEERS)))
