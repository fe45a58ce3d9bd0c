"Bytes of memory for each voxel of a large field, in a process of its own."
import subprocess, sys

import pytest

OPEN = '''
import numpy as np
from sdfvq.voxelize import voxelize
rng = np.random.default_rng(0)
corners = rng.uniform(-.8, .8, (140, 1, 3)) + rng.normal(0, .15, (140, 3, 3))     # loose triangles
shape = corners.reshape(-1, 3), np.arange(3 * 140).reshape(-1, 3)
voxelize(*shape, resolution=128)                                                  # what is loaded and kept once
resident = lambda key: int(next(line for line in open('/proc/self/status', encoding='utf-8') if line.startswith(key)).split()[1])   # ru_maxrss begins with the parent's
before = resident('VmRSS')
s = voxelize(*shape, resolution=512)
assert len(s) > 3.5e6 and s.sign.startswith('winding, and unsigned'), s
print((resident('VmHWM') - before) * 1024 / len(s))
'''

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_open_shape():
    "Solid and shell, their union, its sign and its rim: 16 bytes of a voxel stay, of which all else takes 44 at most; 1 GB holds 11 million voxels at 512³."
    p = subprocess.run([sys.executable, '-c', OPEN], capture_output=True, text=True, encoding='utf-8', timeout=500)
    assert p.returncode == 0, p.stderr
    assert float(p.stdout) < 60, f'{p.stdout.strip()} bytes a voxel'
