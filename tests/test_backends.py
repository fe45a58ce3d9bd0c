"""spconv beside native, on the CPU: `pip install spconv` and this file runs; without it, it is skipped.

torchsparse needs a GPU and a compiler: `sdfvq info` proves it where it is installed."""
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

spconv = pytest.importorskip('spconv.pytorch', reason='optional: pip install spconv')

from spconv.core import ConvAlgo

from sdfvq import conv
from sdfvq.conv import DownBlock, UpBlock, conv_backend, from_spconv, load_backend, prove_backend, subm_conv, to_spconv
from sdfvq.core import InputError
from sdfvq.sparse import SparseTensor
from sdfvq.vqvae import SparseSDFVQVAE, preset

G = torch.Generator().manual_seed(0)

def randn(*shape, dtype=torch.float64): return torch.randn(*shape, generator=G, dtype=torch.float64).to(dtype)

def voxels(n, size, batches=3, c=5, low=0):
    rows = torch.cat([torch.randint(0, batches, (n, 1), generator=G), torch.randint(low, low + size, (n, 3), generator=G)], 1)
    coords = torch.unique(rows, dim=0).int()
    return SparseTensor(coords, randn(len(coords), c), batches)

@pytest.fixture(params=[1, 4], ids=lambda n: f'{n} threads', autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param         # spconv's one thread is its own
    torch.set_num_threads(before)

def answers(x, weight, backend, dtype=torch.float64):
    feats, weight, bias = (t.to(dtype).clone().requires_grad_() for t in (x.feats, weight, torch.linspace(-1, 1, weight.shape[-1])))
    y = subm_conv(x.replace(feats), weight, bias, backend)
    return [y.feats.detach(), *torch.autograd.grad(y.feats.square().sum(), (feats, weight, bias))]

def gap(got, want): return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(got, want))

@pytest.mark.parametrize('x', [voxels(900, 9), voxels(20000, 30), voxels(300, 8, low=-20), voxels(1, 9), voxels(500, 60000, low=-30000),
                               SparseTensor(torch.cartesian_prod(*[torch.arange(k) for k in (2, 4, 5, 6)]).int(), randn(240, 5))],
                         ids=['several items', 'many', 'negative', 'one voxel', 'far apart', 'full'])
def test_output_and_gradients(x):
    weight = randn(27, 5, 7)
    assert gap(answers(x, weight, 'spconv'), answers(x, weight, 'native')) < 1e-12
    assert gap(answers(x, weight[4], 'spconv'), answers(x, weight[4], 'native')) == 0     # 1×1×1

def test_empty():
    x = voxels(5, 9)
    none = SparseTensor(x.coords[:0], x.feats[:0], 3)
    assert [t.shape for t in answers(none, randn(27, 5, 7), 'spconv')[:2]] == [(0, 7), (0, 5)]

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
def test_proof(dtype):
    prove_backend.cache_clear()
    assert prove_backend('spconv', 'cpu', dtype) < {torch.float64: 1e-14, torch.float32: 5e-6, torch.float16: 2e-3}[dtype]

def test_a_dtype_it_has_not_is_refused():
    x = voxels(50, 9)
    x = x.replace(x.feats.bfloat16())
    with pytest.raises(InputError, match='cannot do bfloat16 on cpu'): subm_conv(x, randn(27, 5, 7), backend='spconv')

def test_its_race_is_found(threads):
    "Not held to one thread, it is refused (it may be right by luck, hence the tries)."
    if threads == 1 or os.cpu_count() == 1: pytest.skip('needs threads that race')
    torch.set_num_threads(2)
    free, says = patch.object(conv, '_one_thread', lambda omp: nullcontext()), 'is wrong in float32 on cpu.*OMP_NUM_THREADS=1'
    with free, pytest.raises(InputError, match=says):
        for _ in range(20): prove_backend.__wrapped__('spconv', 'cpu', torch.float32)
    torch.set_num_threads(threads)

def test_imported_before_torch(threads):
    "It then uses an OpenMP of its own, which knows nothing of `torch.set_num_threads`."
    code = ('import spconv.core_cc; import torch; from sdfvq.conv import prove_backend; '
            'torch.set_num_threads(2); print(*(prove_backend.__wrapped__("spconv", "cpu", torch.float32) < 1e-5 for _ in range(10)))')
    done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, encoding='utf-8')
    assert done.stdout.split() == ['True'] * 10

def test_weights_of_its_own_layer(threads):
    "A layer of spconv and its weights as ours agree, for both kernels; the way there undoes the way back."
    x = voxels(400, 9)
    for k in (3, 1):
        layer = spconv.SubMConv3d(5, 7, k, bias=False, algo=ConvAlgo.Native).double()
        weight = layer.weight.detach()
        if k == 1: weight = weight.view(5, 7).T.reshape(7, 1, 1, 1, 5)   # there it reads its numbers as (Cin,Cout)
        ours = from_spconv(weight)
        assert torch.equal(to_spconv(ours), weight)
        torch.set_num_threads(1)
        with torch.no_grad():
            theirs = layer(spconv.SparseConvTensor(x.feats, x.coords[:, [0, 3, 2, 1]].contiguous(), [9] * 3, 3)).features
        torch.set_num_threads(threads)
        assert gap([theirs], [subm_conv(x, ours, backend='native').feats]) < 1e-13

def test_one_map_for_a_scale():
    x, calls = voxels(400, 9), []
    find = spconv.ops.get_indice_pairs
    with patch.object(spconv.ops, 'get_indice_pairs', lambda *a: calls.append(1) or find(*a)):
        load_backend('spconv')
        prove_backend('spconv', 'cpu', torch.float64); calls.clear()
        y = subm_conv(x, randn(27, 5, 6), backend='spconv')
        subm_conv(y, randn(27, 6, 7), backend='spconv'); answers(x, randn(27, 5, 4), 'spconv')
    assert len(calls) == 1 and 'kernel_map' not in x.cache

def test_blocks():
    "A scale down and up, forward and the gradient of every parameter."
    x, net = voxels(900, 12, c=6), torch.nn.Sequential(DownBlock(6, 8, groups=2), UpBlock(8, 4)).double()
    def run(backend):
        net.zero_grad()
        with conv_backend(backend): y = net(SparseTensor(x.coords, x.feats, 3)).feats
        y.square().sum().backward()
        return [y.detach(), *(p.grad for p in net.parameters())]
    assert gap(run('spconv'), run('native')) < 1e-11

def test_without_gradients():
    x, weight = voxels(400, 9), randn(27, 5, 7).requires_grad_()
    want = subm_conv(x, weight, backend='native').feats
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(): assert gap([subm_conv(x, weight, backend='spconv').feats], [want]) < 1e-13

def test_second_derivative_is_refused():
    x, weight = voxels(50, 9), randn(27, 5, 7).requires_grad_()
    slope, = torch.autograd.grad(subm_conv(x, weight, backend='spconv').feats.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'): slope.sum().backward()

def test_graph_can_be_walked_twice():
    x, weight = voxels(50, 9), randn(27, 5, 7).requires_grad_()
    y = subm_conv(x, weight, backend='spconv').feats.square().sum()
    a, b = (torch.autograd.grad(y, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(a, b)

def test_checkpoints_compute_again_with_the_same_backend():
    "Backward runs in another thread, as on a GPU."
    torch.manual_seed(0)
    model, x = SparseSDFVQVAE(replace(preset('tiny'), use_checkpoint=True)), voxels(300, 16, c=1)
    batch = dict(sparse_sdf=x.feats[:, 0].float(), sparse_index=x.coords[:, 1:], batch_idx=x.coords[:, 0])
    def grads(backend):
        model.zero_grad()
        with conv_backend(backend): loss = model(batch, quantize=False)['recon'].feats.square().sum()
        with ThreadPoolExecutor(1) as pool: pool.submit(loss.backward).result()
        return [p.grad.clone() for p in model.decoder.parameters()]
    assert gap(grads('spconv'), grads('native')) < 1e-3
