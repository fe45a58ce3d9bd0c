"""Metadata comes from settings.ini; csrc/ becomes the extension `sdfvq._C` (plain C++17, no torch headers)."""
import configparser, os, shlex, sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
parser.read('settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

class OptionalBuildExt(build_ext):
    "A machine without a compiler still installs: the plain-torch references run instead, and say so."
    def run(self):
        try: super().run()
        except Exception as e:
            if os.environ.get('SDFVQ_REQUIRE_EXT') == '1': raise
            print(f'sdfvq: the C++ extension was not built ({e}); slow references will be used', file=sys.stderr)

flags = ['/O2'] if sys.platform == 'win32' else ['-O3', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math', '-pthread']
extension = Pybind11Extension('sdfvq._C', sorted(glob('csrc/cpu/*.cpp')), include_dirs=['csrc'], cxx_std=17,
    depends=sorted(glob('csrc/**/*.h', recursive=True)), extra_compile_args=flags + shlex.split(os.environ.get('SDFVQ_CXXFLAGS', '')))

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown',
    packages=['sdfvq'], package_data={'sdfvq': ['*.json']}, python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={'train': cfg['train_requirements'].split(), 'dev': cfg['train_requirements'].split() + cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
                 'Programming Language :: C++', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    ext_modules=[extension], cmdclass={'build_ext': OptionalBuildExt}, zip_safe=False,
)
