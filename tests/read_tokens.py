"""A reader of .s3d token files that needs numpy alone; nbs/explanations/token_file.ipynb says why each line is there."""
import bisect, itertools, struct, zlib
import numpy as np

def read_tokens(path):
    with open(path, 'rb') as f: data = f.read()
    names = 'magic version depth resolution factor tokens fingerprint band scale x y z'.split()
    h = dict(zip(names, struct.unpack_from('<4sBBHHI8s5d', data)))
    if (h['magic'], h['version']) != (b'\x89S3D', 1): raise ValueError('not a token file of version 1')
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], 'little'): raise ValueError('damaged')
    kinds, data = struct.unpack_from(f'<{h["depth"]}I', data, 62), data[62 + 4 * h['depth']:-4]
    code, width, rest = int.from_bytes(data[:6].ljust(6, b'\0'), 'big'), 1 << 48, iter(data[6:])
    def take(total, ends=None):
        nonlocal code, width
        part = width // total
        i = start = min(code // part, total - 1)
        if ends: i = bisect.bisect_right(ends, i); start = ends[i - 1] if i else 0
        code, width = code - part * start, part * (ends[i] - start if ends else 1)
        while width < 1 << 40: code, width = code << 8 | next(rest, 0), width << 8
        return i
    def bit(counts):
        b = take(sum(counts), [counts[0], sum(counts)])
        counts[b] += 2
        if sum(counts) > 255: counts[:] = [(c + 1) // 2 for c in counts]
        return b
    cells, learnt = [(0, 0, 0)][:h['tokens']], [[1, 1] for _ in range(128)]
    for _ in range((h['resolution'] // h['factor'] - 1).bit_length()):
        parents, found = set(cells), set()
        for x, y, z in sorted((2 * p[0] + i, 2 * p[1] + j, 2 * p[2] + k) for p in cells for i, j, k in np.ndindex(2, 2, 2)):
            a, b, c, d, e, f = (p in found for p in ((x-1, y, z), (x, y-1, z), (x, y, z-1), (x, y-1, z-1), (x-1, y, z-1), (x-1, y-1, z)))
            after = sum((p[0] >> 1, p[1] >> 1, p[2] >> 1) in parents for p in ((x+1, y, z), (x, y+1, z), (x, y, z+1)))
            if bit(learnt[a << 6 | b << 5 | c << 4 | after << 2 | d + e + f]): found.add((x, y, z))
        cells = sorted(found)
    codes = np.zeros((len(cells), h['depth']), np.int64)
    for column, kind in zip(codes.T, kinds):
        seen, same, new = {}, [1, 1], [1, 1]                             # code: how often, in the order of first appearance
        for m in range(len(cells)):
            if kind & 1 and seen and bit(same): c = column[m - 1]
            elif not kind & 1 or not seen or bit(new): c = take(kind // 2 + 1)
            else: c = list(seen)[take(m, list(itertools.accumulate(seen.values())))]
            if kind & 1: seen[int(c)] = seen.get(int(c), 0) + 1
            column[m] = c
    return h | dict(places=np.array(cells, np.int32).reshape(-1, 3), codes=codes)
