"The pictures and the table of the notebook on hard shapes can be made: its tool runs on a made mesh, from the file to the row."
import importlib.util, re
from pathlib import Path

import nbformat
from PIL import Image

from sdfvq.mesh import box, make_mesh, merge, save_mesh

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location('hard_shapes', ROOT/'tools/hard_shapes.py')
tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool)
PAGE = [c.source for c in nbformat.read(ROOT/'nbs/explanations/hard_shapes.ipynb', 4).cells if c.cell_type == 'markdown']
TABLE = [[x.strip() for x in line.split('|')[1:-1]] for cell in PAGE for line in cell.splitlines() if line.startswith('| ')]

def test_row_and_picture(tmp_path, monkeypatch, capsys):
    leaf = make_mesh([[-.5, -.3, .8], [.5, -.3, .8], [.5, .3, .8], [-.5, .3, .8]], [[0, 1, 2], [0, 2, 3]])
    mesh = merge([box(), box((.3,) * 3), leaf]); save_mesh(mesh, tmp_path/'made.ply')   # one box is buried in the other
    monkeypatch.setattr(tool, 'R', 32); monkeypatch.setattr(tool, 'OUT', tmp_path)
    monkeypatch.setattr(tool, 'SHAPES', {'made': ('made.ply', 'z', (0, -1, 0), .01, 'winding')})
    tool.main(tmp_path)
    said = capsys.readouterr()
    row = [x.strip() for x in said.out.split('|')[1:-1]]
    assert len(row) == len(TABLE[0]) and said.err.startswith('winding, and unsigned, a shell of ±1 voxel about'), said
    area = mesh.area / 100
    for column, of in (('buried, %', .54), ('shells, %', .6)): assert abs(float(row[TABLE[0].index(column)]) - of / area) < .06, said.out
    image = Image.open(tmp_path/'made.png').convert('RGB')
    def coloured(panel, colour):
        "Pixels of a panel in a shade of `colour`."
        counts = image.crop((320 * panel, 0, 320 * panel + 320, 352)).getcolors(999)
        return sum(n for n, p in counts if p[0] < 255 and max(abs(a / sum(p) - b / sum(colour)) for a, b in zip(p, colour)) < .02)
    assert image.size == (960, 352) and min(coloured(0, tool.BURIED), coloured(0, tool.SHELL), coloured(2, tool.BACK)) > 500
    assert len(tool.naive(mesh, 'unsigned').faces)

def test_page_shows_what_the_tool_makes():
    shown = [name for cell in PAGE for name in re.findall(r'hard_shapes/(\w+)\.png\)', cell)]
    assert list(tool.SHAPES) == [row[0] for row in TABLE[1:]] == shown
    assert sorted(shown) == sorted(p.stem for p in tool.OUT.iterdir())
