"""The documentation site, in _docs/: by quarto where it is installed, else the same pages with nbconvert alone, with a search of their own."""
import json, os, posixpath, re, shutil, subprocess, sys
from html import escape, unescape
from pathlib import Path

import nbformat, yaml
from nbconvert import HTMLExporter
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from pygments.formatters import HtmlFormatter

from sdfvq import _PUBLIC

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT/'_docs'
ROW = re.compile(r'^\| ([^|`]+) \| (`[^|]*) \|$', re.M)   # of the home page's table of rooms: a name and its notebooks
FIRST = ['', 'Tutorials', 'Explanations']   # of the sidebar's groups, before the rooms
LINK = re.compile(r'\b(href|src)="([^"]*)"')
HEADING = re.compile(r'<h([234])[^>]*\bid="([^"]*)"[^>]*>(.*?)</h\1>', re.S)

PAGE = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{tab}</title><link rel="stylesheet" href="{up}site.css"><link rel="stylesheet" href="{up}styles.css"></head>
<body><input type="checkbox" id="menu" aria-label="Menu"><nav><label for="menu">Menu</label><a class="home" href="{up}index.html">{project}</a>
<div class="links"><input type="search" placeholder="Search" aria-label="Search" data-up="{up}"><ol class="found"></ol><div class="rooms">{nav}
<p><a href="{repo}">Source code</a></p></div></div></nav>
<main><h1>{title}</h1><p class="lead">{lead}</p>
{body}
</main>{toc}<script src="{up}search.js"></script></body></html>
'''
SEARCH = '''// A row is [page, anchor, page's title, section, text]; all words must occur, and titles come first.
const box = document.querySelector('input[type=search]'), found = document.querySelector('.found'), rooms = document.querySelector('.rooms')
const here = document.querySelector('nav a.here')
if (here) here.closest('nav').scrollTop = here.offsetTop - innerHeight / 2   // not scrollIntoView, which moves the page, too
let rows
const load = () => rows ??= new Promise(done => {
  const script = document.createElement('script')
  script.src = box.dataset.up + 'pages.js'; script.onload = () => done(PAGES)
  document.head.append(script)
})
const score = ([page, , title, section, text], words) => {
  let sum = 0
  for (const w of words) {
    const t = title.toLowerCase(), s = section.toLowerCase()
    const n = s === w ? 90 : t === w ? (section ? 40 : 100) : s.startsWith(w) ? 30 : s.includes(w) ? 20 : t.includes(w) ? (section ? 8 : 25) : text.toLowerCase().includes(w) ? 2 : 0
    if (!n) return 0
    sum += n
  }
  return sum
}
const search = async () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean), all = await load()
  const best = all.map(r => [score(r, words), r]).filter(([n]) => n).sort((a, b) => b[0] - a[0]).slice(0, 15)
  rooms.hidden = words.length > 0
  found.replaceChildren(...(words.length ? best : []).map(([, [page, anchor, title, section]]) => {
    const li = document.createElement('li'), a = document.createElement('a'), small = document.createElement('small')
    a.href = box.dataset.up + page + (anchor && '#' + anchor); a.textContent = section || title
    if (section) { small.textContent = title; a.append(small) }
    li.append(a); return li
  }))
  if (words.length && !best.length) found.textContent = 'Nothing found.'
}
box.addEventListener('focus', load); box.addEventListener('input', search)
box.addEventListener('keydown', e => { if (e.key === 'Enter') found.querySelector('a')?.click() })
document.addEventListener('keydown', e => { if (e.key === '/' && document.activeElement !== box) { e.preventDefault(); box.focus() } })
'''.replace('\\\\', '\\')
CSS = '''
.highlight .err { border: 0; color: inherit; }
body { margin: 0; display: flex; font: 16px/1.6 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1f2933; }
nav { width: 14rem; flex: none; box-sizing: border-box; height: 100vh; position: sticky; top: 0; overflow-y: auto;
      padding: 1.5rem; background: #f5f7fa; border-right: 1px solid #dde3ea; font-size: 0.92rem; }
nav a { display: block; padding: 0.1rem 0; color: #334e68; text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav a.here { font-weight: 600; color: #0b5fa5; }
nav a.home { font-size: 1.3rem; font-weight: 700; }
nav h2 { font-size: 0.75rem; text-transform: uppercase; letter-spacing: 0.06em; color: #52606d; margin: 1.1rem 0 0.2rem; border: 0; }
main { flex: 1; min-width: 0; max-width: 78rem; padding: 1.5rem 2.5rem 5rem; box-sizing: border-box; }
main p, main li { max-width: 48rem; } main p:has(> .doc-source) { max-width: none; }
input[type=search] { width: 100%; box-sizing: border-box; font: inherit; padding: 0.3rem 0.5rem; margin-top: 0.8rem; border: 1px solid #c9d4e0; border-radius: 4px; }
.found { list-style: none; padding: 0; margin: 0.5rem 0; } .found small { display: block; color: #66727f; } .found a { padding: 0.25rem 0; }
nav label, #menu { display: none; }
aside { width: 15rem; flex: none; box-sizing: border-box; height: 100vh; position: sticky; top: 0; overflow-y: auto; padding: 2rem 1rem; font-size: 0.85rem; }
aside a { display: block; padding: 0.15rem 0; color: #52606d; text-decoration: none; overflow-wrap: anywhere; } aside a:hover { text-decoration: underline; }
aside a.h3 { padding-left: 0.9rem; }
@media (max-width: 78rem) { aside { display: none; } }
h1 { margin-bottom: 0; overflow-wrap: anywhere; } h2, h3, h4 { overflow-wrap: anywhere; } h4 { margin: 1.6rem 0 0.3rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #dde3ea; } h3 { margin-bottom: 0.3rem; }
.lead { font-size: 1.15rem; color: #52606d; margin-top: 0.2rem; }
a { color: #0b5fa5; } a.anchor-link { display: none; } hr { border: 0; border-top: 1px solid #eef1f5; margin: 2rem 0 0; }
img { max-width: 100%; }
pre { padding: 0.7rem 0.9rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.45; margin: 0.6rem 0; }
.highlight, main > pre { background: #f5f7fa; border-radius: 4px; }
.highlight pre { margin: 0.6rem 0; white-space: pre-wrap; overflow-wrap: break-word; }   /* what a program printed, and drawings, keep their lines and scroll */
code { font-size: 0.9em; } p code, li code, td code { background: #f0f3f7; padding: 0.1em 0.25em; border-radius: 3px; }
table { border-collapse: collapse; display: block; overflow-x: auto; max-width: 100%; } th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #dde3ea; text-align: left; }
.arguments td:first-child code { white-space: nowrap; }
.doc-source { float: right; font-size: 0.8rem; }
@media (max-width: 50rem) {
  body { display: block; } main { padding: 1rem; }
  nav { width: auto; height: auto; position: static; padding: 0.8rem 1rem; border-right: 0; border-bottom: 1px solid #dde3ea; }
  #menu { display: block; position: absolute; opacity: 0; } #menu:focus-visible ~ nav label { outline: 2px solid #0b5fa5; outline-offset: 2px; }   /* seen by keyboards alone */
  nav label { display: block; float: right; padding: 0.25rem 0.7rem; border: 1px solid #c9d4e0; border-radius: 4px; cursor: pointer; }
  .arguments thead { display: none; } .arguments tr { display: block; padding: 0.4rem 0; border-bottom: 1px solid #dde3ea; }
  .arguments td { display: inline; padding: 0 0.4rem 0 0; border: 0; } .arguments td:last-child { display: block; } .arguments td:empty { display: none; }
  .links { display: none; } #menu:checked ~ nav .links { display: block; } nav .links a { padding: 0.35rem 0; }
}
'''

def shown(cell):
    "The cell as a reader sees it: no directives; documentation that nbdev made is text, not output."
    text = '\n\n'.join(o.data['text/markdown'] for o in cell.get('outputs', []) if 'text/markdown' in o.get('data', {}))
    if text and re.search(r'^#\|\s*echo:\s*false', cell.source, re.M):
        cell = nbformat.v4.new_markdown_cell(re.sub(r'\[source\]\(([^)]*)\)\{[^}]*\}', r'<a class="doc-source" href="\1">source</a>', text))
    if said := re.search(r'^#\|\s*fig-alt:\s*"(.*)"', cell.source, re.M):                  # as quarto has it
        for o in cell.get('outputs', []): o.setdefault('metadata', {})['image/png'] = dict(alt=said[1])
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M) if cell.cell_type == 'code' else cell.source
    return cell

def read(path):
    "A processed notebook as (front matter, notebook), in the form that nbconvert takes."
    nb, front = nbformat.read(path, as_version=4), {}
    for cell in nb.cells:
        if cell.cell_type == 'raw' and cell.source.startswith('---'): front |= yaml.safe_load(cell.source.strip().strip('-')) or {}
    nb.cells = [shown(c) for c in nb.cells if c.cell_type != 'raw']
    return front, nb

def rooms(home):
    "The room of each notebook, by its path without suffix, in the order of the home page's table."
    found = {name: room[:1].upper() + room[1:] for room, row in ROW.findall(home) for name in re.findall('`([^`]+)`', row)}
    if not found: sys.exit('nbs/index.ipynb has no table of rooms (| room | `notebook` … |), by which the sidebar is grouped: add it')
    return found

def nav(pages, here, rooms):
    "The sidebar, as seen from the page `here`: folders, then the home page's rooms."
    groups = {room: [] for room in dict.fromkeys(rooms.values())}
    at = {name: i for i, name in enumerate(rooms)}
    for page, (front, source) in sorted(pages.items(), key=lambda p: at.get(p[1][1].with_suffix('').as_posix(), -1)):
        folder = posixpath.dirname(page)
        group = folder.replace('_', ' ').capitalize() if folder else rooms.get(source.stem, '')
        groups.setdefault(group, []).append((page, front['title']))
    def link(page, title):
        mark = ' class="here"' if page == here else ''
        return f'<a{mark} href="{posixpath.relpath(page, posixpath.dirname(here) or ".")}">{escape(title)}</a>'
    order = sorted(filter(groups.get, groups), key=lambda g: FIRST.index(g) if g in FIRST else len(FIRST))
    return ''.join((f'<h2>{group}</h2>' if group else '') + ''.join(link(*p) for p in groups[group] if p[0] != 'index.html') for group in order)

def text_of(html): return ' '.join(unescape(re.sub(r'<[^>]+>', ' ', re.sub(r'<a class="anchor-link".*?</a>', '', html, flags=re.S))).split())

def anchored(body):
    "Headings named as quarto would, which is how nbdev links to them."
    seen = {}
    def fix(m):
        slug = re.sub(r'^[^a-z]+', '', re.sub(r'[^\w\-. ]', '', text_of(m[3]).lower()).replace(' ', '-')) or 'section'
        seen[slug] = seen.get(slug, -1) + 1
        slug += f'-{seen[slug]}' if seen[slug] else ''
        return m[0].replace(f'id="{m[2]}"', f'id="{slug}"').replace(f'href="#{m[2]}"', f'href="#{slug}"')
    return HEADING.sub(fix, body)

def tables(body):
    "Those of arguments by name: a small screen stacks their cells."
    return re.sub(r'<table>(?=\s*<thead>\s*<tr>\s*<th>argument</th>)', '<table class="arguments">', body)

def sections(body):
    "Level, anchor, heading and words (no code, no pictures) of each part of a page; what stands before the first heading has none."
    parts = HEADING.split(re.sub(r'<pre.*?</pre>|<img[^>]*>|<style.*?</style>|<script.*?</script>', '', body, flags=re.S))
    yield 1, '', '', text_of(parts[0])
    for level, anchor, heading, rest in zip(*(parts[i::4] for i in range(1, 5))): yield int(level), anchor, text_of(heading), text_of(rest)

def contents(body):
    "Headings of a long page, beside it."
    links = [f'<a class="h{level}" href="#{escape(anchor)}">{escape(heading)}</a>' for level, anchor, heading, _ in sections(body) if level in (2, 3)]
    return f'<aside>{"".join(links)}</aside>' if len(links) > 2 else ''

def relink(body, page, source, pages, anchors, cfg):
    "Links to notebooks and to the published site become links to this site's pages; what lies outside is in the repository."
    by_source = {s.as_posix(): p for p, (_, s) in pages.items()}
    published = cfg.doc_host.rstrip('/') + cfg.doc_baseurl.rstrip('/') + '/'
    here = posixpath.dirname(page) or '.'
    def fix(m):
        target, _, anchor = unescape(m[2]).partition('#')
        if target.startswith(published):                                # nbdev links every name that it knows, also of a module that cannot be imported here
            if anchor not in anchors.get(target[len(published):], ()): anchor = ''
            target = posixpath.relpath(target[len(published):], here)
        elif target.endswith('.ipynb') and ':' not in target:
            found = by_source.get(posixpath.normpath(posixpath.join(source.parent.as_posix(), target)))
            if found: target = posixpath.relpath(found, here)
        elif (outside := posixpath.normpath(posixpath.join(source.parent.as_posix(), target))).startswith('../'):
            target = f'{cfg.git_url}/blob/{cfg.branch}/{outside[3:]}'   # a file of the repository above nbs/
        return f'{m[1]}="{escape(target + ("#" + anchor if anchor else ""))}"'
    return LINK.sub(fix, body)

def broken_links():
    "Links and pictures of the site that lead nowhere, also within a page, and pictures that say nothing to who cannot see them."
    text = {page.resolve(): page.read_text(encoding='utf-8') for page in sorted(SITE.rglob('*.html'))}
    anchors = {page: set(map(unescape, re.findall(r'\bid="([^"]+)"', t))) for page, t in text.items()}
    for page, html in text.items():
        name = page.relative_to(SITE.resolve())
        for _, target in LINK.findall(html):
            file, _, anchor = unescape(target).partition('#')
            if re.match(r'[a-z]+:|//', file): continue
            to = (page.parent/file).resolve() if file else page
            if not to.exists() or anchor and to in anchors and anchor not in anchors[to]: yield f'{name}: {target}'
        for img in re.findall(r'<img[^>]*>', html):
            if not re.search(r'\balt="(?!No description)[^"]+"', img): yield f'{name}: a picture without a description (alt): {img[:80]}'

def make():
    "The site without quarto."
    cfg, cache, found = get_config(path=ROOT), proc_nbs(force=True), []
    notebooks = {p.relative_to(cache): read(p) for p in sorted(cache.rglob('*.ipynb'), key=lambda p: (len(p.parts), p.as_posix()))}
    pages = {}   # site path: (front matter, path of the notebook)
    for source, (front, _) in notebooks.items():
        page = (source.parent/front.get('output-file', source.with_suffix('.html').name)).as_posix()
        pages[page] = ({'title': source.stem, 'description': '', **front}, source)

    room = rooms('\n'.join(c.source for c in notebooks[Path('index.ipynb')][1].cells))
    lost = [source.as_posix() for source in notebooks if source.with_suffix('').as_posix() not in room and source.name != 'index.ipynb']
    if lost: sys.exit(f"not in the table of rooms of nbs/index.ipynb: {', '.join(lost)}; add them, the sidebar is grouped by it")

    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(cache, SITE, ignore=lambda d, names: [n for n in names if n == 'data' or n.endswith(('.ipynb', '.yml'))])
    (SITE/'site.css').write_text(HtmlFormatter(style='friendly').get_style_defs('.highlight') + CSS, encoding='utf-8')
    exporter = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    bodies = {page: tables(anchored(exporter.from_notebook_node(notebooks[source][1])[0])) for page, (_, source) in pages.items()}
    anchors = {page: {anchor for _, anchor, _ in HEADING.findall(body)} for page, body in bodies.items()}
    for page, (front, source) in pages.items():
        body = bodies[page]
        lead = re.sub(r'`([^`]*)`', r'<code>\1</code>', escape(front['description'] or ''))
        found += [(page, anchor, front['title'], heading, f"{front['description'] or ''} {words}" if level == 1 else words)
                  for level, anchor, heading, words in sections(body)]
        tab = f'{cfg.title}: {cfg.description}' if page == 'index.html' else f"{front['title']} – {cfg.title}"
        html = PAGE.format(title=escape(front['title']), tab=escape(tab), lead=lead, body=body, nav=nav(pages, page, room), toc=contents(body),
                           project=cfg.title, repo=cfg.git_url, up='../' * page.count('/'))
        (SITE/page).parent.mkdir(parents=True, exist_ok=True)
        (SITE/page).write_text(relink(html, page, source, pages, anchors, cfg), encoding='utf-8')
    found.sort(key=lambda row: row[0] != f'{_PUBLIC.get(row[3])}.html')                  # of names that are twice, the public one first
    (SITE/'search.js').write_text(SEARCH, encoding='utf-8')
    (SITE/'pages.js').write_text(f'const PAGES = {json.dumps(found, ensure_ascii=False)}', encoding='utf-8')
    print(f'{len(pages)} pages: {(SITE/"index.html").relative_to(ROOT)}')

def main():
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT/'tools'), *filter(None, [os.environ.get('PYTHONPATH')])])   # the renderer of settings.ini
    sys.path.insert(0, str(ROOT/'tools'))
    if shutil.which('quarto'):
        if code := subprocess.run([Path(sys.executable).parent/'nbdev_docs'], cwd=ROOT).returncode: sys.exit(code)
    else: make()
    if broken := list(broken_links()): sys.exit('links that lead nowhere:\n' + '\n'.join(broken))

if __name__ == '__main__': main()
