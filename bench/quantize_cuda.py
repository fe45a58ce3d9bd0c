"""The nearest code on a GPU, exact, against torch; what other systems take is quoted.

    python bench/quantize_cuda.py [--rows 64] [--out folder]"""
import sys

import torch

from harness import Row, gpu, main
from sdfvq.ops import nearest_code

QUOTED = 'quoted, H100: {}'
N, K = 2**20, 8192

def vectors(channels, tails=False):
    def make():
        g = torch.Generator('cuda').manual_seed(0)
        draw = lambda *size: torch.randn(*size, generator=g, device='cuda')
        x, codes = draw(N, channels), draw(K, channels)
        return (x * draw(N, 1).exp() if tails else x), codes
    return make

def in_pieces(f): return lambda x: torch.cat([f(part, x[1]) for part in x[0].split(2**14)])

def addmm_argmin(x, codes): return torch.addmm(codes.square().sum(1) / 2, x, codes.T, alpha=-1).argmin(1)

def in_double(x, codes): return (codes.double().square().sum(1) / 2 - x.double() @ codes.double().T).argmin(1)

def exact(x, ours, theirs):
    true = in_pieces(in_double)(x)
    wrong, others = ((a != true).sum().item() if a is not None else None for a in (ours, theirs))
    return wrong == 0, f"all {len(true):,} as in double" + ('' if others is None else f", of the peer's {others} not") if wrong == 0 else f'{wrong} of {len(true):,} differ'

PEER = dict(peer=in_pieces(addmm_argmin), by='torch: addmm, argmin, fp32, 16,384 at a time')

ROWS = [
    Row('nearest 64', f'nearest of {K} codes for {N:,} vectors, C=64', lambda x: nearest_code(*x), exact, vectors(64), most=2.4e-3, device='cuda', **PEER),
    Row('nearest 64, others', 'the same', lambda x: nearest_code(*x), exact, vectors(64), device='cuda',
        by=QUOTED.format('flash-kmeans 4.48 ms at 99.4 % right, vector-quantize-pytorch 255 ms')),
    Row('nearest 64, tails', 'the same, lengths from a log-normal distribution', lambda x: nearest_code(*x), exact, vectors(64, True), device='cuda', **PEER),
    Row('nearest 32', f'nearest of {K} codes for {N:,} vectors, C=32', lambda x: nearest_code(*x), exact, vectors(32), device='cuda', **PEER)]

if __name__ == '__main__':
    torch.backends.cuda.matmul.allow_tf32 = False
    sys.exit(main(__doc__, 'Nearest codes on the GPU', 'quantize_cuda', ROWS, gpu))
