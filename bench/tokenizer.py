"""How fast a tokenizer is on real shapes: encoding and decoding one after the other, and a training step on as many as fit into it.

    python bench/tokenizer.py FOLDER [--model small] [--device cuda] [--limit 40] [--voxels 24000000]

FOLDER holds meshes or fields. Fields are made before anything is timed, every shape is met once before it is timed twice. On a GPU the codes
must be those of the CPU, but for near ties; the step is timed there too, and its kernels are told by what they do."""
import argparse, re, statistics, time

import torch

from sdfvq.data import find_shapes
from sdfvq.loader import collate
from sdfvq.losses import VQVAELoss
from sdfvq.tokenizer import ShapeTokenizer

SAME = .99        # Share of codes that CPU and GPU must agree on
GEMM = re.compile('_conv|gemm|gemv|nvjet|cutlass|wgmma|flash|fmha|_screen|_settle', re.IGNORECASE)   # convolutions, products, attention, the search for codes

def seconds(f, cuda):
    "Wall clock, as a user waits, and the result."
    if cuda: torch.cuda.synchronize()
    start = time.perf_counter()
    out = f()
    if cuda: torch.cuda.synchronize()
    return time.perf_counter() - start, out

@torch.inference_mode()
def round_trip(tok, field, cuda):
    "Milliseconds: from field to tokens, from tokens to mesh, and of these the encoder's and the decoder's."
    whole_in, tokens = seconds(lambda: tok.encode(field), cuda)
    whole_out, _ = seconds(lambda: tok.decode(tokens), cuda)
    batch = collate([field], device=tok.device)
    net_in, (q, ids, _) = seconds(lambda: tok.model.encode(batch), cuda)
    net_out, _ = seconds(lambda: tok.model.decode(ids, q.coords), cuda)
    return [1e3 * s for s in (whole_in, whole_out, net_in, net_out)]

def agreement(tok, fields, model):
    "Share of codes that the CPU gives, too."
    here = ShapeTokenizer.from_pretrained(model)
    same = [torch.from_numpy(tok.encode(f).indices == here.encode(f).indices).float().mean().item() for f in fields]
    return sum(same) / len(same)

def training_step(model, fields, voxels, precision=torch.bfloat16):
    "A step in bf16 on the first fields that fit into so many voxels: a line of what it took."
    some, n = [], 0
    for f in fields:
        if n + len(f) <= voxels: some.append(f); n += len(f)
    batch, loss = collate(some, device='cuda'), VQVAELoss()
    opt = torch.optim.AdamW(model.train().parameters(), 1e-6)
    def step():
        with torch.autocast('cuda', precision): out = model(batch)
        loss(out, batch).backward()
        opt.step(); opt.zero_grad()
    for _ in range(4): step()
    torch.cuda.reset_peak_memory_stats()
    took = statistics.median(seconds(step, True)[0] for _ in range(10))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
        step(); torch.cuda.synchronize()
    kernels = [(e.key, e.self_device_time_total) for e in p.key_averages()]
    all_, gemm = sum(t for _, t in kernels), sum(t for name, t in kernels if GEMM.search(name))
    return (f'training step of {n:,} voxels: {1e3 * took:.0f} ms, {len(some) / took:.0f} shapes a second, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB; '
            f'kernels {all_ / 1e3:.0f} ms, {gemm / all_:.0%} of them GEMM-shaped')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder'); p.add_argument('--model', default='small'); p.add_argument('--device', default='cpu')
    p.add_argument('--limit', type=int, default=40); p.add_argument('--voxels', type=int, default=24_000_000)
    a = p.parse_args()
    tok, cuda = ShapeTokenizer.from_pretrained(a.model, a.device), a.device.startswith('cuda')
    fields = [tok.sdf(f) for f in find_shapes(a.folder)[:a.limit]]
    if cuda and (same := agreement(tok, fields[:5], a.model)) < SAME: raise SystemExit(f'FAILED: {same:.2%} of the codes are the CPU\'s, {SAME:.0%} were to be')
    for f in fields: round_trip(tok, f, cuda)
    rows = [[statistics.median(times) for times in zip(*(round_trip(tok, f, cuda) for _ in range(2)))] for f in fields]
    median = lambda *columns: statistics.median(sum(r[c] for c in columns) for r in rows)
    print(f'{len(fields)} shapes, {statistics.median(map(len, fields)):,.0f} voxels; medians in ms: encode {median(0):.1f}, decode {median(1):.1f}, both {median(0, 1):.1f}; '
          f'encoder {median(2):.1f}, decoder {median(3):.1f}, both {median(2, 3):.1f}; the slowest shape {max(r[0] + r[1] for r in rows):.1f}', flush=True)
    if cuda: print(training_step(tok.model.float(), fields, a.voxels))
