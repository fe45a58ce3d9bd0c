"""Item quantizers, recommenders and alignments in two processes: as one process with all items, alike to the bit, and killed and resumed to the same bits.
Run as a script, this file loads the library once, and every process is a fork of it."""
import json, os, signal, socket, subprocess, sys, time, traceback
from functools import partial
from pathlib import Path

import pytest
import torch

STEPS, KINDS = 12, ('ema', 'gradient', 'kmeans', 'ours', 'folded', 'sasrec', 'align')
RUNS = ('rqvae', 'retrieve', 'align')

# In each process

def corpus():
    "600 items about 40 places, as vectors."
    g = torch.Generator().manual_seed(0)
    return torch.randn(40, 12, generator=g).repeat(15, 1) + .3 * torch.randn(600, 12, generator=g)

def prompts(tok, n):
    "A processor, and questions about generated shapes, each with what is read of it: random codes, as voxelizing takes longer."
    from sdfvq.processor3d import small_processor
    g = torch.Generator().manual_seed(0)
    asked = [dict(question=f'is it {i}?', answer='yes, a ball' if i % 2 else 'no', shape=(torch.randn(5 + i, tok.model.config.code_dim, generator=g), torch.rand(5 + i, 3, generator=g) * 4))
             for i in range(n)]
    return small_processor([q[k] for q in asked for k in ('question', 'answer')], 16), asked

def tokenizer():
    from sdfvq.tokenizer import ShapeTokenizer
    from sdfvq.vqvae import SparseSDFVQVAE, preset
    torch.manual_seed(0)
    return ShapeTokenizer(SparseSDFVQVAE(preset('tiny')))

class Shared:
    "Batches of all, of which each process has its part: all but the last row, and the last."
    dataset, skipped = (), {}
    def __init__(self, batches, part): self.batches, self.bs, self.part = batches, 4, part
    def __len__(self): return len(self.batches)
    def __iter__(self): return ((x, *y) for x, *y in map(self.part, self.batches))

def learner(kind, rank, world):
    "A learner, and its model, of one of `KINDS`."
    from fastai.data.core import DataLoaders

    from sdfvq.callbacks import Clock
    from sdfvq.learner import ShapeLearner
    rows = slice(None) if world == 1 else slice(None, -1) if rank == 0 else slice(-1, None)
    torch.manual_seed(0)
    if kind in ('ema', 'gradient'):
        from sdfvq.rqvae import RqVae
        from sdfvq.train_items import item_dataloaders, rqvae_learner
        model = RqVae(input_dim=12, hidden=(16,), dim=6, num_codes=8, depth=3, decay=.9 if kind == 'ema' else 0., revive_every=4, categorical=2)
        x = corpus()
        x[:, -2:] = (x[:, -2:] > 0).float()
        return model, rqvae_learner(item_dataloaders(x, 40 // world, .1), model, cbs=[Clock(STEPS)])
    if kind in ('ours', 'folded', 'sasrec'):
        from sdfvq.baselines import SASRec, random_ids
        from sdfvq.ranking import Given
        from sdfvq.retrieve import EncoderDecoderRetrievalModel, RetrievalConfig
        config = dict(dim=16, heads=2, layers=2, dropout=0.)
        model = SASRec(30, RetrievalConfig(**config)) if kind == 'sasrec' else \
                EncoderDecoderRetrievalModel(random_ids(30, 5, 3), RetrievalConfig(**config, fold=kind == 'folded', user_buckets=3))
        for p in model.parameters():
            if not p.any(): torch.nn.init.normal_(p, std=.1)      # layers begin as nothing, and would get no gradient
        g = torch.Generator().manual_seed(1)
        items = torch.randint(0, 30, (STEPS, 4, 7), generator=g)
        items[:, 1, 5:] = items[:, 3, 3:] = -1
        dls, loss = Shared([*items], lambda x: (x[rows, :-1].where(x[rows, 1:] >= 0, -1), x[rows, 1:], torch.arange(4)[rows], torch.arange(4)[rows])), Given()
    if kind == 'align':
        from sdfvq.align import Aligned, AnswerLoss
        from sdfvq.processor3d import collate_3d_text
        from sdfvq.vl import Qwen3VLWith3DBranch, small_config
        tok = tokenizer()
        p, asked = prompts(tok, 8)
        model = Aligned(Qwen3VLWith3DBranch.begin(small_config(p, hidden=48, heads=2), tok.model, p))
        model.vl.model.visual.requires_grad_(False)
        loss = AnswerLoss()
        def part(items):
            batch = collate_3d_text(items[rows], p)
            return batch, batch
        dls = Shared([[asked[(4 * i + j) % 8] for j in range(4)] for i in range(STEPS)], part)
    return model, ShapeLearner(DataLoaders(dls, dls), model, loss_func=loss, cbs=[Clock(STEPS)], train_bn=False)

def steps(rank, world, out):
    "First gradients, states and losses of all `KINDS`."
    from fastai.callback.core import Callback
    from fastai.optimizer import OptimWrapper

    from sdfvq.callbacks import JointGradients
    from sdfvq.quantizer import joint
    from sdfvq.rqvae import ResidualKMeans
    from sdfvq.train_items import own_part
    class Keep(Callback):
        order, grads = 20, None
        def before_fit(self): self.begun, self.losses = {k: v.clone() for k, v in self.model.state_dict().items()}, []
        def after_loss(self): self.losses.append(float(joint(self.learn.loss.detach().clone())) / world)
        def before_step(self):
            if self.grads is None: self.grads = {k: p.grad.clone() for k, p in self.model.named_parameters() if p.grad is not None}
    found = {}
    for kind in KINDS:
        if kind == 'kmeans':
            model = ResidualKMeans(input_dim=12, num_codes=8, depth=3)
            model.start(own_part(corpus()))
            found[kind] = dict(grads={}, begun={}, state=model.state_dict(), losses=[])
            continue
        model, fit = learner(kind, rank, world)
        fit.opt_func, fit._do_epoch_validate = partial(OptimWrapper, opt=torch.optim.SGD), lambda *a, **k: None
        fit.add_cbs([Keep()] + [JointGradients()] * (world > 1))
        with fit.no_bar(), fit.no_logging(): fit.fit(1, 1e-2, wd=0.)
        found[kind] = dict(grads=fit.keep.grads, begun=fit.keep.begun, state={k: v.clone() for k, v in model.state_dict().items()}, losses=fit.keep.losses)
    torch.save(found, f'{out}/steps_{world}_{rank}.pt')

def whole(name, rank, world, out, folder, kill=0, resume=False):
    "A run of the library's own, its model at the end to {folder}/{rank}.pt; with `kill` this process dies after so many steps."
    from fastai.callback.core import Callback

    from sdfvq.learner import ShapeLearner
    out, folder = Path(out), Path(out)/folder
    class Death(Callback):
        order, run_valid = 100, False
        def after_batch(self):
            if rank == world - 1 and self.clock.total == kill: os.kill(os.getpid(), signal.SIGKILL)
    class Watched:
        def fit(self, *args, plain=ShapeLearner.fit, **kw):
            if kill: self.add_cb(Death())
            plain(self, *args, **kw)
            folder.mkdir(exist_ok=True)
            torch.save(self.model.state_dict(), folder/f'{rank}.pt')
    ShapeLearner.fit = Watched.fit
    if name == 'rqvae':
        from sdfvq.semantic import Items
        from sdfvq.train_items import read_item_config, train_items
        config = read_item_config(dict(hidden=[16], dim=6, num_codes=16, max_steps=24, batch_size=50, i_log=6, i_save=5, revive_every=4))
        train_items(Items([str(i) for i in range(600)], corpus()), folder/'run', config, 'cpu', resume)
    if name == 'retrieve':
        from sdfvq.recommend import RecommendConfig, train_retrieval
        config = RecommendConfig(models='ours', seeds=1, max_items=8, num_codes=8, depth=2, dim=16, heads=2, layers=1, steps=24, batch=16, beams=8, i_log=6, i_save=5, i_print=2)
        train_retrieval(out/'events', folder/'run', config, None, 'cpu', resume)
    if name == 'align':
        from sdfvq.align import align, read_align_config
        config = read_align_config(dict(weights=str(out/'model.safetensors'), dummy_samples=20, hidden=48, layers=1, heads=2, max_3d_tokens=8, epochs=3, batch_size=2, i_print=1, i_save=4))[0]
        align(None, folder/'run', config, 'cpu', resume)

# The processes

def forked(work, world, *args, die=False, **kw):
    "`work(rank, world, …)` in forks of this process, joined by gloo; with `die` all end when one did."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(s.getsockname()[1]), WORLD_SIZE=str(world))
    ids = {}
    for rank in range(world):
        if not (pid := os.fork()):
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
                from sdfvq.train import join_processes
                join_processes('cpu')
                work(rank, world, *args, **kw)
            except BaseException:
                if not die: traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ids[pid] = rank
    codes = {}
    while ids:
        pid, status = os.wait()
        codes[ids.pop(pid)] = os.waitstatus_to_exitcode(status)
        if die:
            for other in ids: os.kill(other, signal.SIGKILL)
    if die: assert codes[world - 1] == -signal.SIGKILL, codes
    else: assert not any(codes.values()), codes

def main(out):
    from sdfvq.simulate import simulate, write_movielens
    from sdfvq.vqvae import save_model
    import sdfvq.align, sdfvq.recommend                     # once, for all forks
    save_model(tokenizer().model, f'{out}/model.safetensors')
    write_movielens(simulate(40, 60, 900, 8)[0], f'{out}/events')
    for world in (1, 2): forked(steps, world, out)
    for name in RUNS:
        run = partial(whole, name)
        forked(run, 2, out, f'{name}_whole')
        forked(run, 2, out, f'{name}_killed', kill=9, die=True)
        forked(run, 2, out, f'{name}_killed', resume=True)

# The tests

@pytest.fixture(scope='module')
def out(tmp_path_factory):
    if not hasattr(os, 'fork'): pytest.skip('processes are forks')
    for package in ('fastai', 'transformers', 'peft'): pytest.importorskip(package)
    d = tmp_path_factory.mktemp('late')
    p = subprocess.run([sys.executable, __file__, d], env=dict(os.environ, OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false'), capture_output=True, text=True, encoding='utf-8', timeout=500)
    assert p.returncode == 0, p.stdout[-3000:] + p.stderr[-6000:]
    return d

def worst(a, b):
    "Largest difference as a part of the largest value."
    assert a.keys() == b.keys()
    pairs = [(a[k].double(), b[k].double()) for k in a if a[k].numel()]
    return max(float((x - y).abs().max()) for x, y in pairs) / max(float(x.abs().max()) for x, _ in pairs)

@pytest.mark.parametrize('kind', KINDS)
def test_two_are_as_one(out, kind):
    "The start from all items, the first step's gradients, and all that there is after the last; the losses that are logged."
    one, two = (torch.load(out/f'steps_{n}_0.pt')[kind] for n in (1, 2))
    for part in ('begun', 'grads', 'state'):
        groups = {k.split('.')[0] for k in one[part]}
        for g in groups: assert worst(*({k: v for k, v in r[part].items() if k.split('.')[0] == g and v.is_floating_point()} or {'': torch.ones(1)} for r in (one, two))) < 1e-5, (part, g)
    if kind == 'kmeans': return
    assert len(one['losses']) == len(two['losses']) >= STEPS and all(abs(a - b) < 1e-5 * max(one['losses']) for a, b in zip(one['losses'], two['losses']))
    assert all(g.any() for k, g in one['grads'].items() if 'users' not in k and 'opening' not in k), [k for k, g in one['grads'].items() if not g.any()]

@pytest.mark.parametrize('kind', KINDS)
def test_ranks_are_bit_identical(out, kind):
    a, b = (torch.load(out/f'steps_2_{r}.pt')[kind] for r in (0, 1))
    for part in ('grads', 'state'): assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][k], b[part][k]) for k in a[part]), part

@pytest.mark.parametrize('name', RUNS)
def test_killed_and_resumed(out, name):
    "A rank is killed between two checkpoints; resumed, both come to the weights of a run that nothing disturbed, and to its log."
    states = [torch.load(out/f'{name}_{how}'/f'{rank}.pt') for how in ('whole', 'killed') for rank in (0, 1)]
    for s in states[1:]: assert s.keys() == states[0].keys() and all(torch.equal(s[k], states[0][k]) for k in s)
    def logs(how):
        found = sorted((out/f'{name}_{how}').rglob('*.csv'))
        return {f.name: [line.split(',')[:-1] for line in f.read_text(encoding='utf-8').splitlines()] for f in found}     # the last column is time
    assert len(logs('whole')['log.csv']) > 3 and logs('whole') == logs('killed')

if __name__ == '__main__': main(sys.argv[1])
