"""Are the notebooks clean and the library in step with them? Works on copies: nothing in the checkout changes."""
import filecmp, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOT_EXPORTED = {'__init__.py'}  # by hand, but for the version

def run(command, folder):
    env = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}
    done = subprocess.run([BIN/command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode: sys.exit(f'{command} failed:\n{done.stdout}')

def copy(folder):
    skip = shutil.ignore_patterns('.*', '_proc', '_docs', '__pycache__', '*.so', 'data', 'images')
    for d in ('nbs', 'sdfvq'): shutil.copytree(ROOT/d, folder/d, ignore=skip)
    shutil.copy(ROOT/'settings.ini', folder)

def differing(folder, pattern, skip=()):
    "Files matching `pattern` that are not the same here and in `folder`."
    files = {p.relative_to(base) for base in (ROOT, folder) for p in base.glob(pattern)
             if p.name not in skip and not any(part.startswith('.') for part in p.relative_to(base).parts)}
    same = lambda f: (ROOT/f).exists() and (folder/f).exists() and filecmp.cmp(ROOT/f, folder/f, shallow=False)
    return sorted(str(f) for f in files if not same(f))

def swallowed():
    "Notebooks with more than title and `>` line in the first cell: nbdev leaves the rest out of the docs."
    for p in sorted(ROOT.glob('nbs/**/*.ipynb')):
        first = ''.join(json.loads(p.read_text(encoding='utf-8'))['cells'][0]['source'])
        if any(line.strip() and line[0] not in '#>-' for line in first.splitlines()): yield str(p.relative_to(ROOT))

def check(what, found, cure='Run `make sync` and commit what it changes.'):
    if found: sys.exit(f"{what}: {', '.join(found)}\n{cure}")

def main():
    check('prose in the title cell is lost in the docs', list(swallowed()), 'Give it a cell of its own, below.')
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        copy(tmp)
        run('nbdev_clean', tmp)
        check('notebooks that are not clean', differing(tmp, 'nbs/**/*.ipynb'))
        for p in (tmp/'sdfvq').glob('*.py'):
            if p.name not in NOT_EXPORTED: p.unlink()
        run('nbdev_export', tmp)
        check('library modules out of step with the notebooks', differing(tmp, 'sdfvq/**/*.py'))
    print('notebooks clean, library in step')

if __name__ == '__main__': main()
