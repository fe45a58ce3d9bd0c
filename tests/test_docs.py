"""The docs site can be made: nbdev runs every cell that holds an import, so a test cell with one inside breaks it."""
import subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def test_site():
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs.py'], cwd=ROOT, capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 0, done.stdout + done.stderr
    assert '<title>' in (ROOT/'_docs'/'index.html').read_text(encoding='utf-8')
