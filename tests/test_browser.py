"""What a reader sees, in a real headless Chromium: `make test-browser`. `make test` leaves it out, and says so. Pictures stay in _screenshots/."""
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import chromium, find_chromium

ROOT = Path(__file__).resolve().parent.parent
SITE, SHOTS = ROOT/'_docs', ROOT/'_screenshots'
pytestmark = pytest.mark.browser
PAGES = 'index.html', 'voxelize.html', 'tutorials/mesh_to_tokens.html', 'explanations/coming_from.html'

@pytest.fixture(scope='module')
def page():
    if not find_chromium(): pytest.fail('no Chromium: install it (Debian: apt-get install chromium), or name it in CHROMIUM')
    if not (SITE/'index.html').exists(): pytest.fail('no site: run `make docs`')
    SHOTS.mkdir(exist_ok=True)
    with chromium() as p: yield p

def shot(page, name, box=None): return np.asarray(Image.open(io.BytesIO(page.screenshot(SHOTS/f'{name}.png', box))).convert('RGB')).astype(int)

def pictures_without_pixels(page): return page.js("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")

@pytest.mark.parametrize('name', PAGES)
@pytest.mark.parametrize('width', [1280, 390])
def test_page(page, name, width):
    "It loads from the disk alone, without an error, its pictures are there, and nothing is wider than the window."
    page.resize(width, 900 if width > 600 else 800, mobile=width < 600)
    page.open((SITE/name).as_uri())
    assert not page.errors and all(r.startswith(('file:', 'data:')) for r in page.requests)
    assert page.js('document.querySelector("h1").textContent') and not pictures_without_pixels(page)
    assert page.js('document.documentElement.scrollWidth') <= width == page.js('innerWidth')
    image = shot(page, f"{name.replace('/', '_').removesuffix('.html')}_{width}")
    assert image.shape[1] == width and (image < 128).all(-1).mean() > .005                   # there is text

def test_menu_of_a_small_screen(page):
    page.resize(390, 800, mobile=True); page.open((SITE/'index.html').as_uri())
    high = 'document.querySelector("nav").offsetHeight'
    closed = page.js(high); assert closed < 100
    page.js('document.querySelector("nav label").click()'); assert page.js(high) > 1000
    shot(page, 'menu_390')
    page.open((SITE/'index.html').as_uri())
    for key in ('Tab', ' '): page.press(key)                                                 # a keyboard alone opens it, and sees where it is
    assert page.js(high) > 1000 and page.js('getComputedStyle(document.querySelector("nav label")).outlineStyle') == 'solid'

def test_sidebar_shows_where_one_is(page):
    page.resize(1280, 900); page.open((SITE/'cli.html').as_uri())
    top = page.js('document.querySelector("nav a.here").getBoundingClientRect().top')
    assert 0 < top < 880 and page.js('scrollY') == 0 and page.js('document.querySelector("nav").scrollTop') > 900

@pytest.mark.parametrize('width', [1280, 390])
@pytest.mark.parametrize('name', ['index.html', 'voxelize.html', 'cli.html', 'vqvae.html'])
def test_code_is_not_cut_off(page, name, width):
    page.resize(width, 900, mobile=width < 600); page.open((SITE/name).as_uri())
    assert page.js('[...document.querySelectorAll(".highlight pre")].filter(p => p.scrollWidth > p.clientWidth).length') == 0
    assert page.js('document.querySelectorAll(".highlight pre").length') and page.js('document.documentElement.scrollWidth') <= width
    shot(page, f"code_{name.removesuffix('.html')}_{width}")

def test_arguments_on_a_small_screen(page):
    page.resize(390, 800, mobile=True); page.open((SITE/'cli.html').as_uri())
    assert page.js('[...document.querySelectorAll(".arguments td")].filter(c => c.getBoundingClientRect().right > 390).length') == 0
    assert page.js('document.querySelectorAll(".arguments td").length') > 400
    page.js('document.querySelector("#sdfvq-prepare").scrollIntoView()'); shot(page, 'arguments_390', None)

def test_search(page):
    page.resize(1280, 900); page.open((SITE/'explanations/coming_from.html').as_uri())
    def found(words):
        page.js(f"box.value = '{words}'; search()")
        return page.js("[...document.querySelectorAll('.found a')].map(a => [a.firstChild.textContent, a.getAttribute('href')])")
    assert found('march')[0] == ['march', '../voxelize.html#march']
    assert ['SparseSDF.load', '../voxelize.html#sparsesdf.load'] in found('sparsesdf load')
    assert found('xyzzy') == [] and page.js("document.querySelector('.found').textContent") == 'Nothing found.'
    found('march'); shot(page, 'search')
    page.js("document.querySelector('.found a').click()"); page.until("location.hash == '#march'"); assert not page.errors

def test_tables_of_a_report_on_a_small_screen(page, tmp_path):
    "A table too wide scrolls within its box, and the names of its rows stay words."
    from sdfvq.mesh import torus
    from sdfvq.report import report
    head, rows = ('', *(f'measure {i}' for i in range(9))), [(name, *['123.456'] * 9) for name in ('continuous twin', 'Draco, bytes of depth', 'a_file_with_a_long_name' * 8)]
    file = report(tmp_path/'report.html', torus(), {'': [('seconds to voxelize / encode / decode, median', '0.10 / 0.20 / 0.30')], 'Every shape': [head, *rows]}, 'report')
    page.resize(390, 800, mobile=True); page.open(file.as_uri())
    assert page.js('document.documentElement.scrollWidth') <= 390
    assert page.js('[...document.querySelectorAll(".wide")].map(w => w.scrollWidth > w.clientWidth)') == [False, True]
    high = page.js('[...document.querySelectorAll("th")].map(t => t.getBoundingClientRect().height / 24)')
    assert max(high[:4]) < 6, high                                                           # lines
    page.js('scrollTo(0, 1e6)'); shot(page, 'report_390')
    page.resize(1280, 900); page.open(file.as_uri()); assert page.js('document.documentElement.scrollWidth') <= 1280; page.js('scrollTo(0, 1e6)'); shot(page, 'report_1280')

@pytest.fixture(scope='module')
def viewer(tmp_path_factory):
    "A page as `sdfvq view` writes it, with a slider."
    from sdfvq.explore import error_maps
    from sdfvq.mesh import knot, torus
    from sdfvq.report import report
    file = tmp_path_factory.mktemp('view')/'view.html'
    return report(file, {'knot': knot(), 'steps': [('ring', torus()), ('knot', knot())], **error_maps(torus(), torus(.75), .1)}, [('shapes', 2)], 'viewer')

def test_viewer_turns_by_a_drag(page, viewer):
    page.resize(1280, 900); page.open(viewer.as_uri())
    page.until("document.querySelectorAll('.stage img').length == 0")                        # each still has given way to its scene
    page.js('new Promise(done => setTimeout(done, 1500))')
    boxes = page.js("[...document.querySelectorAll('.stage')].map(s => { const r = s.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] })")
    before = [shot(page, f'viewer_{i}_before', b) for i, b in enumerate(boxes[:2])]
    assert all((abs(b - [244, 245, 247]).max(-1) > 30).mean() > .05 for b in before)         # a shape on the stage
    x, y, w, h = boxes[0]
    page.drag((x + w * .3, y + h * .5), (x + w * .7, y + h * .6))
    page.js('new Promise(done => setTimeout(done, 1500))')
    after = [shot(page, f'viewer_{i}_after', b) for i, b in enumerate(boxes[:2])]
    for a, b in zip(before, after): assert (abs(a - b).max(-1) > 30).mean() > .02            # both have turned: the cameras are linked
    shot(page, 'viewer')
    assert not page.errors and all(r.startswith(('file:', 'data:', 'blob:')) for r in page.requests)

def test_slider_changes_the_mesh(page, viewer):
    page.resize(1280, 900); page.open(viewer.as_uri())
    page.until("document.querySelectorAll('.stage img').length == 0 && !document.querySelector('input[type=range]').disabled")
    page.js('new Promise(done => setTimeout(done, 1500))')
    box = page.js("(r => [r.x, r.y, r.width, r.height])(document.querySelectorAll('.stage')[1].getBoundingClientRect())")
    words = "document.querySelector('output').textContent + ', ' + document.querySelector('output').closest('figcaption').querySelector('small').textContent"
    before, said = shot(page, 'slider_last', box), page.js(words)
    page.js("(i => { i.value = 0; i.dispatchEvent(new Event('input')) })(document.querySelector('input[type=range]'))")
    page.js('new Promise(done => setTimeout(done, 1500))')
    assert said.startswith('knot, ') and page.js(words).startswith('ring, ') and page.js(words)[6:] != said[6:]
    assert (abs(before - shot(page, 'slider_first', box)).max(-1) > 30).mean() > .02 and not page.errors

def test_viewer_on_a_small_screen(page, viewer):
    page.resize(390, 800, mobile=True); page.open(viewer.as_uri())
    page.until("document.querySelectorAll('.stage img').length == 0")
    assert page.js('document.documentElement.scrollWidth') <= 390
    page.js('new Promise(done => setTimeout(done, 1500))'); shot(page, 'viewer_390')
