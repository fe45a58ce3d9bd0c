"""Tables of ours against named peers: interleaved in one process, each row behind a gate which shows that both do the same.

A gate that does not hold makes its row FAILED and the exit code 1; a goal that is missed is only said. For Linux."""
import argparse, json, os, platform, statistics, subprocess, sys, time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

ALONE = 'none'

# Memory, which a program of its own tells: `print_peak`, that a bench calls on --peak

def peak(*args):
    "What the running bench says when asked for --peak with these arguments."
    command = [sys.executable, sys.argv[0], '--peak', *map(str, args)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, encoding='utf-8').stdout)

def resident(key):
    "Bytes of this program: \"VmRSS\" now, \"VmHWM\" at most; `ru_maxrss` would begin with those of the process which started it."
    return int(next(line.split()[1] for line in open('/proc/self/status', encoding='utf-8') if line.startswith(key))) * 1024

def forget_peak():
    "Linux begins to count the most anew on a 5."
    Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')

def growth(f):
    "What `f` gives, and what the resident set grew by meanwhile, less that."
    forget_peak()
    before, out = resident('VmRSS'), f()
    return out, resident('VmHWM') - before - out.nbytes

@dataclass(frozen=True)
class Row:
    "One line of the table. What `setup` and `gate` do is not timed."
    name: str
    work: str
    ours: Callable                # (x) → result, where x is what `setup` gave
    gate: Callable                # (x, our result, the peer's result) → (does it hold?, what was measured)
    setup: Callable = lambda: None
    goal: float = None            # Least ratio of the peer's time to ours
    peer: Callable = None         # (x) → result
    by: str = ALONE               # What the peer is
    needs: str = ''               # Module that the peer comes from
    share: float = 1.0            # Of the work that the peer does; its time is divided by it
    most: float = None            # Most of `unit`
    unit: str = 's'               # 'GB': our result has that number, and it is not the time that counts
    device: str = 'cpu'           # 'cuda': timed by events on the GPU

    def __post_init__(self): assert self.peer or not self.goal, f'{self.name}: a ratio needs a peer'

# The loop

def timed(f, x, device='cpu'):
    "Seconds, and the result."
    if device == 'cpu':
        start = time.perf_counter()
        out = f(x)
        return time.perf_counter() - start, out
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(4_000_000)   # some 2 ms in which the host queues what is timed, as it does in a training step
    start.record()
    out = f(x)
    end.record(); end.synchronize()
    return start.elapsed_time(end) / 1e3, out

def run(row, reps, peer_reps):
    "The row's result as a dict; its times are medians of runs by turns, after one of each that the gate looks at."
    out = dict(name=row.name, work=row.work, peer=row.by, unit=row.unit, goal=row.goal, most=row.most, status='ok')
    if row.needs and not find_spec(row.needs): return out | dict(status='peer not installed')
    try:
        x = row.setup()
        ours, theirs = row.ours(x), row.peer(x) if row.peer else None
        ok, out['gate'] = row.gate(x, ours, theirs)
    except Exception as e: ok, out['gate'] = False, f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    if not ok: return out | dict(status='FAILED')
    if row.unit == 'GB': return out | verdict(row, ours['GB'])
    del ours, theirs
    mine, others = [], []
    for i in range(max(reps, peer_reps)):
        if i < reps: mine.append(timed(row.ours, x, row.device)[0])
        if row.peer and i < peer_reps: others.append(timed(row.peer, x, row.device)[0] / row.share)
    median = statistics.median
    return out | dict(all_ours=mine, all_peer=others) | verdict(row, median(mine), median(others) if others else None)

def verdict(row, ours, peer=None):
    ratio = peer / ours if peer else None
    met = ([] if row.goal is None else [ratio >= row.goal]) + ([] if row.most is None else [ours <= row.most])
    return dict(ours=ours, theirs=peer, ratio=ratio, met=all(met) if met else None)

def machine(peers):
    "What the numbers depend on, and the peers' versions by package; nothing that names the machine."
    a, b = np.ones(2**25), np.empty(2**25)
    m = torch.rand(2048, 2048)
    cpu = next((line.split(':')[1].strip() for line in open('/proc/cpuinfo', encoding='utf-8') if line.startswith('model name')), platform.machine())
    return dict(device=f'{cpu}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads', date=f'{datetime.now(timezone.utc):%Y-%m-%d}',
                copy=2 * a.nbytes / best(lambda _: np.copyto(b, a)), product=2 * 2048**3 / best(lambda _: m @ m),
                versions=dict(Python=platform.python_version(), NumPy=np.__version__, PyTorch=torch.__version__) |
                         {p: version(p) for m, p in peers.items() if find_spec(m)})

def gpu():
    "`machine` for the GPU, whose measured rates an absolute goal on another one is to be read with."
    a, m = torch.ones(2**28, device='cuda'), torch.rand(8192, 8192, device='cuda', dtype=torch.bfloat16)
    b = torch.empty_like(a)
    return dict(device=torch.cuda.get_device_name(), date=f'{datetime.now(timezone.utc):%Y-%m-%d}',
                copy=2 * a.nbytes / best(lambda _: b.copy_(a), 'cuda'), product=2 * 8192**3 / best(lambda _: m @ m, 'cuda'),
                versions=dict(Python=platform.python_version(), PyTorch=torch.__version__, CUDA=torch.version.cuda))

def best(f, device='cpu'): return min(timed(f, None, device)[0] for _ in range(9))

def table(title, facts, rows):
    "The Markdown page."
    number = lambda v, unit: '–' if v is None else f'{v:.2f} GB' if unit == 'GB' else f'{v:.3g} s' if v >= 1 else f'{v * 1e3:.3g} ms'
    def line(r):
        if r['status'] != 'ok': return [r['name'], r['work'], r['peer'], r['status'], '', '', '', r.get('gate', '')]
        unit = r['unit']
        goal = ' '.join([f'≥ {v:g}×' for v in (r['goal'],) if v] + [f'≤ {number(v, unit)}' for v in (r['most'],) if v])
        goal = f"{goal}, {'met' if r['met'] else 'missed'}" if goal else '–'
        ratio = f"{r['ratio']:.3g}×" if r['ratio'] else '–'
        return [r['name'], r['work'], r['peer'], number(r['ours'], unit), number(r['theirs'], unit), ratio, goal, r['gate']]
    head = ['row', 'work', 'peer', 'ours', "peer's time", 'ratio', 'goal', 'gate']
    said = (f"{facts['device']}; copies {facts['copy'] / 1e9:,.0f} GB/s (read and written), multiplies matrices at {facts['product'] / 1e9:,.0f} "
            f"GFLOP/s; {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}; {facts['date']}.")
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ['---'] * len(head), *map(line, rows))]
    return '\n'.join([f'# {title}', '', said, '', *lines, ''])

def main(
    doc, title, name,  # Of the program, the page and its files
    rows,
    facts,             # () → what `machine` or `gpu` says
) -> int:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rows', nargs='+', default=[''], help='only rows with one of these in their names')
    p.add_argument('--reps', type=int, default=7, help='timed runs of each side')
    p.add_argument('--quick', action='store_true', help='each peer only twice')
    p.add_argument('--threads', type=int, default=torch.get_num_threads())
    p.add_argument('--out', type=Path, help='default: results/ beside this file, for a whole run')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    said, results = facts(), []
    for row in rows:
        if not any(part in row.name for part in a.rows): continue
        results.append(r := run(row, a.reps, 2 if a.quick else a.reps))
        print(r['name'], r['status'], *(f'{k} {r[k]:.4g}' for k in ('ours', 'theirs', 'ratio') if r.get(k)), r.get('gate', ''), sep='  ',
              file=sys.stderr, flush=True)
    print(text := table(title, said, results))
    out = a.out or (None if a.quick or len(results) < len(rows) else Path(__file__).parent/'results')   # a part does not replace the whole
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out/f'{name}.json').write_text(json.dumps(dict(machine=said, rows=results), indent=1) + '\n', encoding='utf-8')
        (out/f'{name}.md').write_text(text, encoding='utf-8')
    return int(any(r['status'] == 'FAILED' for r in results))
