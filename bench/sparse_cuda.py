"""sdfvq's sparse engine on a GPU: right first, then the time. What other systems take is quoted; torch's gather and scatter run beside ours.

    python bench/sparse_cuda.py [--rows map layers] [--out folder]"""
import sys

import torch
from torch.nn import functional as F

from harness import Row, gpu, main
from sdfvq.conv import load_backend
from sdfvq.ops import conv, group_norm, neighbors, neighbors_reference
from sdfvq.sparse import SparseTensor
from sdfvq.vqvae import SparseSDFVQVAE, preset
from sparse import torus

QUOTED = 'quoted, H100: {}'
N = 1_000_272  # voxels of the torus

def thin(resolution=504, thickness=1.25):
    "Voxels (N,4) int32 of a shell as thin as a surface: FlexGEMM's own shape."
    at = torch.arange(resolution) - (resolution - 1) / 2
    slabs = [((d := (x**2 + at[:, None]**2 + at**2).sqrt()) >= resolution / 2 - thickness) & (d <= resolution / 2) for x in at]
    return torch.cat([F.pad(slab.nonzero(), (2, 0)).index_fill_(1, torch.tensor([1]), i) for i, slab in enumerate(slabs)]).int()

def layers(channels, depth, shape=torus):
    "Coordinates, features, a weight for each layer, and a gradient of what comes out, in fp16."
    def make():
        g, coords = torch.Generator('cuda').manual_seed(0), shape().cuda()
        draw = lambda *size, scale=1.: (scale * torch.randn(*size, generator=g, device='cuda')).half()
        return (coords, draw(len(coords), channels).requires_grad_(),
                [draw(27, channels, channels, scale=(24.7 * channels)**-.5).requires_grad_() for _ in range(depth)], draw(len(coords), channels))
    return make

def forward(f):
    "Layers one after the other; `f(feats, weight, map)` is the convolution."
    def run(x):
        coords, feats, weights, _ = x
        map = neighbors(coords)
        for w in weights: feats = f(feats, w, map)
        return feats
    return run

def there_and_back(f):
    def run(x):
        out = forward(f)(x)
        return torch.autograd.grad(out, [x[1], *x[2]], x[3])
    return run

def scatter(feats, weight, map):
    "Gather, multiply, add: an offset at a time, on pairs."
    out = feats.new_zeros(len(map), weight.shape[2], dtype=torch.float32)
    for k in range(27):
        p = (map[:, k] >= 0).nonzero()[:, 0]
        out = out.index_add(0, p, (feats[map[p, k].long()] @ weight[k]).float())
    return out.to(feats.dtype)

def by_spconv(x):
    "The layers and their gradients as spconv has them, its kernel map included."
    coords, feats, weights, grad = x
    y, layer = SparseTensor(coords, feats), load_backend('spconv')
    for w in weights: y = y.replace(layer(y, y.feats, w))
    return torch.autograd.grad(y.feats, [feats, *weights], grad)

def plain(feats, weight, map):
    "The definition in torch, an offset at a time."
    return sum(torch.where((map[:, k] >= 0)[:, None], feats[map[:, k].clamp(min=0).long()], 0.) @ weight[k] for k in range(27))

def close(x, ours, theirs):
    "Relative errors (L2) against the same operands in fp32, TF32 off: one layer by its definition, several by our own kernels in fp32."
    coords, feats, weights, grad = x
    wide = coords, feats.detach().float().requires_grad_(), [w.detach().float().requires_grad_() for w in weights], grad.float()
    f, most = (plain, 3e-4) if len(weights) == 1 else (conv, 1e-3)
    true = there_and_back(f)(wide) if isinstance(ours, tuple) else (forward(f)(wide),)
    errors = [((a.float() - b).norm() / b.norm()).item() for a, b in zip(ours if isinstance(ours, tuple) else (ours,), true)]
    return max(errors) <= most, f"errors {', '.join(f'{e:.0e}' for e in errors)}"

def same_map(coords, ours, theirs):
    same = torch.equal(ours, theirs)
    return same, f'{ours.numel():,} neighbours as found by a search, {(ours >= 0).sum().item() / len(ours):.2f} a voxel' if same else 'differ'

def peak(run):
    def ours(x):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = run(x)
        return dict(GB=(torch.cuda.max_memory_allocated() - before) / 1e9, out=out)
    return ours

def of_its_output(gate): return lambda x, ours, theirs: gate(x, ours['out'], theirs)

# The whole autoencoder

def sphere(radius, resolution=512, band=4.):
    "The batch of one shape: the field within `band` voxels of a sphere about the grid's centre."
    at = torch.arange(resolution, device='cuda') - (resolution - 1) / 2
    slabs = [((x**2 + at[:, None]**2 + at**2).sqrt() - radius) / band for x in at]
    places = [(slab.abs() <= 1).nonzero() for slab in slabs]
    index = torch.cat([torch.cat([torch.full_like(p[:, :1], i), p], 1) for i, p in enumerate(places)]).int()
    return dict(sparse_sdf=torch.cat([slab[tuple(p.T)] for slab, p in zip(slabs, places)]), sparse_index=index, batch_idx=torch.zeros_like(index[:, 0]))

def autoencoder(name='direct3d_s2', radius=153.5):
    def make():
        torch.manual_seed(0)
        model = SparseSDFVQVAE(preset(name)).cuda()
        return model, sphere(radius)
    return make

def reconstruction(x): return x[0](x[1], quantize=False)['recon'].feats

def step(x):
    "Forward and backward of the continuous autoencoder, bf16 where torch's autocast says so."
    x[0].zero_grad()
    with torch.autocast('cuda', torch.bfloat16): out = reconstruction(x)
    out.square().sum().backward()
    return out.detach()

def latents(x):
    with torch.no_grad(): return x[0].encode_continuous(x[1])

def decode(x):
    model, z = x
    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16): return model.decode_continuous(z.feats, z.coords).feats

def near_fp32(run):
    "bf16 keeps 8 bits of each of some 60 layers' inputs: what comes out is held to fp32's, on average."
    def gate(x, ours, theirs):
        with torch.no_grad(): true = run(x)
        error = ((ours.float() - true).abs().mean() / true.abs().mean()).item()
        return error < .1, f'{len(ours):,} voxels, mean error {error:.0e} of the mean beside fp32'
    return gate

VAE = 'direct3d_s2 VAE, a sphere at 512³ of 10.7 k latents, bf16'
VAE_ROWS = [
    Row('vae step', f'{VAE}: forward and backward', step, near_fp32(reconstruction), autoencoder(), device='cuda'),
    Row('vae memory', 'peak beside weights and input of the same', peak(step), of_its_output(near_fp32(reconstruction)), autoencoder(), unit='GB'),
    Row('vae decode', f'{VAE}: decoding to all 5.5 M voxels', decode, near_fp32(lambda x: x[0].decode_continuous(x[1].feats, x[1].coords).feats),
        lambda: (lambda x: (x[0], latents(x)))(autoencoder()()), most=.1, device='cuda')]

TORUS = f'torus, R=512, ±4: {N:,} voxels'

def conv_rows(c, quoted, quoted_thin, most, most_forward):
    mapped = lambda: (lambda x: (neighbors(x[0]), *x[1:]))(layers(c, 1)())
    one = lambda x: conv(x[1], x[2][0], x[0])
    back = lambda x: torch.autograd.grad(one(x), [x[1], *x[2]], x[3])
    with_coords = lambda gate: lambda x, ours, theirs: gate((torus().cuda(), *x[1:]), ours, theirs)
    return [Row(f'conv {c}', f'{TORUS}, C={c}, fp16: forward', one, with_coords(close), mapped, most=most_forward,
                peer=lambda x: scatter(x[1], x[2][0], x[0]), by='torch: gather, multiply, index_add', device='cuda'),
            Row(f'conv {c} and back', 'the same, forward and both gradients', back, with_coords(close), mapped, device='cuda'),
            Row(f'4 layers {c}', 'kernel map and four layers, forward and both gradients', there_and_back(conv), close, layers(c, 4), most=most,
                by=QUOTED.format(quoted), device='cuda'),
            Row(f'4 layers {c}, spconv', 'the same', there_and_back(conv), close, layers(c, 4), peer=by_spconv, by='spconv, map included', needs='spconv', device='cuda'),
            Row(f'4 layers {c}, thin', 'map, layers and gradients of a sphere, 989,616 voxels in a shell of 1.25 voxels: 12.8 neighbours each', there_and_back(conv), close,
                layers(c, 4, thin), by=QUOTED.format(quoted_thin), device='cuda'),
            Row(f'4 layers {c}, memory', 'peak beside the operands', peak(there_and_back(conv)), of_its_output(close),
                layers(c, 4), unit='GB')]

def items(rows=200_000, device='cuda'):
    "Features of 16 items, their offsets, weight and bias, and a gradient of what comes out."
    g, channels = torch.Generator(device).manual_seed(0), 16
    draw = lambda *size: torch.randn(*size, generator=g, device=device)
    return (draw(16 * rows, channels).bfloat16().requires_grad_(), torch.arange(17, device=device) * rows,
            draw(channels).requires_grad_(), draw(channels).requires_grad_(), draw(16 * rows, channels).bfloat16())

def norm_back(f):
    "`f(feats, offsets, weight, bias)` and its gradients."
    def run(x):
        *given, grad = x
        out = f(*given)
        return out, *torch.autograd.grad(out, (given[0], *given[2:]), grad.to(out.dtype))
    return run

def norm_by_item(feats, offsets, weight, bias):
    parts = [F.group_norm(part.T[None].to(weight.dtype), 16, weight, bias)[0].T for part in feats.split(offsets.diff().tolist())]
    return F.silu(torch.cat(parts)).to(feats.dtype)

def norm_close(x, ours, theirs):
    true = norm_back(norm_by_item)([t.detach().double().requires_grad_() if t.is_floating_point() else t for t in x])
    gap = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, true))
    return gap < 1e-2, f'{gap:.0e} from fp64'

NORM_ROW = Row('norm', 'group norm and SiLU of 16 items of 200,000 voxels, C=16, bf16: forward and gradients',
               norm_back(lambda *x: group_norm(*x, 16, 1e-5, True)[0]), norm_close, items, peer=norm_back(norm_by_item), by='torch: item after item', device='cuda')

ROWS = [Row('map', f'{TORUS}: 27 neighbours of each', neighbors, same_map, lambda: torus().cuda(), peer=neighbors_reference, by='torch: order checked, 27 searchsorted',
            most=.15e-3, device='cuda'),
        *conv_rows(64, 'spconv-cu126 15.8 ms, FlexGEMM 9.9 ms', 'spconv-cu126 13.5 ms, FlexGEMM 9.2 ms', 6.4e-3, None),
        *conv_rows(128, 'spconv-cu126 45.8 ms, FlexGEMM 22.7 ms', 'spconv-cu126 29.7 ms, FlexGEMM 17.7 ms', 17e-3, 1.4e-3), NORM_ROW, *VAE_ROWS]

if __name__ == '__main__':
    torch.backends.cuda.matmul.allow_tf32 = False
    sys.exit(main(__doc__, 'The sparse engine on the GPU', 'sparse_cuda', ROWS, gpu))
