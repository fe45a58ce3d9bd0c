"""`sdfvq train` as a process: killed at any moment and resumed to the same bits, asked to stop, starved of disk."""
import csv, json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
import torch
import yaml

from sdfvq.data import synth_shapes
from sdfvq.vqvae import fingerprint, load_model

SETTINGS = dict(model=dict(resolution=4, model_channels=16, num_embeddings=32, estimator='gumbel'), dataset=dict(min_points=10),
                trainer=dict(max_steps=14, stages={1: dict(max_steps=6)}, lr=3e-3, batch_size_per_gpu=2, i_log=4, i_save=3, i_sample=7, i_print=1, num_samples=1,
                             ema_rate=.9, kmeans_interval=5, save_total_limit=2, num_workers=1, turn=True))   # 9 shapes: 5 steps an epoch, which saves do not meet

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Ten shapes, and a run of all stages that nothing disturbed."
    d = tmp_path_factory.mktemp('train')
    (d/'data').mkdir()
    for i, s in enumerate(synth_shapes(10, 16)): s.save(d/'data'/f's{i}_r16.npz')
    (d/'c.yaml').write_text(yaml.safe_dump(SETTINGS), encoding='utf-8')
    out, code = finish(start(d, 'whole', '--config', 'c.yaml'))
    assert code == 0, out
    return d

def start(d, run, *args, ahead=''):
    "A training with one thread, head of its process group; `ahead` is Python that runs before it."
    return subprocess.Popen([sys.executable, '-c', f'{ahead}\nfrom sdfvq.cli import main; main()', 'train', 'data', '-o', run, '--device', 'cpu', *args], cwd=d,
                            env=dict(os.environ, OMP_NUM_THREADS='1', COLUMNS='200'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8', start_new_session=True)

def finish(p):
    out = p.communicate(timeout=300)[0]
    return out, p.returncode

def wait_for(what, p, seconds=300):
    end = time.time() + seconds
    while not what():
        assert time.time() < end and p.poll() is None, 'it did not happen'
        time.sleep(.002)

def log(run): return [{k: v for k, v in row.items() if k != 'time'} for row in csv.DictReader((run/'log.csv').read_text(encoding='utf-8').splitlines())]

def events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    seen = EventAccumulator(str(run/'tb_logs'), size_guidance=dict(tensors=0, scalars=0)).Reload()
    return {tag: [(e.step, e.value) for e in seen.Scalars(tag)] for tag in seen.Tags()['scalars']}

def files(run): return {str(p.relative_to(run)): p.read_bytes() for p in (run/'samples').rglob('*.*')}

def same_run(a, b):
    assert fingerprint(load_model(a)) == fingerprint(load_model(b))
    states = [torch.load(max((r/'ckpts').iterdir()), weights_only=True) for r in (a, b)]
    assert states[0].keys() == states[1].keys()
    for k in states[0].keys() - {'clock'}: same(states[0][k], states[1][k], k)
    assert log(a) == log(b)
    assert str(events(a)) == str(events(b))          # as text: NaN is what it is
    assert files(a) == files(b)

def same(a, b, where):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor): assert torch.equal(a.nan_to_num(), b.nan_to_num()), where
    elif isinstance(a, dict): assert a.keys() == b.keys(), where; [same(a[k], b[k], f'{where}.{k}') for k in a]
    elif isinstance(a, (list, tuple)): assert len(a) == len(b), where; [same(x, y, where) for x, y in zip(a, b)]
    else: assert a == b, where

def test_killed_and_resumed(folder):
    "In the middle of an epoch of stage 0, of a round of stage 2, and after the last step, with other numbers of workers: the same bits as without."
    run = folder/'killed'
    p = start(folder, run, '--config', 'c.yaml')
    for step, at_least, workers in (('step0000009.pt', 5, '2'), ('step0000026.pt', 15, '0')):
        wait_for(lambda: (run/'ckpts'/step).exists(), p)
        p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close()
        assert len(log(run)) >= at_least // 4
        (run/'ckpts'/('.step0000099-' + 32 * 'f' + '.pt')).write_bytes(b'half')
        with open(run/'log.csv', 'a', encoding='utf-8') as f: f.write('0,0.')       # a line that was cut
        p = start(folder, run, '--resume', '--workers', workers)
    out, code = finish(p)
    assert code == 0, out
    same_run(folder/'whole', run)
    assert not list(run.rglob('.*')) and [x.name for x in sorted((run/'ckpts').iterdir())] == ['step0000032.pt', 'step0000034.pt']
    out, code = finish(start(folder, run, '--resume'))             # nothing left to do
    assert code == 0, out
    same_run(folder/'whole', run)

@pytest.mark.parametrize('where, stage', [('train.end_stage', 0), ('learner.ShapeLearner._do_epoch', 1)])
def test_killed_between_stages(folder, where, stage):
    "After a stage's last checkpoint, and after the next one's first: the same bits as without."
    run = folder/where
    ahead = ("import os, sdfvq.train as train, sdfvq.learner as learner\n"
             f"real = {where}\n"
             f"def die(learn, *args): os._exit(9) if learn.stage_freeze.stage == {stage} else real(learn, *args)\n"
             f"{where} = die\n")
    assert finish(start(folder, run, '--config', 'c.yaml', ahead=ahead))[1] == 9
    assert [x.name for x in sorted((run/'ckpts').iterdir())] == ['step0000012.pt', 'step0000014.pt']
    out, code = finish(start(folder, run, '--resume'))
    assert code == 0, out
    same_run(folder/'whole', run)

def test_stopped_and_resumed(folder):
    "SIGTERM, to its workers too: saved at the very step, code 143; with the newest checkpoint spoiled the one before it serves, and says so."
    run = folder/'stopped'
    p = start(folder, run, '--config', 'c.yaml')
    wait_for(lambda: (run/'ckpts'/'step0000012.pt').exists(), p)
    os.killpg(p.pid, signal.SIGTERM)
    out, code = finish(p)
    assert code == 143 and 'go on with --resume' in out, out
    newest = max((run/'ckpts').iterdir())
    newest.write_bytes(newest.read_bytes()[:-1000])
    out, code = finish(start(folder, run, '--resume'))
    assert code == 0 and f'{newest.name} is damaged' in out and 'the one before it is used' in out, out
    same_run(folder/'whole', run)

def test_disk_full(folder):
    "The old checkpoints survive, it is said, and the run goes on."
    run = folder/'full'
    ahead = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
             "import sdfvq.runs as r; real = r.write_checkpoint\n"
             "def write(state, path):\n"
             "  if state['step'] == 6: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
             "  try: real(state, path)\n"
             "  finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
             "r.write_checkpoint = write\n")
    out, code = finish(start(folder, run, '--config', 'c.yaml', '--steps', '7', '--stage', '0', ahead=ahead))
    assert code == 0 and 'step0000006.pt could not be written' in out, out
    assert [p.name for p in sorted((run/'ckpts').iterdir())] == ['step0000003.pt', 'step0000007.pt']

def test_refused(folder):
    "A folder that holds something, other settings, no run to resume, a preset for other data: one line, code 2, nothing changed."
    for words, *args in ((('not empty', '--resume'), 'whole', '--config', 'c.yaml'), (('other settings', 'trainer.lr', '--init'), 'whole', '--resume', '--lr', '1'),
                         (('no run to go on with',), 'none', '--resume'), (('16³', '64³', 'prepare', '--resolutions 64'), 'none', '--preset', 'tiny')):
        out, code = finish(start(folder, *args))
        assert code == 2 and out.startswith('error:') and out.count('\n') == 1 and all(w in out for w in words), out
    assert not (folder/'none').exists()
