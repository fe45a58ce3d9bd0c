"""Two processes with half of the shapes each do what one does with all of them. Run by torchrun, this file is one of the processes."""
import os, subprocess, sys
from functools import partial
from pathlib import Path

import pytest
import torch

STEPS, KINDS = 20, ('gradient', 'ema', 'float64')

def work(out):
    "Gradients, codebook statistics and steps of this process, to `out`/{world}_{rank}.pt."
    import torch.distributed as dist
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.optimizer import OptimWrapper

    from sdfvq.callbacks import Clock, JointGradients
    from sdfvq.data import ShapeDataset, synth_shapes
    from sdfvq.learner import vqvae_learner
    from sdfvq.loader import collate
    from sdfvq.quantize import VectorQuantizer
    from sdfvq.quantizer import processes
    from sdfvq.train import join_processes
    from sdfvq.vqvae import SparseSDFVQVAE, VQVAEConfig, preset

    join_processes('cpu')
    rank, world = processes()
    shapes = ShapeDataset(synth_shapes(8, 16), 16)

    class Halves:
        "Fixed batches of four shapes, of which each process has its part."
        bs, dataset = 4 // world, shapes
        def __len__(self): return STEPS
        def __iter__(self):
            for i in range(STEPS):
                items = [(4 * i + j) % 8 for j in range(4)]
                items = items[:3] if rank == 0 and world == 2 else items[3:] if world == 2 else items      # unequal parts
                batch = collate([shapes.shapes[j] for j in items], items)
                if kind == 'float64': batch['sparse_sdf'] = batch['sparse_sdf'].double()
                yield batch, batch

    class Keep(Callback):
        order, first = 20, None
        def before_fit(self): self.losses = []
        def after_loss(self):
            world_loss = self.learn.loss.detach().clone()
            if world > 1: dist.all_reduce(world_loss)
            self.losses.append(float(world_loss) / world)
            if kind == 'float64': self.learn.loss = self.learn.loss.float()        # fastai's running mean is of fp32
        def before_step(self):
            if self.first is None: self.first = {k: p.grad.clone() for k, p in self.model.named_parameters() if p.grad is not None}

    found = {}
    for kind in KINDS:
        torch.manual_seed(0)
        model = SparseSDFVQVAE(VQVAEConfig(**{**vars(preset('tiny')), 'model_channels_encoder': 16, 'model_channels_decoder': 16, 'resolution': 4,
                                              'num_embeddings': 32, 'prune': True}))
        model.quantizer = VectorQuantizer(32, 16, decay=.9 if kind == 'ema' else None, revive_every=3)
        if kind == 'float64': model.double()
        dls = DataLoaders(Halves(), Halves())
        model.train()
        fit = vqvae_learner(dls, model, 0 if kind == 'float64' else 2, cbs=[Clock(STEPS), Keep()] + ([JointGradients()] if world > 1 else []))
        fit.opt_func = partial(OptimWrapper, opt=torch.optim.SGD)
        fit._do_epoch_validate = lambda *a, **k: None
        with fit.no_bar(), fit.no_logging(): fit.fit(1, 1e-3, wd=0.)
        found[kind] = dict(grads=fit.keep.first, state={k: v.clone() for k, v in model.state_dict().items()}, losses=fit.keep.losses)
    torch.save(found, Path(out)/f'{world}_{rank}.pt')
    if world > 1: dist.destroy_process_group()

# Where SIGTERM comes, (rank, step, moment) each: before the clock, after it, after the checkpoint; the step at which all stop, of rounds of 4 and a stage of 6
MOMENTS = [([(0, 3, 'early'), (1, 3, 'early')], 3), ([(1, 3, 'early')], 3), ([(0, 3, 'late')], 4), ([(1, 3, 'late')], 4), ([(0, 3, 'early'), (1, 3, 'last')], 3),
           ([(0, 2, 'last'), (1, 3, 'early')], 3), ([(0, 4, 'late'), (1, 4, 'last')], 5), ([(1, 4, 'validate')], 5), ([(0, 6, 'late')], 6), ([(1, 6, 'validate')], 6)]

def stop(out):
    "Fits that SIGTERM stops at each of the moments: how they ended, to `out`/stop_{rank}.pt."
    import signal
    from datetime import timedelta
    import torch.distributed as dist
    from fastai.callback.core import Callback

    from sdfvq.callbacks import Clock, JointGradients, Rounds
    from sdfvq.data import ShapeDataset, shape_dataloaders, synth_shapes
    from sdfvq.learner import vqvae_learner
    from sdfvq.quantizer import processes
    from sdfvq.runs import Checkpoints, RunFolder
    from sdfvq.train import Stopped, fit_to_end
    from sdfvq.vqvae import SparseSDFVQVAE, VQVAEConfig, preset

    dist.init_process_group('gloo', timeout=timedelta(seconds=20))
    (rank, world), shapes, found = processes(), synth_shapes(8, 16), []

    class Term(Callback):
        def __init__(self, step, moment): self.step, self.moment, self.order = step, moment, dict(early=-10, late=-8, last=98.5, validate=0)[moment]
        def now(self, moment):
            if moment == self.moment and self.clock.step + (moment == 'early') == self.step: signal.raise_signal(signal.SIGTERM)
        def after_batch(self):
            if self.training and self.moment != 'validate': self.now(self.moment)
        def before_validate(self): self.now('validate')

    for i, (moments, _) in enumerate(MOMENTS):
        folder = RunFolder(Path(out)/str(i))
        if not rank: folder.begin({})
        dist.barrier()
        torch.manual_seed(0)
        model = SparseSDFVQVAE(VQVAEConfig(**{**vars(preset('tiny')), 'model_channels_encoder': 16, 'model_channels_decoder': 16, 'resolution': 4}))
        dls = shape_dataloaders(ShapeDataset(shapes, 16), ShapeDataset(shapes[:1], 16), 2, rank=rank, world=world)
        cbs = [Clock(6), Rounds(4), JointGradients(), Checkpoints(folder, 100, 0), *(Term(step, moment) for r, step, moment in moments if r == rank)]
        learn, how = vqvae_learner(dls, model, 0, cbs=cbs), ''
        try: fit_to_end(learn, folder)
        except Stopped: how = 'Stopped'
        found.append((learn.clock.step, learn.clock.stop, how))
    torch.save(found, Path(out)/f'stop_{rank}.pt')
    dist.destroy_process_group()

def launch(*args, processes=2, cwd=None):
    "torchrun on this host's CPU; `processes` 1: plain Python."
    how = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)] if processes > 1 else []
    p = subprocess.run([sys.executable, *how, *args], env=dict(os.environ, OMP_NUM_THREADS='1'), cwd=cwd, capture_output=True, text=True, timeout=500, encoding='utf-8')
    return p

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    d = tmp_path_factory.mktemp('ranks')
    for n in (1, 2):
        p = launch(__file__, d, processes=n)
        assert p.returncode == 0, p.stdout + p.stderr
    return [torch.load(d/f'{name}.pt') for name in ('1_0', '2_0', '2_1')]

def worst(a, b):
    "Largest difference as a part of the largest value, over all tensors that are not counts."
    assert a.keys() == b.keys()
    pairs = [(a[k].double(), b[k].double()) for k in a]
    assert all(x.shape == y.shape for x, y in pairs)
    return max(float((x - y).abs().max()) for x, y in pairs if x.numel()) / max(float(x.abs().max()) for x, _ in pairs if x.numel())

@pytest.mark.parametrize('kind, within', [('gradient', 1e-5), ('ema', 1e-5), ('float64', 1e-9)])
def test_two_are_as_one(runs, kind, within):
    "The first step's gradients; after 20 steps weights, codebook statistics, reservoir, revived codes; the losses that are logged."
    one, two, other = (r[kind] for r in runs)
    assert worst(one['grads'], two['grads']) < within
    for part in ('encoder', 'decoder', 'quantizer.codebook', 'quantizer.history'):
        pick = lambda r: {k: v for k, v in r['state'].items() if k.startswith(part) and torch.isfinite(v).all()}
        if pick(one): assert worst(pick(one), pick(two)) < within, part
    assert max(abs(a - b) for a, b in zip(one['losses'], two['losses'])) < within and len(one['losses']) == STEPS
    if kind != 'float64': assert one['state']['quantizer.history.clock'][1] >= 0        # it was started, and revived since

@pytest.mark.parametrize('kind', KINDS)
def test_ranks_are_bit_identical(runs, kind):
    a, b = runs[1][kind], runs[2][kind]
    for part in ('grads', 'state'):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][k], b[part][k]) for k in a[part]), part
    assert a['losses'] == b['losses']

def test_stopped_together(tmp_path):
    "SIGTERM at any moment, to one or to both: both stop at the same step, none waits for the other, and the state is that of the step."
    p = launch(__file__, tmp_path, 'stop')
    assert p.returncode == 0, p.stdout + p.stderr
    for i, (moments, step) in enumerate(MOMENTS):
        assert {torch.load(tmp_path/f'stop_{r}.pt')[i] for r in (0, 1)} == {(step, True, 'Stopped' if step < 6 else '')}, moments
        assert max((tmp_path/str(i)/'ckpts').iterdir()).name == f'step{step:07d}.pt', moments

def test_command(tmp_path):
    "`sdfvq train` under torchrun: one run folder, resumed after its end is found done."
    from sdfvq.data import synth_shapes
    from sdfvq.vqvae import load_model
    (tmp_path/'data').mkdir()
    for i, s in enumerate(synth_shapes(9, 16)): s.save(tmp_path/'data'/f's{i}_r16.npz')
    (tmp_path/'c.yaml').write_text('model: {resolution: 4, model_channels: 16, num_embeddings: 16}\ndataset: {min_points: 10}\n'
                                   'trainer: {max_steps: 4, batch_size_per_gpu: 2, i_log: 2, i_save: 2, num_samples: 1}\n', encoding='utf-8')
    command = ['-m', 'sdfvq.cli', 'train', 'data', '-o', 'run', '--device', 'cpu']
    for more in (['--config', 'c.yaml'], ['--resume']):
        p = launch(*command, *more, cwd=tmp_path)
        assert p.returncode == 0, p.stdout + p.stderr
    load_model(tmp_path/'run')
    assert len((tmp_path/'run'/'log.csv').read_text(encoding='utf-8').split()) == 1 + 6

if __name__ == '__main__': (stop if 'stop' in sys.argv[2:] else work)(sys.argv[1])
