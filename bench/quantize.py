"""sdfvq's quantizers on the CPU against FAISS, vector-quantize-pytorch and torch; and codebooks trained side by side.

    python bench/quantize.py [--quick] [--rows nearest] [--threads 2] [--out folder]
    python bench/quantize.py --latents FILE [--codes 8192] [--steps 200] [--batch 8192] [--device cuda] [--out folder]

The peers: pip install faiss-cpu==1.15.1 vector-quantize-pytorch==1.32.0

With --latents two codebooks, ours and the peer's, learn from the same batches in the same order, and serve vectors that neither saw. FILE is
one of `torch.save`, or .npz, with "train" (N,C) and "val" (M,C), an encoder's vectors of the shapes to learn from and of others. M may be
any number: it bounds what usage can show, so beside usage stands that of M vectors drawn as often from each code as the training vectors use it."""
import argparse, json, sys, time
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from harness import Row, growth, machine, main, peak
from sdfvq.ops import nearest_code
from sdfvq.quantize import VectorQuantizer, codebook_health, expected_usage

PEERS = dict(faiss='faiss-cpu', vector_quantize_pytorch='vector-quantize-pytorch')  # module → package
N, K, C = 100_000, 8192, 64
FEW = 20_000               # of the N, where the peer needs gigabytes or minutes for all
SAMPLE = 1000              # rows that the gates look at

# What is worked on

@cache
def vectors():
    "Vectors (N,C) and codes (K,C)."
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, C, generator=g), torch.randn(K, C, generator=g)

# The peers

def faiss_index(x, codes):
    faiss = import_module('faiss')
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(C)
    index.add(codes.numpy())
    return x, codes, lambda: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])

def their_quantizer(num_codes, dim, **options): return import_module('vector_quantize_pytorch').VectorQuantize(dim, codebook_size=num_codes, **options)

def their_eval(x, codes):
    vq = their_quantizer(K, C).eval()
    vq._codebook.embed.copy_(codes[None])
    def run():
        with torch.no_grad(): return vq(x[None, :FEW])[1][0]
    return x, codes, run

def cdist_argmin(x, codes): return x, codes, lambda: torch.cdist(x[:FEW], codes).argmin(1)

# The gates

def nearest(x, indices, ours, theirs):
    "Ours is as near as any code, in double; and how many of the peer's are the same."
    x, codes = x
    rows = torch.arange(0, len(x), max(len(x) // SAMPLE, 1))
    gaps = torch.cdist(x[rows].double(), codes.double()).square()
    over = (gaps.gather(1, ours[rows, None])[:, 0] / gaps.min(1).values - 1).max().item()
    same = '' if theirs is None else f", {(ours[:len(theirs)] == theirs).float().mean():.3%} the same as the peer's"
    return over <= 1e-6, f'at most {over:.0e} farther than the nearest in double{same}'

def gate(x, ours, theirs): return nearest(x[:2], None, ours, theirs)

def codes_as_means(x, ours, theirs):
    "One step without decay: each code with vectors is their mean."
    q, batch = x[0], x[2]
    near, got = ours.indices, q.codebook.detach()
    n = near.bincount(minlength=K)
    mean = torch.zeros(K, C, dtype=torch.float64).index_add_(0, near, batch.double()) / n.clamp(min=1)[:, None]
    off = (got - mean)[n > 0].abs().max().item()
    return off < 1e-5, f'codes within {off:.0e} of the means of their vectors'

# The table

def training():
    "Quantizers in training, both with running means and revival, and a batch."
    x, codes = vectors()
    ours, theirs = VectorQuantizer(K, C, decay=0.), their_quantizer(K, C, decay=0., threshold_ema_dead_code=2)
    with torch.no_grad(): ours.codebook.copy_(codes)
    theirs._codebook.embed.copy_(codes[None])
    return ours, theirs, x[:FEW]

def print_peak(threads):
    "What the search takes beside the indices."
    torch.set_num_threads(threads)
    x, codes = vectors()
    nearest_code(x[:100], codes)   # threads and code are there now
    out, grown = growth(lambda: nearest_code(x, codes))
    print(json.dumps(dict(GB=grown / 1e9, right=nearest((x, codes), None, out, None))))

WORK = f'nearest of {K} codes for {N:,} vectors, C={C}'

ROWS = [
    *[Row(f'nearest {name}', WORK, lambda x: nearest_code(*x[:2]), gate, lambda peer=peer: peer(*vectors()), goal, lambda x: x[2](), by, needs, share)
      for name, peer, goal, by, needs, share in (
          ('faiss', faiss_index, 12, 'FAISS IndexFlatL2, k = 1', 'faiss', 1.),
          ('vector-quantize-pytorch', their_eval, 100, f'VectorQuantize in eval mode, {FEW:,} vectors', 'vector_quantize_pytorch', FEW / N),
          ('torch', cdist_argmin, None, f'torch: cdist, argmin, {FEW:,} vectors', '', FEW / N))],
    Row('train', f'a training step of {FEW:,} vectors: nearest codes, running means, counts', lambda x: x[0](x[2]), codes_as_means, training, None,
        lambda x: x[1](x[2][None]), 'VectorQuantize, the same', 'vector_quantize_pytorch'),
    Row('memory', WORK + ': largest resident set above inputs and output', lambda x: peak(torch.get_num_threads()), lambda x, ours, theirs: ours['right'], most=.064, unit='GB'),
]

# Codebooks side by side

GOALS = dict(usage=.999, perplexity=.65, error=.85)   # share of K, share of K, share of the peer's

def batches(train, steps, batch, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps): yield train[torch.randint(len(train), (batch,), generator=g).to(train.device)]

def uses(x, codes):
    "How often each code is the nearest (K,), and the mean squared difference; of any number of vectors, in parts."
    counts, error = torch.zeros(len(codes), dtype=torch.int64), 0.
    for part in x.split(2**20):
        part = part.float().to(codes.device)
        near = nearest_code(part, codes)
        counts += near.cpu().bincount(minlength=len(codes))
        error += (part - codes[near]).square().sum(dtype=torch.float64).item()
    return counts, error / x.numel()

def codebooks(
    train, held,      # (N,C), (M,C) vectors: to learn from, and of other shapes
    num_codes=8192,   # K
    steps=200,        # Batches to learn from
    batch=8192,       # Vectors in each
    device='cpu',
) -> list:            # one dict each: name, usage, that of as many drawn as in training, and drawn evenly, perplexity / K, error (mean square over all elements), share of the peer's error, seconds
    "What codebooks make of vectors they never saw, after the same batches of the same seed."
    train = train.float().to(device)
    dim, found = train.shape[1], []
    peer = partial(their_quantizer, kmeans_init=True, threshold_ema_dead_code=2)
    for name, make, codes_of in (
            ('vector-quantize-pytorch', lambda: peer(num_codes, dim), lambda q: q._codebook.embed[0]),
            ('vector-quantize-pytorch, decay 0.99', lambda: peer(num_codes, dim, decay=.99), lambda q: q._codebook.embed[0]),
            ('ours, decay 0.99', lambda: VectorQuantizer(num_codes, dim, decay=.99, revive_every=20), lambda q: q.tables()[0])):
        torch.manual_seed(0)
        q, start = make().to(device).train(), time.perf_counter()
        with torch.no_grad():
            for x in batches(train, steps, batch): q(x if 'ours' in name else x[None])
            codes = codes_of(q).detach().contiguous()
        (counts, error), seconds = uses(held, codes), time.perf_counter() - start
        h, (expected, even) = codebook_health(counts), (expected_usage(c, len(held)) for c in (uses(train, codes)[0], torch.ones(num_codes)))
        found.append(dict(name=name, usage=h['usage'], expected=expected, even=even, perplexity=h['perplexity'] / num_codes, error=error, seconds=seconds))
        found[-1]['share'] = error / found[0]['error']
        print(found[-1], file=sys.stderr, flush=True)
    return found

def page(facts, rows):
    head = ['codebook', f"usage by {facts['a_code']} vectors a code", 'so many drawn as in training', 'perplexity / K', 'error', "share of the first's", 'seconds']
    shown = dict(usage='.2%', expected='.2%', perplexity='.3f', error='.5g', share='.3f', seconds='.0f')
    lines = [head, ['---'] * len(head), *[[r['name'], *[format(r[k], v) for k, v in shown.items()]] for r in rows]]
    ours = rows[-1]
    met = dict(usage=ours['usage'] >= GOALS['usage'], perplexity=ours['perplexity'] >= GOALS['perplexity'], error=ours['share'] <= GOALS['error'])
    said = ', '.join(f"{k} {'≤' if k == 'error' else '≥'} {v:g} {'met' if met[k] else 'missed'}" for k, v in GOALS.items())
    return '\n'.join(['# Codebooks from the same batches, on vectors of other shapes', '', ', '.join(f'{k} {v}' for k, v in facts.items()) + '.', '',
                      *[f"| {' | '.join(cells)} |" for cells in lines], '',
                      'A usage about that of as many vectors drawn from the training histogram is what so few can show; below it are codes that only the training '
                      f"shapes use. Codes that all come alike would show {ours['even']:.3%}.",
                      '', f'Goals: {said}.', ''])

def side_by_side(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--latents', type=Path, required=True)
    for name, value in dict(codes=8192, steps=200, batch=8192).items(): p.add_argument(f'--{name}', type=int, default=value)
    p.add_argument('--device', default='cpu')
    p.add_argument('--out', type=Path)
    a = p.parse_args(argv)
    z = {k: torch.from_numpy(v) for k, v in np.load(a.latents).items()} if a.latents.suffix == '.npz' else torch.load(a.latents, weights_only=True)
    rows = codebooks(z['train'], z['val'], a.codes, a.steps, a.batch, a.device)
    facts = dict(K=a.codes, C=z['train'].shape[1], train=f"{len(z['train']):,}", held_out=f"{len(z['val']):,}",
                 a_code=f"{len(z['val']) / a.codes:.1f}", steps=a.steps, batch=f'{a.batch:,}')
    print(text := page(facts, rows))
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        (a.out/'codebooks.md').write_text(text, encoding='utf-8')
        (a.out/'codebooks.json').write_text(json.dumps(dict(facts=facts, rows=rows), indent=1) + '\n', encoding='utf-8')

if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: sys.exit(print_peak(int(sys.argv[2])))
    if '--latents' in ''.join(sys.argv[1:]): sys.exit(side_by_side(sys.argv[1:]))
    sys.exit(main(__doc__, 'Quantizers on the CPU', 'quantize_cpu', ROWS, lambda: machine(PEERS)))
