"README.md is the page that nbs/index.ipynb makes, and its links lead somewhere."
import importlib.util, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location('readme', ROOT/'tools/readme.py')
tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool)

def test_in_step():
    assert (ROOT/'README.md').read_text(encoding='utf-8') == tool.readme(), "README.md is old: run `make readme`"

def test_links():
    targets = [t for _, t in tool.LINK.findall((ROOT/'README.md').read_text(encoding='utf-8')) if not re.match(r'[a-z]+:|#', t)]
    assert not [t for t in targets if not (ROOT/t.split('#')[0]).exists()]

def test_relative_links_are_moved():
    move = lambda s: tool.LINK.sub(tool.from_nbs, s)
    assert move('![a](images/a.png)') == '![a](nbs/images/a.png)'
    assert move('<img src="images/a.png" width="9">') == '<img src="nbs/images/a.png" width="9">'
    assert move('[licence](../LICENSE)') == '[licence](LICENSE)'
    assert move('[x](https://a.b/c) [y](#top)') == '[x](https://a.b/c) [y](#top)'
