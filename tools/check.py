"""Are the notebooks clean and the library in step with them? Works on copies: nothing in the checkout changes."""
import ast, builtins, filecmp, json, os, re, shutil, subprocess, symtable, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOT_EXPORTED = {'__init__.py'}  # by hand, but for the version

def run(command, folder):
    env = {**os.environ, 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}
    done = subprocess.run([BIN/command], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8')
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

def widgets():
    "Notebooks that carry the state of widgets, which no page shows and no cleaning drops."
    return [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob('nbs/**/*.ipynb')) if 'widgets' in json.loads(p.read_text(encoding='utf-8'))['metadata']]

def twins():
    "Cells that share their id with another of the notebook: editors and merges take one for the other."
    for p in sorted(ROOT.glob('nbs/**/*.ipynb')):
        ids = [c['id'] for c in json.loads(p.read_text(encoding='utf-8'))['cells']]
        if len(set(ids)) < len(ids): yield str(p.relative_to(ROOT))

def code():
    "(where, source) of every script and of every cell of code."
    for d in ('tests', 'tools', 'bench'):
        for p in sorted((ROOT/d).glob('*.py')): yield p.relative_to(ROOT), p.read_text(encoding='utf-8')
    for p in sorted(ROOT.glob('nbs/**/*.ipynb')):
        for i, cell in enumerate(json.loads(p.read_text(encoding='utf-8'))['cells']):
            if cell['cell_type'] == 'code' and not ''.join(cell['source']).startswith(('%', '!')): yield f'{p.relative_to(ROOT)} cell {i}', ''.join(cell['source'])

def opens_in_locale(node):
    "A call that reads or writes text in whatever encoding the user's locale has: the cause of failures that only others see."
    if not isinstance(node, ast.Call) or any(k.arg in ('encoding', None) for k in node.keywords): return False
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    if name == 'read_text': return not node.args
    if name == 'write_text': return len(node.args) < 2
    if name == 'open':
        builtin = isinstance(node.func, ast.Name)
        mode = [k.value for k in node.keywords if k.arg == 'mode'] or node.args[builtin:][:1]
        return isinstance(mode[0], ast.Constant) and bool(re.fullmatch('[rwaxt+]+', str(mode[0].value))) if mode else builtin or not node.args
    return any(k.arg == 'text' and getattr(k.value, 'value', 0) is True for k in node.keywords)   # of a subprocess

def scopes(table):
    yield table
    for inner in table.get_children(): yield from scopes(inner)

def undefined(source, path):
    "Global names that are read and that the module neither defines nor imports: code for a GPU would say so only to the one who has one."
    every = [*scopes(symtable.symtable(source, str(path), 'exec'))]
    known = {*dir(builtins), '__file__'} | {s.get_name() for t in every for s in t.get_symbols() if (t is every[0] or s.is_declared_global()) and (s.is_assigned() or s.is_imported())}
    read = {s.get_name() for t in every for s in t.get_symbols() if s.is_referenced() and (t is every[0] or s.is_global())}
    return [f'{path.name}: {name}' for name in sorted(read - known)]

def check(what, found, cure='Run `make sync` and commit what it changes.'):
    if found: sys.exit(f"{what}: {', '.join(found)}\n{cure}")

def main():
    check('prose in the title cell is lost in the docs', list(swallowed()), 'Give it a cell of its own, below.')
    check('dead state of widgets', widgets(), 'Delete `metadata.widgets`; `python tools/run.py NOTEBOOK` leaves it out.')
    check('cells with one id', list(twins()), 'Give one of them another.')
    check('text without an encoding', [f'{where} line {n.lineno}' for where, source in code() for n in ast.walk(ast.parse(source)) if opens_in_locale(n)],
          "Say encoding='utf-8'.")
    check('names that nothing defines', [n for d in ('sdfvq', 'bench', 'tools') for p in sorted((ROOT/d).glob('*.py')) for n in undefined(p.read_text(encoding='utf-8'), p)],
          'Import or define them, in the notebook.')
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
