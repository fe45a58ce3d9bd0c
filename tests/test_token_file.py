"""The token file is what its page says: a reader written from the page alone, without torch agrees with ours."""
import ast, subprocess, sys, zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from read_tokens import read_tokens
from sdfvq.core import Transform
from sdfvq.tokens import ShapeTokens

READER = Path(__file__).with_name('read_tokens.py')

def tokens(m, depth, codes, size, seed=0):
    g = np.random.default_rng(seed)
    places = np.unique(g.integers(0, size, (m, 3), dtype=np.int32) // [1, 1, 3], axis=0)   # crowded, as a surface is
    t = Transform(1e-12, (3e11, 0, -1))
    return ShapeTokens(places, g.integers(0, codes, (len(places), depth)), 8 * size, 8, 4.0, t, '0123456789abcdef')

@pytest.mark.parametrize('m, depth, codes, size', [(500, 1, 8192, 32), (700, 3, 8192, 16), (300, 2, 5, 16), (400, 4, 70_000, 24), (40, 1, 1, 256),
                                                   (1, 1, 1, 1), (0, 2, 9, 16), (3, 1, 2**31, 8)])
def test_readers_agree(tmp_path, m, depth, codes, size):
    for seed in range(3):
        t = tokens(m, depth, codes, size, seed)
        theirs = read_tokens(t.save(tmp_path/f'{seed}.s3d'))
        assert np.array_equal(theirs['places'], t.coords) and np.array_equal(theirs['codes'], t.indices)
        assert (theirs['resolution'], theirs['factor'], theirs['band'], theirs['scale'], theirs['fingerprint'].hex()) == (8 * size, 8, 4.0, 1e-12, t.fingerprint)
        assert (theirs['x'], theirs['y'], theirs['z']) == t.transform.offset

def test_codes_that_repeat(tmp_path):
    t = tokens(700, 2, 8192, 16)
    t = replace(t, indices=np.c_[t.indices[:, 0] % 40, np.repeat(7, len(t))])
    assert np.array_equal(read_tokens(t.save(tmp_path/'t.s3d'))['codes'], t.indices)

def test_reader_needs_numpy_alone(tmp_path):
    imported = {a.name for n in ast.walk(ast.parse(READER.read_text(encoding='utf-8'))) if isinstance(n, ast.Import) for a in n.names}
    assert imported == {'bisect', 'itertools', 'struct', 'zlib', 'numpy'}
    path = tokens(50, 1, 100, 16).save(tmp_path/'t.s3d')
    code = f"import sys, runpy; sys.modules['torch'] = sys.modules['sdfvq'] = None; runpy.run_path({str(READER)!r})['read_tokens']({str(path)!r})"
    subprocess.run([sys.executable, '-c', code], check=True)

@pytest.mark.parametrize('at', [0, 4, 20, -1])
def test_reader_refuses(tmp_path, at):
    path = tokens(50, 1, 100, 16).save(tmp_path/'t.s3d')
    data = bytearray(path.read_bytes()); data[at] ^= 1; path.write_bytes(data)
    with pytest.raises(ValueError): read_tokens(path)

def test_bytes_do_not_change():
    "Files outlive code: the same tokens make the same bytes in every sdfvq that writes version 1."
    i = np.arange(700)
    places = np.unique(np.stack([i * i // 7 % 16, i * 3 // 5 % 16, i // 44], 1).astype(np.int32), axis=0)
    j = np.arange(len(places))
    t = ShapeTokens(places, np.stack([j * j * 31 % 8191, j * j // 9 % 30], 1), 128, 8, 4.0, Transform(0.5, (1, 2, 3)), '0123456789abcdef')
    assert (len(t), t.nbytes, zlib.crc32(t._s3d()[:-4])) == (633, 1833, 1199549023)
