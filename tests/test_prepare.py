"""`sdfvq prepare` as a process that is killed, starved of disk and run twice at once; a Ray cluster that loses a worker."""
import os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from sdfvq.items import read_table
from sdfvq.ledger import locked
from sdfvq.mesh import blob
from sdfvq.prepare import prepare
from sdfvq.volume import Volume, ellipsoid, save_volume

COMMAND = [sys.executable, '-c', 'from sdfvq.cli import main; main()', 'prepare', 'in', '--resolutions', '16,32', '--workers', '2']

@pytest.fixture
def folder(tmp_path):
    "16 shapes, one of them twice, and one that is none."
    (tmp_path/'in').mkdir()
    for i in range(16): blob(i, subdivisions=3).export(tmp_path/'in'/f'blob {i:02}.ply')
    (tmp_path/'in'/'twin.ply').write_bytes((tmp_path/'in'/'blob 03.ply').read_bytes())
    (tmp_path/'in'/'text.glb').write_text('no mesh', encoding='utf-8')
    return tmp_path

def start(folder, out, **kw): return subprocess.Popen([*COMMAND, '-o', out], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8', **kw)

def state(out): return {p.name: p.read_bytes() for p in Path(out).iterdir() if p.suffix in ('.npz', '.csv')}

def computed(out): return [r for r in read_table(out/'metadata.csv') if r['sdf_computed'] == 'True'] if (out/'metadata.csv').exists() else []

def wait_for(what, seconds=300):
    end = time.time() + seconds
    while not what():
        assert time.time() < end, 'it did not happen'
        time.sleep(.01)

def processes(folder, word):
    "Ids of the processes at work in `folder` whose command has `word`."
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if p.joinpath('cwd').readlink() == folder and word in p.joinpath('cmdline').read_text(encoding='utf-8'): found.append(int(p.name))
        except OSError: pass
    return found

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')

@linux
def test_killed_run_goes_on_to_the_same_bytes(folder):
    for i in range(16, 96): blob(i, subdivisions=3).export(folder/'in'/f'blob {i:02}.ply')      # more than are done when the table is first written
    whole = start(folder, 'whole'); whole.communicate()
    assert whole.returncode == 2 and len(state(folder/'whole')) == 193      # 96 shapes at two resolutions, and the table
    for n in (2, 5):
        run = start(folder, 'cut')
        wait_for(lambda: len(computed(folder/'cut')) >= n)                   # the table is there while the run goes on
        run.send_signal(signal.SIGKILL); run.communicate()
        wait_for(lambda: not processes(folder, 'sdfvq.workers'), 10)        # workers end with their parent, though one may be at work
        assert all((folder/'cut'/f'{row["sha256"]}_r{r}.npz').exists() for row in computed(folder/'cut') for r in (16, 32))
        assert len(computed(folder/'cut')) < 96
        (folder/'cut'/f'.{"0" * 64}_r16-{"1" * 32}.npz').write_text('left by a writer that was killed', encoding='utf-8')
    kept = {p: p.stat().st_ino for p in folder.glob('cut/[0-9a-f]*_r*.npz')}
    last = start(folder, 'cut'); said = last.communicate()[0]
    assert last.returncode == 2 and 'of them before' in said, said
    assert state(folder/'cut') == state(folder/'whole')
    assert sum(p.stat().st_ino == i for p, i in kept.items()) >= len(kept) - 6      # finished files stay, but for those of the two items at work and of the twin
    assert not list(folder.glob('cut/.*.npz'))

@linux
def test_killed_worker_costs_its_item(folder):
    run = start(folder, 'out')
    wait_for(lambda: list(folder.glob('out/*_r32.npz')))
    os.kill(processes(folder, 'sdfvq.workers')[0], signal.SIGKILL)
    said = run.communicate()[0]
    rows = read_table(folder/'out'/'metadata.csv')
    killed = [r for r in rows if 'killed' in r['r32_error']]
    assert run.returncode == 2 and len(rows) >= 17 and len(killed) <= 1, said
    assert sum(r['sdf_computed'] == 'True' for r in rows) >= 15

@linux
def test_interrupted_run_leaves_its_table(folder):
    run = start(folder, 'out')
    wait_for(lambda: len(list(folder.glob('out/*_r32.npz'))) > 1)
    run.send_signal(signal.SIGINT); run.communicate()
    assert run.returncode != 0 and 0 < len(read_table(folder/'out'/'metadata.csv')) < 17
    wait_for(lambda: not processes(folder, 'sdfvq.workers'), 10)

def test_second_run_into_one_folder_is_refused(folder):
    (folder/'out').mkdir()
    with locked(folder/'out'):
        second = start(folder, 'out'); said = second.communicate()[0]
    assert second.returncode == 2 and 'another run is at work' in said and said.count('\n') == 1, said
    assert not state(folder/'out')

@linux
def test_full_disk_stops_the_run(folder):
    "No file may grow beyond 25 kB: what the system then says of a write is what a full disk or a quota makes it say."
    import resource
    full = start(folder, 'out', preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, 25_000)))
    said = full.communicate()[0]
    assert full.returncode == 2 and 'it goes on where it stopped' in said and 'Traceback' not in said, said
    assert not list(folder.glob('out/.*.npz'))
    whole, again = start(folder, 'whole'), start(folder, 'out')
    whole.communicate(); again.communicate()
    assert state(folder/'out') == state(folder/'whole')

def test_workers_and_order_do_not_matter(folder):
    for n in (1, 3): prepare(folder/'in', folder/str(n), [16], workers=n)
    assert state(folder/'1') == state(folder/'3')

def test_own_columns_stay(folder):
    "A table with a byte order mark, a row twice, one whose file is missing and one without a name."
    (folder/'t.csv').write_text('file,captions,price\nin/blob 01.ply,one,1\nin/blob 01.ply,uno,2\nin/none.ply,,3\n,,4\nin/twin.ply,"[""a"", ""b""]",5\nin/blob 03.ply,c,6\n', encoding='utf-8-sig')
    s = prepare(folder/'t.csv', folder/'out', [16], workers=1)
    rows = {r['file']: r for r in read_table(folder/'out'/'metadata.csv')}
    assert s.failed.total() == 2 and list(rows) == ['in/blob 01.ply', 'in/none.ply', '', 'in/twin.ply']
    assert (rows['in/blob 01.ply']['captions'], rows['in/blob 01.ply']['price']) == ('["one", "uno"]', '1')
    assert (rows['in/twin.ply']['captions'], rows['in/twin.ply']['other_files']) == ('["a", "b", "c"]', '["in/blob 03.ply"]')
    assert 'cannot be read (No such file' in rows['in/none.ply']['r16_error'] and 'no file' in rows['']['r16_error']

def test_bad_input_is_named_and_costs_itself_alone(folder):
    "Each bad file has its row and its reason; what is odd but good is made."
    sitk = pytest.importorskip('SimpleITK', reason='optional: pip install SimpleITK')
    d = folder/'bad'; (d/'closed').mkdir(parents=True); (d/'closed'/'x.ply').write_text('x', encoding='utf-8')
    ball = ellipsoid((9, 9, 9)).array
    def volume(name, array, affine=np.eye(4)): save_volume(Volume(array, affine), d/name)
    blob(1, subdivisions=3).export(d/'shape.glb')
    (d/'cut.glb').write_bytes((d/'shape.glb').read_bytes()[:-400]); (d/'text.glb').write_text('no mesh', encoding='utf-8')
    (d/'a b\n\u00fc\u96f6.ply').write_bytes((folder/'in'/'blob 03.ply').read_bytes()); (d/'twin.ply').write_bytes((folder/'in'/'blob 03.ply').read_bytes())
    lone = np.zeros((5, 6, 7), np.uint8); lone[2, 3, 3] = 1
    for name, array in (('empty.nii.gz', ball * 0), ('lone.nii.gz', lone), ('border.nii.gz', ball[:11]), ('float.nrrd', ball * .5), ('whole.nrrd', ball * 1.)): volume(name, array)
    volume('shear.nii', ball); raw = bytearray((d/'shear.nii').read_bytes()); raw[280:284] = np.float32(1.5).tobytes(); raw[284:288] = np.float32(.9).tobytes(); (d/'shear.nii').write_bytes(raw)
    sitk.WriteImage(sitk.Image([4, 4, 4, 2], sitk.sitkUInt8), str(d/'time.nii.gz'))
    (d/'7').mkdir(); np.save(d/'7'/'image.npy', ball[None] * 1.); sparse.save_npz(d/'7'/'mask_(1, 9, 9, 9).npz', sparse.csr_matrix(ball.reshape(1, -1)))
    (d/'closed').chmod(0)
    readable = os.access(d/'closed', os.R_OK)      # to root all is open
    try: s = prepare(d, folder/'out', [16], workers=1)
    finally: (d/'closed').chmod(0o755)
    rows = {r['file']: r for r in read_table(folder/'out'/'metadata.csv')}
    said = {'cut.glb': 'not a readable glb', 'text.glb': 'not a readable glb', 'empty.nii.gz': 'no labels, all voxels are 0', 'float.nrrd': 'labels must be whole numbers',
            'shear.nii': 'non-orthogonal affine', 'time.nii.gz': '4-D volume of 4\u00d74\u00d74\u00d72', '7': 'its name says (1, 9, 9, 9)',
            **({'closed/x.ply': 'ply'} if readable else {'closed': 'cannot be listed'})}
    assert all(words in rows[name]['r16_error'] and rows[name]['sdf_computed'] == 'False' for name, words in said.items()), {n: rows[n]['r16_error'] for n in said}
    good = {name for name, r in rows.items() if r['sdf_computed'] == 'True'}
    assert good == {'shape.glb', 'a b\n\u00fc\u96f6.ply', 'lone.nii.gz', 'border.nii.gz', 'whole.nrrd'} and s.failed.total() == len(said) and s.same == 1
    assert rows['a b\n\u00fc\u96f6.ply']['other_files'] == '["twin.ply"]'
    assert "closed where the volume's border cuts it, on 1 side" in rows['border.nii.gz']['sign'] and 'its 1 voxels say' in rows['lone.nii.gz']['sign']

@linux
def test_ray_cluster_that_loses_a_worker(folder):
    "Two nodes on loopback; the process of one is killed while it works. The result is that of this machine alone, to the byte."
    Cluster = pytest.importorskip('ray.cluster_utils', reason='optional: pip install ray').Cluster
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        lost = []
        def progress(done, total, failed):
            if done == 6:
                lost.extend(p for p in ray_workers() if p)
                os.kill(lost[0], signal.SIGKILL)
        s = prepare(folder/'in', folder/'cluster', [16, 32], ray=cluster.address, progress=progress)
        assert lost and s.items == 18 and s.done == 17 and s.failed.total() == 1, s
    finally: cluster.shutdown()
    prepare(folder/'in', folder/'alone', [16, 32], workers=1)
    assert state(folder/'cluster') == state(folder/'alone')

def ray_workers():
    "Ids of Ray's processes that hold a worker of ours."
    parents = set()
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if 'sdfvq.workers' in p.joinpath('cmdline').read_text(encoding='utf-8'): parents.add(int(p.joinpath('stat').read_text(encoding='utf-8').rpartition(')')[2].split()[1]))
        except OSError: pass
    return [p for p in parents if 'ray::' in Path(f'/proc/{p}/cmdline').read_text(encoding='utf-8')]
