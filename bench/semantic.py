"""Semantic ids: the catalogue against a Python dict and the original's search, a corpus of a million, and collisions against plain RQ-VAE.

    python bench/semantic.py [--quick] [--rows lookup] [--threads 2] [--out folder]
    python bench/semantic.py --gpu [--out folder]
    python bench/semantic.py --collisions [--steps 1000] [--items 12000] [--device cuda] [--out folder]

With --collisions two models learn from the same batches in the same order: ours, and RQ-VAE as published, which has no standardisation, no
k-means start and no revival, and passes each level's residual straight through; residual k-means stands beside them. The items are generated:
unit vectors of 768 channels around a common mean, 600 clusters of 40 topics, spectra that fall as 1/√i."""
import argparse, json, math, sys, time
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from harness import Row, gpu, growth, machine, main, peak
from sdfvq.catalogue import Catalogue, collisions, from_keys, resolve
from sdfvq.codebook import kmeans
from sdfvq.rqvae import ResidualKMeans, RqVae, mlp
from sdfvq.train_items import RqVaeLoss, VectorLoader

K, L = 256, 3
MILLION = 1_000_000
PART = 50_000              # vectors that stand for a million, which would take 3 GB

def items(n, d=768, seed=0):
    "Unit vectors (n,d) in clusters."
    g = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1).float()**-.5
    draw = lambda k: F.normalize(torch.randn(k, d, generator=g) * spectrum)
    mean, topic, cluster = draw(1), draw(40), draw(600)
    owner = torch.randint(40, (600,), generator=g)
    of = torch.multinomial(torch.rand(600, generator=g)**2, n, True, generator=g)
    x = F.normalize(1.2 * mean + .6 * topic[owner[of]] + .45 * cluster[of] + .45 * draw(n))
    return x @ torch.linalg.qr(torch.randn(d, d, generator=g))[0]      # channels that are like each other, as a network's are

# Collisions

class Plain(nn.Module):
    "RQ-VAE as published: no biases, codes by gradient, squares summed, each level passed straight through."
    def __init__(self, widths=(768, 512, 256, 128, 32)):
        super().__init__()
        self.encoder, self.decoder = mlp(widths), mlp(widths[::-1])
        for m in [*self.encoder, *self.decoder]:
            if isinstance(m, nn.Linear): m.reset_parameters(); m.bias = None
        self.codes = nn.Parameter(torch.empty(L, K, widths[-1]).uniform_(-1 / K, 1 / K))

    @torch.no_grad()
    def start(self, x):
        "Its k-means, which its later versions have."
        rest = self.encoder(x)
        for codes in self.codes:
            codes.copy_(kmeans(rest, K, 10))
            rest = rest - codes[torch.cdist(rest, codes).argmin(1)]

    def forward(self, x):
        rest, total, loss, ids = self.encoder(x), 0, 0, []
        for codes in self.codes:
            near = torch.cdist(rest.detach(), codes.detach()).argmin(1)
            q = codes[near]
            loss = loss + (rest.detach() - q).square().sum(1) + .25 * (rest - q.detach()).square().sum(1)
            total, rest = total + rest + (q - rest).detach(), rest - (rest + (q - rest).detach())
            ids.append(near)
        return torch.stack(ids, 1), (loss + (self.decoder(total) - x).square().sum(1)).mean()

def learn(model, loss, x, steps, lr=1e-3):
    "AdamW with cosine; batches of 640 by the epoch's number."
    opt, batches = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4), VectorLoader(x, 640)
    def endless():
        while True: yield from batches
    for step, (b, _) in zip(range(steps), endless()):
        for group in opt.param_groups: group['lr'] = lr * (.01 + .99 * (1 + math.cos(math.pi * step / steps)) / 2)
        opt.zero_grad(); loss(model.train(), b).backward(); opt.step()
    return model.eval()

def compare(a):
    "The page."
    x, weigh, lines = items(a.items).to(a.device), RqVaeLoss(), []
    def row(name, make, ids):
        torch.manual_seed(0)
        begin = time.perf_counter(); model = make(); took = time.perf_counter() - begin
        with torch.no_grad(): found = ids(model)
        usage = ' / '.join(f'{100 * len(c.unique()) / K:.1f}' for c in found.T)
        lines.append(f"| {name} | {len(collisions(found, K)):,} | {len(collisions(found, K)) / len(x):.2%} | {usage} | {took:.0f} s |"); print(lines[-1], file=sys.stderr, flush=True)
    def ours(steps):
        model = RqVae().to(a.device)
        model.start(x)
        return learn(model, lambda m, b: weigh(m(b), b), x, steps)
    def plain(start):
        model = Plain().to(a.device)
        if start: model.start(x)
        return learn(model, lambda m, b: m(b)[1], x, a.steps)
    def closed():
        model = ResidualKMeans().to(a.device)
        model.start(x)
        return model
    row('`RqVae`', lambda: ours(a.steps), lambda m: m.semantic_ids(x))
    row('plain RQ-VAE', lambda: plain(False), lambda m: m(x)[0])
    row('plain RQ-VAE, k-means start', lambda: plain(True), lambda m: m(x)[0])
    row('`ResidualKMeans`', closed, lambda m: m.semantic_ids(x))
    text = '\n'.join(['# Collisions of semantic ids', '', f'{a.items:,} items of 768 channels, {L} levels of {K} codes, {a.steps:,} steps of 640; before resolution. Usage in % of each level.', '',
                      '| model | collisions | share | usage | time |', '|---|---|---|---|---|', *lines, ''])
    print(text)
    (a.out/'semantic_collisions.md').write_text(text, encoding='utf-8')

# The table

@cache
def catalogue(n):
    g = torch.Generator().manual_seed(0)
    sizes = [K] * (3 if n <= MILLION else 4)
    return Catalogue(from_keys(torch.randint(math.prod(sizes), (2 * n,), generator=g).unique()[torch.randperm(n, generator=g)], sizes), K)

def asked(n, length=None):
    "A catalogue, tuples to ask it for, half of which are items."
    c, g = catalogue(MILLION), torch.Generator().manual_seed(1)
    ids = torch.randint(K, (n, c.depth), generator=g)
    ids[::2] = c.ids[torch.randint(len(c), (len(ids[::2]),), generator=g)]
    return c, ids[:, :length].contiguous()

def as_dict(x):
    c, ids = x
    whose = {tuple(t): i for i, t in enumerate(c.ids.tolist())}
    return [whose.get(tuple(t), -1) for t in ids.tolist()]

def every_row(x):
    "The original's way: each prefix and next code against the whole corpus; of 8 prefixes."
    c, prefix = x
    l = prefix.shape[1]
    return torch.stack([torch.zeros(K, dtype=torch.bool).index_fill_(0, c.ids[(c.ids[:, :l] == p).all(1), l], True) for p in prefix[:8]])

def crowded():
    "A million tuples of which a third collide, and candidates."
    g = torch.Generator().manual_seed(2)
    ids = (K * torch.rand(MILLION, L, generator=g)**2).long()
    return ids, lambda i: (ids[i][:, None] + torch.tensor([[0, 0, k] for k in range(1, 17)])) % K

def corpus():
    model = RqVae().eval()
    x = items(PART)
    model.start(x[:10_000])
    return model, x

def near_in_double(x, ours, _):
    "The codes of some rows, level by level, in double."
    model, vectors = x
    z = model.embed(vectors[:1000]).detach().double()
    for l, near in enumerate(ours[:1000].T):
        gaps = torch.cdist(z, model.quantizer.codebook[l].double())
        over = (gaps.gather(1, near[:, None])[:, 0] / gaps.min(1).values - 1).max().item()
        if over > 1e-4: return False, f'level {l}: {over:.0e} farther than the nearest'
        z = z - model.quantizer.codebook[l][near].double()
    return True, 'the nearest in double at every level'

def corpus_on_gpu():
    model, x = corpus()
    return model.cuda(), x.cuda().repeat(MILLION // PART, 1)

def million(x): return [x[0].semantic_ids(x[1]) for _ in range(MILLION // PART)][0]

def unique(x, ours, _):
    n = len(collisions(ours, K))
    return n == 0 and torch.equal(ours, resolve(*[x[0], K, x[1]])), f"{len(collisions(x[0], K)):,} moved, {n} collide, twice the same"

ROWS = [
    Row('tokenize', f'{MILLION:,} vectors of 768, {L} × {K} codes', million, near_in_double, corpus),
    Row('resolve', f'{MILLION:,} tuples, 16 candidates each', lambda x: resolve(x[0], K, x[1]), unique, crowded),
    Row('lookup', f'{MILLION:,} tuples among {MILLION:,}', lambda x: x[0].lookup(x[1]), lambda x, a, b: (a.tolist() == b, 'the same items'), lambda: asked(MILLION), peer=as_dict, by='dict, made and asked'),
    Row('allowed', f'256 × 50 prefixes of 2 codes among {MILLION:,}', lambda x: x[0].allowed(x[1]), lambda x, a, b: (torch.equal(a[:8], b), 'the same codes'), lambda: asked(12_800, 2),
        peer=every_row, by='each prefix against every row', share=8 / 12_800),
    Row('memory', '10,000,000 items of 4 codes', lambda _: peak('memory'), lambda x, a, b: (a['held'] < 1, f"{a['held']:.2f} GB held"), most=1, unit='GB'),
]

GPU = [Row('tokenize', f'{MILLION:,} vectors of 768, {L} × {K} codes', lambda x: x[0].semantic_ids(x[1]), near_in_double, corpus_on_gpu, most=2.0, device='cuda')]

def print_peak():
    "What a catalogue of ten million takes, and what making it takes beyond the ids it is given."
    g = torch.Generator().manual_seed(0)
    ids = from_keys(torch.arange(10 * MILLION) * 400 + torch.randint(400, (10 * MILLION,), generator=g), [K] * 4)
    class Made:
        def __init__(self): self.c = Catalogue(ids, K); self.nbytes = 0
    made, more = growth(Made)
    held = sum(v.nbytes for v in vars(made.c).values() if isinstance(v, torch.Tensor))
    print(json.dumps(dict(GB=(ids.nbytes + more) / 1e9, held=held / 1e9)))

if __name__ == '__main__':
    if '--peak' in sys.argv: print_peak(); sys.exit()
    if '--gpu' in sys.argv: sys.argv.remove('--gpu'); sys.exit(main(__doc__, 'Semantic ids on a GPU', 'semantic_cuda', GPU, gpu))
    if '--collisions' not in sys.argv: sys.exit(main(__doc__, 'Semantic ids on the CPU', 'semantic_cpu', ROWS, lambda: machine({})))
    p = argparse.ArgumentParser()
    p.add_argument('--collisions', action='store_true'); p.add_argument('--steps', type=int, default=1000); p.add_argument('--items', type=int, default=12_000)
    p.add_argument('--device', default='cpu'); p.add_argument('--out', type=Path, default=Path(__file__).parent/'results')
    compare(p.parse_args())
