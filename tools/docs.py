"""The documentation site, in _docs/: by quarto where it is installed, else the same pages with nbconvert alone."""
import posixpath, re, shutil, subprocess, sys
from html import escape, unescape
from pathlib import Path

import nbformat, yaml
from nbconvert import HTMLExporter
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/'_docs'
ROOM = {'0': 'Foundation', '1': 'Shapes', '2': 'Sparse tensors', '3': 'Models', '4': 'Data and training',
        '5': 'Tokens', '6': 'Language and retrieval', '7': 'Command line'}
LINK = re.compile(r'\b(href|src)="([^"]*)"')

PAGE = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – {project}</title><link rel="stylesheet" href="{up}site.css"><link rel="stylesheet" href="{up}styles.css"></head>
<body><nav><a class="home" href="{up}index.html">{project}</a>{nav}<p><a href="{repo}">Source code</a></p></nav>
<main><h1>{title}</h1><p class="lead">{lead}</p>
{body}
</main></body></html>
'''
CSS = '''
body { margin: 0; display: flex; font: 16px/1.6 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1f2933; }
nav { width: 14rem; flex: none; box-sizing: border-box; height: 100vh; position: sticky; top: 0; overflow-y: auto;
      padding: 1.5rem; background: #f5f7fa; border-right: 1px solid #dde3ea; font-size: 0.92rem; }
nav a { display: block; padding: 0.1rem 0; color: #334e68; text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav a.here { font-weight: 600; color: #0b5fa5; }
nav a.home { font-size: 1.3rem; font-weight: 700; }
nav h2 { font-size: 0.75rem; text-transform: uppercase; letter-spacing: 0.06em; color: #7b8794; margin: 1.1rem 0 0.2rem; border: 0; }
main { flex: 1; min-width: 0; max-width: 54rem; padding: 1.5rem 3rem 5rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #dde3ea; } h3 { margin-bottom: 0.3rem; }
.lead { font-size: 1.15rem; color: #52606d; margin-top: 0.2rem; }
a { color: #0b5fa5; } a.anchor-link { display: none; } hr { border: 0; border-top: 1px solid #eef1f5; margin: 2rem 0 0; }
img { max-width: 100%; }
pre { padding: 0.7rem 0.9rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.45; margin: 0.6rem 0; }
.highlight, main > pre { background: #f5f7fa; border-radius: 4px; }
.highlight pre { margin: 0.6rem 0; }
code { font-size: 0.9em; } p code, li code, td code { background: #f0f3f7; padding: 0.1em 0.25em; border-radius: 3px; }
table { border-collapse: collapse; } th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #dde3ea; text-align: left; }
.doc-source { float: right; font-size: 0.8rem; }
@media (max-width: 50rem) { body { display: block; } nav { width: auto; height: auto; position: static; } main { padding: 1rem; } }
'''

def shown(cell):
    "The cell as a reader sees it: no directives; documentation that nbdev made is text, not output."
    text = '\n\n'.join(o.data['text/markdown'] for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {}))
    if text and re.search(r'^#\|\s*echo:\s*false', cell.source, re.M):
        cell = nbformat.v4.new_markdown_cell(re.sub(r'\[source\]\(([^)]*)\)\{[^}]*\}', r'<a class="doc-source" href="\1">source</a>', text))
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M) if cell.cell_type == 'code' else cell.source
    return cell

def read(path):
    "A processed notebook as (front matter, notebook), in the form that nbconvert takes."
    nb, front = nbformat.read(path, as_version=4), {}
    for cell in nb.cells:
        if cell.cell_type == 'raw' and cell.source.startswith('---'): front |= yaml.safe_load(cell.source.strip().strip('-')) or {}
    nb.cells = [shown(c) for c in nb.cells if c.cell_type != 'raw']
    return front, nb

def nav(pages, here):
    "The sidebar, as seen from the page `here`: rooms by number, then folders."
    groups = {}
    for page, (front, source) in pages.items():
        folder = posixpath.dirname(page)
        group = folder.replace('_', ' ').capitalize() if folder else ROOM.get(source.name[0], '')
        groups.setdefault(group, []).append((page, front['title']))
    def link(page, title):
        mark = ' class="here"' if page == here else ''
        return f'<a{mark} href="{posixpath.relpath(page, posixpath.dirname(here) or ".")}">{escape(title)}</a>'
    return ''.join((f'<h2>{group}</h2>' if group else '') + ''.join(link(*p) for p in links if p[0] != 'index.html')
                   for group, links in groups.items())

def relink(body, page, source, pages, cfg):
    "Links to notebooks and to the published site become links to this site's pages; what lies outside is in the repository."
    by_source = {s.as_posix(): p for p, (_, s) in pages.items()}
    published = cfg.doc_host.rstrip('/') + cfg.doc_baseurl.rstrip('/') + '/'
    here = posixpath.dirname(page) or '.'
    def fix(m):
        target, _, anchor = unescape(m[2]).partition('#')
        if target.startswith(published): target = posixpath.relpath(target[len(published):], here)
        elif target.endswith('.ipynb') and ':' not in target:
            found = by_source.get(posixpath.normpath(posixpath.join(source.parent.as_posix(), target)))
            if found: target = posixpath.relpath(found, here)
        elif (outside := posixpath.normpath(posixpath.join(source.parent.as_posix(), target))).startswith('../'):
            target = f'{cfg.git_url}/blob/{cfg.branch}/{outside[3:]}'   # a file of the repository above nbs/
        return f'{m[1]}="{escape(target + ("#" + anchor if anchor else ""))}"'
    return LINK.sub(fix, body)

def broken_links():
    for page in sorted(SITE.rglob('*.html')):
        for _, target in LINK.findall(page.read_text(encoding='utf-8')):
            file = unescape(target).split('#')[0]
            if file and not re.match(r'[a-z]+:|//', file) and not (page.parent/file).exists(): yield f'{page.relative_to(SITE)}: {target}'

def main():
    if shutil.which('quarto'): sys.exit(subprocess.run([Path(sys.executable).parent/'nbdev_docs'], cwd=ROOT).returncode)
    cfg, cache = get_config(path=ROOT), proc_nbs(force=True)
    notebooks = {p.relative_to(cache): read(p) for p in sorted(cache.rglob('*.ipynb'), key=lambda p: (len(p.parts), p.as_posix()))}
    pages = {}   # site path: (front matter, path of the notebook)
    for source, (front, _) in notebooks.items():
        page = (source.parent/front.get('output-file', source.with_suffix('.html').name)).as_posix()
        pages[page] = ({'title': source.stem, 'description': '', **front}, source)

    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(cache, SITE, ignore=lambda d, names: [n for n in names if n == 'data' or n.endswith(('.ipynb', '.yml'))])
    (SITE/'site.css').write_text(HtmlFormatter(style='friendly').get_style_defs('.highlight') + CSS, encoding='utf-8')
    exporter = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    for page, (front, source) in pages.items():
        body, _ = exporter.from_notebook_node(notebooks[source][1])
        lead = re.sub(r'`([^`]*)`', r'<code>\1</code>', escape(front['description'] or ''))
        html = PAGE.format(title=escape(front['title']), lead=lead, body=body, nav=nav(pages, page),
                           project=cfg.title, repo=cfg.git_url, up='../' * page.count('/'))
        (SITE/page).parent.mkdir(parents=True, exist_ok=True)
        (SITE/page).write_text(relink(html, page, source, pages, cfg), encoding='utf-8')
    broken = list(broken_links())
    print(f'{len(pages)} pages: {(SITE/"index.html").relative_to(ROOT)}')
    if broken: sys.exit('links that lead nowhere:\n' + '\n'.join(broken))

if __name__ == '__main__': main()
