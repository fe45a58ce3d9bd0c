"""The docs site can be made: nbdev runs every cell that holds an import, so a test cell with one inside breaks it."""
import importlib.util, json, re, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/'_docs'
spec = importlib.util.spec_from_file_location('docs', ROOT/'tools/docs.py')
tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool)

@pytest.fixture(scope='module')
def site():
    "The pages' texts by name; that there is no broken link, lost picture or picture without words, the tool itself sees to."
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs.py'], cwd=ROOT, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stdout + done.stderr
    return {p.relative_to(SITE).as_posix(): p.read_text(encoding='utf-8') for p in SITE.rglob('*.html')}

def test_every_notebook_is_a_page(site):
    notebooks = {re.sub(r'^\d+[a-z]?_', '', p.stem) for p in (ROOT/'nbs').rglob('*.ipynb') if not p.name.startswith(('.', '_')) and '_proc' not in p.parts}
    assert {Path(name).stem for name in site} == notebooks and all('<title>' in html for html in site.values())

def test_no_markdown_is_left(site):
    "nbdev makes a link of every name in backticks that it knows; one within a link of ours breaks both."
    for name, html in site.items():
        assert ('](' not in tool.text_of(re.sub(r'<(pre|code)\b.*?</\1>', '', html, flags=re.S))), name

def test_arguments_stand_in_tables(site):
    text = tool.text_of(site['voxelize.html'])
    for row in ('resolution int 256 R, a multiple of 8 from 8 to 2048', 'coords ndarray (N,3) int32 voxels (x,y,z), unique, sorted lexicographically'): assert row in text, row
    assert 'id="sparsesdf.load"' in site['voxelize.html']                                    # methods too
    assert 'href="voxelize.html#sparsesdf"' in site['tokenizer.html']                        # types lead to their page

def test_types_are_as_one_writes_them(site):
    assert not [name for name, html in site.items() if 'object at 0x' in html or 'Annotated[' in html]
    types = {tool.text_of(cell) for html in site.values() for table in re.findall('<table class="arguments">.*?</table>', html, re.S)
             for cell in re.findall(r'<tr>\s*<td>.*?</td>\s*<td>(.*?)</td>', table, re.S)}
    assert {'int', 'Path', 'Trimesh', 'int | None'} <= types
    assert not [said for said in types if '\\' in said or re.search(r'\w\.\w', said)]             # no backslash, no modules

def test_commands_stand_on_one_page(site):
    "In the order of the help, with every option and what it is for; on the pages of the functions, too."
    text = tool.text_of(site['cli.html'])
    for words in ('sdfvq voxelize MESH -o OUTPUT', '--resolution int 256 Edge of the voxel grid.', '--seed int 0 Draws them.', '-o --output path Where the result goes.'):
        assert words in text, words
    found = re.findall('<h3 id="sdfvq-([^"]*)"', site['cli.html'])
    assert found[:4] == 'voxelize mesh prepare inspect'.split() and found[-1] == 'retrieve-recommend' and len(found) == len(set(found)) >= 20
    assert 'output -o --output Path Where the result goes.' in tool.text_of(site['commands_data.html'])

def test_sidebar_has_the_rooms_of_the_home_page(site):
    tokens = site['evaluate.html'].split('<h2>Tokens</h2>')[1].split('<h2>')[0]
    assert [*re.findall('href="([^"]*)"', tokens)][:4] == ['coder.html', 'tokens.html', 'tokenizer.html', 'evaluate.html'] and 'draco.html' in tokens
    assert '<a class="here" href="evaluate.html">' in tokens and '<title>sdfvq: ' in site['index.html'] and '<title>evaluate – sdfvq<' in site['evaluate.html']

def test_a_home_page_without_rooms_is_refused():
    assert tool.rooms('| room | notebooks |\n|---|---|\n| a, b | `01_x` `02_y`; `z/` |\n| c | `z/w` |') == {'01_x': 'A, b', '02_y': 'A, b', 'z/': 'A, b', 'z/w': 'C'}
    with pytest.raises(SystemExit, match='no table of rooms'): tool.rooms('| extra | for |\n|---|---|\n')

def test_links_are_checked_with_quarto_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'SITE', tmp_path); monkeypatch.setattr(tool.shutil, 'which', lambda name: name)
    monkeypatch.setattr(tool.subprocess, 'run', lambda *a, **k: (tmp_path/'a.html').write_text('<a href="none.html">x</a>', encoding='utf-8') and subprocess.CompletedProcess(a, 0))
    monkeypatch.setenv('PYTHONPATH', ''); monkeypatch.setattr(sys, 'path', [*sys.path])
    with pytest.raises(SystemExit, match='a.html: none.html'): tool.main()

def test_search_finds_what_is_there(site):
    rows = json.loads((SITE/'pages.js').read_text(encoding='utf-8').removeprefix('const PAGES = '))
    assert {r[0] for r in rows} == set(site)
    assert ['voxelize.html', 'march', 'voxelize', 'march'] in [r[:4] for r in rows]
    for page, anchor, *_ in rows: assert not anchor or f'id="{anchor}"' in site[page], (page, anchor)

@pytest.mark.parametrize('body, said', [
    ('<a href="none.html">x</a>', 'none.html'), ('<a href="a.html#none">x</a>', 'a.html#none'), ('<a href="#none">x</a>', '#none'),
    ('<img src="none.png" alt="x">', 'none.png'), ('<img src="a.html">', 'without a description'),
    ('<a href="a.html#here">x</a><a href="https://a.b/#c">x</a>', None)])
def test_what_leads_nowhere_is_found(tmp_path, monkeypatch, body, said):
    monkeypatch.setattr(tool, 'SITE', tmp_path)
    (tmp_path/'a.html').write_text(f'<h2 id="here">h</h2>{body}', encoding='utf-8')
    found = list(tool.broken_links())
    assert len(found) == bool(said) and (not said or said in found[0])

def test_headings_are_named_as_quarto_names_them():
    body = tool.anchored('<h2 id="The-field">The field<a class="anchor-link" href="#The-field">¶</a></h2><h3 id="SparseSDF.load">SparseSDF.load</h3><h2 id="2">2. The field</h2>')
    assert re.findall('id="([^"]*)"', body) == ['the-field', 'sparsesdf.load', 'the-field-1'] and 'href="#the-field"' in body and '>SparseSDF.load<' in body
