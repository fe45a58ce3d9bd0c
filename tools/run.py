"""Run the pages whose outputs are shown (tutorials and explanations, or those named) and keep what they show, small (`make pages`)."""
import base64, io, sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
MOST = 100_000   # bytes of a picture

def small(png):
    "PNG, in base64, of at most 128 colours."
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    out = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(out, 'PNG', optimize=True)
    return base64.b64encode(out.getvalue()).decode() + '\n'

def shown(output):
    "An output as it is kept: one picture, not the same in two formats; nothing that changes from run to run."
    data = output.get('data', {})
    if 'image/png' in data:
        data['image/png'] = small(data['image/png'])
        for other in ('image/jpeg', 'text/plain'): data.pop(other, None)
        if len(data['image/png']) > MOST * 4 / 3: raise SystemExit(f"a picture of {len(data['image/png']) * 3 // 4:,} bytes, at most {MOST:,}: make it smaller")
    if 'execution_count' in output: output['execution_count'] = None
    return output

def lasting(output):
    "Is it more than a warning, or a widget, which is nothing without the process that made it?"
    return output.get('name') != 'stderr' and 'application/vnd.jupyter.widget-view+json' not in output.get('data', {}) and output.get('data', {}).get('text/plain') != ''

def run(path):
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=900, kernel_name='python3', resources=dict(metadata=dict(path=str(path.parent)))).execute()
    for cell in nb.cells:
        cell.metadata = {}
        if cell.cell_type == 'code': cell.execution_count, cell.outputs = None, [shown(o) for o in cell.outputs if lasting(o)]
    nb.metadata.pop('widgets', None)      # the state of widgets, which are not shown
    nbformat.write(nb, path)
    print(path.relative_to(ROOT))

if __name__ == '__main__':
    for path in [Path(p).resolve() for p in sys.argv[1:]] or sorted((ROOT/'nbs').glob('tutorials/*.ipynb')) + sorted((ROOT/'nbs').glob('explanations/*.ipynb')): run(path)
