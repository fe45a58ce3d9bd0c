"""README.md from nbs/index.ipynb: the page less hidden cells and those marked as not for it, with links that work from the top folder."""
import posixpath, re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)"\s]+)')
LEFT_OUT = '<!-- not in the README -->'
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`; edit there. -->\n\n'

def from_nbs(match):
    "A relative link of a page in nbs/, as seen from the top folder."
    start, target = match.groups()
    if re.match(r'[a-z]+:|[#/]', target): return match[0]
    return start + posixpath.normpath(posixpath.join('nbs', target))

def shown(cell):
    "The cell as a reader sees it, or None."
    lines = cell.source.splitlines()
    if lines and lines[0] == LEFT_OUT: return None
    directives = [l.split('|', 1)[1].split() for l in lines if re.match(r'#\s*\|', l)]
    if any(d and d[0] in ('hide', 'default_exp', 'export', 'exports', 'exporti') for d in directives): return None
    cell.source = '\n'.join(l for l in lines if not re.match(r'#\s*\|', l))
    return cell

def readme():
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in map(shown, nb.cells) if c is not None]
    nb.metadata.setdefault('language_info', {'name': 'python'})
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources['outputs']: raise SystemExit('nbs/index.ipynb holds a picture as output; put it in nbs/images/ and link it')
    return NOTE + LINK.sub(from_nbs, text).strip() + '\n'

if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
