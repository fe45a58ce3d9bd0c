"""Remake requirements/run.txt and dev.txt: the newest versions that fit the ranges of settings.ini (run by `make lock`)."""
import configparser, json, subprocess, sys, tempfile, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT/'requirements'
FASTAI = 'fastai==2.8.7'                  # the newest that runs with the fastcore 1.x of nbdev 2
UNUSED = {'torch', 'torchvision', 'spacy'} # of fastai's requirements: torch is locked apart, the others never imported
EXTRAS = 'vl', 'view', 'medical', 'eval'  # beside train: what the tests need
BUILD = ['setuptools>=77', 'pybind11>=2.13']
ELSEWHERE = ['appnope==0.1.4 ; sys_platform == "darwin"', 'colorama==0.4.6 ; sys_platform == "win32"']  # not seen on Linux

def name(requirement):
    "`plum-dispatch` of `Plum_Dispatch<2.10; ...`."
    head = requirement
    for c in ' <>=!~;[(': head = head.split(c)[0]
    return head.lower().replace('_', '-')

def settings():
    cfg = configparser.ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return {k: cfg['DEFAULT'][f'{k}_requirements' if k else 'requirements'].split() for k in ('', 'train', *EXTRAS, 'dev')}

def resolve(python, *args):
    "What pip would install beside the torch that is there: {name: (version, metadata)}."
    report = subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--dry-run', '--report', '-', *args],
                            check=True, stdout=subprocess.PIPE, text=True, encoding='utf-8').stdout
    found = [item['metadata'] for item in json.loads(report)['install']]
    return {name(m['name']): m for m in found}

def write(path, first, found):
    lines = sorted(f"{n}=={m['version']}" for n, m in found.items())
    path.write_text('\n'.join([*first, *lines]) + '\n', encoding='utf-8')
    print(f'{path.relative_to(ROOT)}: {len(lines)} packages')

def main():
    wanted = settings()
    with tempfile.TemporaryDirectory() as tmp:
        venv.create(tmp, with_pip=True)
        python = str(Path(tmp)/('Scripts' if sys.platform == 'win32' else 'bin')/'python')
        subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--no-deps', '-r', LOCKS/'torch-cpu.txt'], check=True)

        fastai = resolve(python, '--no-deps', FASTAI)
        needs = [r for r in fastai['fastai']['requires_dist'] if 'extra ==' not in r and name(r) not in UNUSED]
        train = [r for r in wanted['train'] if name(r) != 'fastai']
        runtime = [r for r in (*wanted[''], *wanted['view']) if name(r) != 'torch'] + BUILD
        torch_needs = ['torch']                                      # already there: brings only what it lacks
        everything = resolve(python, *runtime, *needs, *train, *sum((wanted[e] for e in (*EXTRAS, 'dev')), []), *torch_needs)

        pins = Path(tmp)/'pins.txt'
        pins.write_text('\n'.join(f"{n}=={m['version']}" for n, m in everything.items()), encoding='utf-8')
        run = resolve(python, '-c', str(pins), *runtime, *torch_needs)

    dev = {n: m for n, m in everything.items() if n not in run}
    write(LOCKS/'run.txt', ['# Made by `make lock`; see README.md here.', ELSEWHERE[1]], run)
    write(LOCKS/'dev.txt', ['# Made by `make lock`; see README.md here.', '-r run.txt', ELSEWHERE[0]], {**dev, **fastai})

if __name__ == '__main__': main()
