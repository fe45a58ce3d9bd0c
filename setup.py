"""Metadata comes from settings.ini; csrc/ becomes the extensions `sdfvq._C` (plain C++17, no torch headers)
and, where CUDA's compiler is, `sdfvq._cuda`. SDFVQ_CUDA=0 leaves that out, 1 insists on it; SDFVQ_CUDA_ARCH="90 100" names the GPUs."""
import configparser, os, re, shlex, shutil, sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile('SDFVQ_JOBS').install()   # all cores, or as many as that says
parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
parser.read('settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
EXTRAS = 'train', 'vl', 'view', 'text', 'medical', 'eval', 'ray', 'spconv'
TESTED = 'train', 'vl', 'view', 'medical', 'eval', 'dev'   # what a developer gets

class OptionalBuildExt(build_ext):
    "A machine without a compiler still installs: the plain-torch references run instead, and say so."
    def run(self):
        try: super().run()
        except Exception as e:
            if '1' in (os.environ.get('SDFVQ_REQUIRE_EXT'), os.environ.get('SDFVQ_CUDA')): raise
            print(f'sdfvq: the C++ extension was not built ({e}); slow references will be used', file=sys.stderr)

    def build_extensions(self):
        "Sources in .cu go to nvcc, all others where they went before."
        others, self.compiler.src_extensions = self.compiler._compile, [*self.compiler.src_extensions, '.cu']
        def by_suffix(obj, src, ext, cc_args, extra_postargs, pp_opts):
            if ext == '.cu': self.spawn([f'{cuda_home}/bin/nvcc', *nvcc_flags(), *pp_opts, '-x', 'cu', '-c', src, '-o', obj])
            else: others(obj, src, ext, cc_args, extra_postargs, pp_opts)
        self.compiler._compile = by_suffix
        super().build_extensions()

def find_cuda():
    "The folder of a CUDA toolkit that we can link with, or None."
    nvcc = shutil.which('nvcc')
    homes = [os.environ.get('CUDA_HOME'), nvcc and Path(nvcc).resolve().parent.parent, '/usr/local/cuda']
    there = lambda h: Path(h, 'bin/nvcc').exists() and Path(h, 'lib64/libcudart_static.a').exists()
    return next((h for h in homes if h and there(h)), None)

def nvcc_flags():
    "No contraction, as on the CPU, so that both give the same bits; PTX of the last architecture serves those to come."
    arch = os.environ.get('SDFVQ_CUDA_ARCH', '80 90').split()
    code = [f'-gencode=arch=compute_{a},code=sm_{a}' for a in arch] + [f'-gencode=arch=compute_{arch[-1]},code=compute_{arch[-1]}']
    return ['-O3', '-std=c++17', '--fmad=false', '-Xcompiler', '-fPIC,-fvisibility=hidden', *code]

flags = ['/O2'] if sys.platform == 'win32' else ['-O3', '-ffp-contract=off', '-fno-math-errno', '-fno-trapping-math', '-pthread']
extension = Pybind11Extension('sdfvq._C', sorted(glob('csrc/cpu/*.cpp')), include_dirs=['csrc'], cxx_std=17,
    depends=sorted(glob('csrc/**/*.h', recursive=True)), extra_compile_args=flags + shlex.split(os.environ.get('SDFVQ_CXXFLAGS', '')))
extensions = [extension]

wanted = os.environ.get('SDFVQ_CUDA', '')
cuda_home = find_cuda() if wanted != '0' and sys.platform == 'linux' else None
if wanted == '1' and not cuda_home: sys.exit('SDFVQ_CUDA=1, but no CUDA toolkit in CUDA_HOME, on the PATH or in /usr/local/cuda')
if cuda_home:  # optional: a failure is a warning, and the CPU's package works
    extensions.append(Pybind11Extension('sdfvq._cuda', sorted(glob('csrc/cuda/*.cpp') + glob('csrc/cuda/*.cu')), include_dirs=['csrc'],
        cxx_std=17, depends=extension.depends, extra_compile_args=flags, library_dirs=[f'{cuda_home}/lib64'],
        libraries=['cudart_static', 'dl', 'rt', 'pthread'], optional=wanted != '1'))

def page():
    "README.md with links that work from elsewhere, as on PyPI."
    text = Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else ''
    text = re.sub(r'(!\[[^]]*\]\()(?![a-z]+:|#)', rf"\1{cfg['git_url']}/raw/{cfg['branch']}/", text)
    return re.sub(r'((?<!!)\[[^]]*\]\()(?![a-z]+:|#)', rf"\1{cfg['git_url']}/blob/{cfg['branch']}/", text)

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license_expression='Apache-2.0',
    long_description=page(), long_description_content_type='text/markdown',
    packages=['sdfvq'], package_data={'sdfvq': ['*.json', 'py.typed', 'pretrained/*', 'configs/*']}, python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={**{e: cfg[f'{e}_requirements'].split() for e in EXTRAS}, 'dev': sum((cfg[f'{e}_requirements'].split() for e in TESTED), [])},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3',
                 'Programming Language :: C++', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    ext_modules=extensions, cmdclass={'build_ext': OptionalBuildExt}, zip_safe=False,
)
