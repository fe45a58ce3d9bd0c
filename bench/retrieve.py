"""A generative recommender beside SASRec, popularity and random ids on simulated MovieLens: recall and NDCG, what the optimum is, times.

    python bench/retrieve.py [--sparse] [--seeds 3] [--config bench/retrieve.yaml] [--device cuda] [--run folder] [--out folder]
    python bench/retrieve.py --times [--events 32000000] [--device cuda]

Histories are drawn from a model that is known (`sdfvq.simulate`), written as ml-100k writes them and read from there; leave-last-out, all
items are ranked, weights are chosen on validation. --sparse: few events of an item, as at Amazon, where what is known of items counts. The ceiling is the ranking by the true model. A run that was stopped goes on where it was."""
import argparse, json, tempfile, time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from harness import gpu, machine, timed
from sdfvq.baselines import evaluate_ranker, leave_out, random_ids
from sdfvq.interactions import gathered, read_events, read_interactions
from sdfvq.ranking import RANKERS, read_recommend
from sdfvq.recommend import CUTOFFS, compare, result, table_text, train_retrieval
from sdfvq.retrieve import EncoderDecoderRetrievalModel, RetrievalConfig
from sdfvq.simulate import simulate, write_movielens

SIZES = dict(dense=dict(users=943, items=1682, events=100_000, least=20), sparse=dict(users=2000, items=2500, events=18_000, least=5, skew=.4))   # what is popular counts for less, as at Amazon
STEPS = dict(dense={}, sparse=dict(steps=200, i_log=100, beams=20, sasrec=dict(steps=300, i_log=100)))
GOALS = dict(random=1.5, sasrec=.95)   # recall@10 of ours over theirs, at least

def quality(a):
    "The table, and which goals it meets."
    run = a.run or Path(tempfile.mkdtemp())/'run'
    data, truth = simulate(**SIZES[a.kind])
    write_movielens(data, run.parent/'data')
    config, _ = read_recommend(a.config, seeds=a.seeds, **STEPS[a.kind])
    train_retrieval(run.parent/'data', run, config, device=a.device, resume=(run/'config.json').exists())
    best = lambda h, user: torch.from_numpy(truth.scores([r[r >= 0].numpy() for r in h.cpu()]))
    rows = [result('optimum', [evaluate_ranker(best, leave_out(data.histories, 'test', data.offsets[-1]), CUTOFFS)]), *compare(run, device=a.device)]
    recall = {r.model: r.mean['recall@10'] for r in rows}
    said = [f"ours / {k}: {recall['ours'] / recall[k]:.2f}, goal {least}, {'met' if recall['ours'] >= least * recall[k] else 'missed'}" for k, least in GOALS.items() if k in recall]
    return table_text(rows) + '\n' + '\n'.join(f'* {line}' for line in said) + '\n', dict(config=asdict(config), rows=[asdict(r) for r in rows])

def times(a):
    "Seconds of reading, and of a batch's search."
    out, rng = {}, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as d:
        n, path = a.events, Path(d)/'ratings.csv'
        cells = np.stack([rng.integers(1, n // 160 + 2, n), rng.integers(1, 87585, n), rng.integers(8e8, 1.6e9, n)])
        with open(path, 'w', encoding='utf-8') as f:
            f.write('userId,movieId,rating,timestamp\n')
            f.writelines(f'{u},{i},4.0,{t}\n' for u, i, t in cells.T.tolist())
        out[f'reading {n:,} lines of ratings.csv'], (u, i, t) = timed(lambda _: read_events(path, {0: 'id', 1: 'id', 3: 'time'}, head=1), None)
        out['their histories'], _ = timed(lambda _: gathered(u, i, t, {}), None)
    model = EncoderDecoderRetrievalModel(random_ids(12_000, 256, 3), RetrievalConfig()).to(a.device)
    history = torch.randint(0, 12_000, (256, 20), device=a.device)
    search = lambda _: model.generate(history, 10, 50)
    search(None)
    out['search: 256 histories of 20, 12,000 items, 3 levels of 256 codes, 50 beams'] = min(timed(search, None, a.device)[0] for _ in range(3))
    return '\n'.join(f'* {k}: {v:.3g} s' for k, v in out.items()) + '\n', out

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sparse', dest='kind', action='store_const', const='sparse', default='dense'); p.add_argument('--events', type=int, default=1_000_000, help='of --times')
    p.add_argument('--seeds', type=int, default=3); p.add_argument('--config', type=Path, default=Path(__file__).parent/'retrieve.yaml')
    p.add_argument('--device', default='cpu'); p.add_argument('--threads', type=int, default=torch.get_num_threads())
    p.add_argument('--times', action='store_true', help='of reading and searching, instead of quality'); p.add_argument('--run', type=Path, help='run folder, to go on with')
    p.add_argument('--out', type=Path, default=Path(__file__).parent/'results')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    text, facts = times(a) if a.times else quality(a)
    name = 'times' if a.times else a.kind
    said, work = gpu() if torch.device(a.device).type == 'cuda' else machine({}), '' if a.times else ', '.join(f'{v:,} {k}' for k, v in SIZES[a.kind].items() if k not in ('least', 'skew')) + '; '
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out/f'retrieve_{name}.md').write_text(f"# Retrieval, {name}\n\n{said['device']}; {work}{said['date']}.\n\n{text}", encoding='utf-8')
    (a.out/f'retrieve_{name}.json').write_text(json.dumps(dict(machine=said, **facts), indent=1) + '\n', encoding='utf-8')
    print(text)
