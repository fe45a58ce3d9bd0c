"The rooms that came last, with model and batches on another device than what is made on the way."
import numpy as np
import pytest
import torch

from elsewhere import HERE, THERE, Elsewhere, is_there, put

pytest.importorskip('fastai')

@pytest.fixture
def elsewhere():
    torch.manual_seed(0)
    with Elsewhere(): yield

def test_it_tells(elsewhere):
    "What fails on a GPU fails here, and what does not does not."
    x, y = torch.arange(6.).view(2, 3).to('cuda'), torch.ones(2, 3)
    assert x.device == THERE and y.device == HERE and (x + 1).is_cuda and x.new_zeros(2).is_cuda and not x.cpu().is_cuda and (x * torch.tensor(2.)).is_cuda
    assert x[torch.tensor([0])].is_cuda and torch.zeros(3, device=x.device).is_cuda and not torch.zeros_like(x, device='cpu').is_cuda and y.to(x).is_cuda
    for wrong in (lambda: x + y, lambda: torch.cat([x, y]), lambda: x.numpy(), lambda: np.asarray(x), lambda: y[x[0].long()], lambda: torch.nn.Linear(3, 2)(x),
                  lambda: torch.where(y > 0, x, 0.), lambda: torch.rand(2, device=x.device, generator=torch.Generator())):
        with pytest.raises((RuntimeError, TypeError)): wrong()
    m = torch.nn.Linear(3, 2).to('cuda')
    m(x).sum().backward()
    assert m.weight.device == THERE and m.weight.grad.is_cuda and m.cpu().weight.device == HERE

def shapes():
    from sdfvq.data import synth_shapes
    from sdfvq.tokenizer import ShapeTokenizer
    from sdfvq.vqvae import SparseSDFVQVAE, preset
    torch.manual_seed(0)
    return ShapeTokenizer(SparseSDFVQVAE(preset('tiny'))), synth_shapes(3, 32)

@pytest.mark.parametrize('kind, lora', [('qwen2_vl', 0), ('qwen2_5_vl', 0), ('qwen3_vl', 0), ('qwen3_vl', 4)])
def test_vl(kind, lora):
    "A step of an alignment, what is said and how likely: in the processor's hands all is on the CPU, in the model's none."
    pytest.importorskip('transformers')
    from sdfvq.align import Aligned, AnswerLoss, Exact, what_learns
    from sdfvq.align_data import AlignConfig
    from sdfvq.describe import Bridge, answers
    from sdfvq.evaluate_vl import likelihoods
    from sdfvq.loader import collate
    from sdfvq.processor3d import collate_3d_text, small_processor
    from sdfvq.vl import Qwen3VLWith3DBranch, small_config
    tok, fields = shapes()
    items = [dict(shape=[f] if i else fields[:2], question='what is it?', answer='a ball') for i, f in enumerate(fields)]
    p = small_processor(['what is it? a ball'], 24).attach(tok)
    vl = Qwen3VLWith3DBranch.begin(small_config(p, kind), tok.model, p)
    model = what_learns(vl, AlignConfig(vl_model='base', lora_r=lora))
    with Elsewhere():
        put(model, True); put(tok.model, True)
        tok.device = 'cuda'
        batch = {k: v.to('cuda') for k, v in collate_3d_text(items, p).items()}
        loss = AnswerLoss()(logits := model(batch), batch)
        loss.backward()
        assert loss.is_cuda and all(q.grad is not None and q.grad.is_cuda for n, q in model.learning().items() if 'lora_A' not in n)
        exact = Exact(); exact.reset()
        exact.accumulate(type('', (), dict(yb=(batch,), pred=logits)))
        bridge = Bridge(model.vl.eval(), p, tok)
        assert len(answers(bridge, items, max_new_tokens=3)) == 3 and np.isfinite(likelihoods(bridge, items)).all()
        text = collate_3d_text([dict(shape=(torch.ones(1, tok.model.config.code_dim), torch.ones(1, 3)), question='what?')] * 3, p, False)
        out = vl.forward_with_3d(text['input_ids'].to('cuda'), inputs_3d=collate(fields))          # these come from a loader on the CPU
        assert out['logits'].is_cuda and out['encoding_indices_3d'].feats.is_cuda

def test_retrieval(elsewhere):
    "A step, a search and the measures of both networks; a catalogue from there is welcome, too."
    from sdfvq.baselines import Popularity, SASRec, evaluate_ranker, leave_out, random_ids
    from sdfvq.ranking import ranker
    from sdfvq.retrieve import EncoderDecoderRetrievalModel, RetrievalConfig
    histories = [np.random.default_rng(i).integers(0, 40, 4 + i % 5) for i in range(12)]
    net, ids = RetrievalConfig(16, 2, 2, user_buckets=3), random_ids(40, 6, 3)
    counts = Popularity(histories, 40).counts + 1
    models = [EncoderDecoderRetrievalModel(c, net, counts).to('cuda') for c in (ids, ids.to('cuda'))] + [SASRec(40, RetrievalConfig(16, 2, 2)).to('cuda')]
    history, target = torch.tensor([[1, 2, 3], [4, 5, -1]]).to('cuda'), torch.tensor([[2, 3, 4], [5, 6, -1]]).to('cuda')
    for m in models:
        loss = m.train()(history, target, torch.tensor([7, 8]).to('cuda'))
        loss.backward()
        assert loss.is_cuda and all(q.grad is None or q.grad.is_cuda for q in m.parameters())
        found = evaluate_ranker(ranker(m, 5, 8), leave_out(histories, 'valid', 4, 5), (5,), 'cuda')
        assert len(found['recall@5']) == 12 and isinstance(found['ndcg@5'], np.ndarray)

@pytest.mark.parametrize('settings', [{}, dict(standardise=False, decay=0., estimator='gumbel'), dict(categorical=2, shared=True, estimator='rotation')], ids=str)
def test_semantic(elsewhere, settings):
    "Start, steps and ids of a corpus that stays on the CPU; and the index of a model that stays there."
    from sdfvq.rqvae import RqVae
    from sdfvq.semantic import Items, SemanticIdTokenizer, SimilarIndex
    from sdfvq.train_items import IdHealth, RqVaeLoss, item_dataloaders
    x = torch.randn(300, 8)
    x[:, 6:] = (x[:, 6:] > 0).float()
    items = Items([str(i) for i in range(300)], x)
    model = RqVae(input_dim=8, hidden=(16,), dim=4, num_codes=8, depth=3, revive_every=3, **settings).to('cuda')
    dls = item_dataloaders(x, 50, .1, device='cuda')
    model.start(dls.train.vectors)
    health, step = IdHealth('usage', 0), torch.optim.AdamW(model.parameters(), 1e-3)
    health.reset()
    for batch, _ in [*dls.train] * 2:
        out = model.train()(batch)
        RqVaeLoss()(out, batch).backward()
        step.step(); step.zero_grad()
    health.accumulate(type('', (), dict(pred=out)))
    assert batch.is_cuda and out.recon.is_cuda and health.value > 0
    tok = SemanticIdTokenizer.make(model, items)
    index = SimilarIndex(tok, items)
    assert is_there(tok.tokenize(x)) and not is_there(tok.ids(['3']))
    for ask in (x[5], x[5].to('cuda')):
        assert index.by_vector(ask, 3)[0].name == '5' and len(index.by_id(ask, 3)) == 3 and index.by_id(ask, 3, 5)[0].name != '5'
