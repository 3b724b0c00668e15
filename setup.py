"""Builds the one compiled extension, `fastmtl._C`; everything else is in pyproject.toml.

Files named `*_cpu.cpp` hold kernels and are compiled once per instruction set, into one extension that picks at
load (csrc/isa.hpp). No torch header or library is involved, so one build serves every torch.
"""

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
COMMON = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-g0"]
# -ffast-math as a link flag would flip flush-to-zero for the whole process, and -ffinite-math-only would hide NaNs:
# these are the parts of it that only free the order of operations, on the kernel files alone.
KERNEL = ["-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
KERNEL += ["-freciprocal-math", "-ffp-contract=fast"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86 = {"baseline": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512]}
INSTRUCTION_SETS = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}


class BuildPerInstructionSet(build_ext):
    """Compiles the kernel files once per instruction set and links all objects into one module.

    OpenMP is compiled in but not linked: torch has loaded its own libgomp globally by the time the extension is
    imported, and a second copy would bring a second pool of threads.
    """

    def build_extension(self, ext: Extension) -> None:
        kernels = [source for source in ext.sources if source.endswith("_cpu.cpp")]
        others = [source for source in ext.sources if source not in kernels]
        jobs = [(others, "plain", COMMON)]
        for isa, flags in INSTRUCTION_SETS.items():
            define = [f"-DFASTMTL_ISA={isa}"]
            jobs += [([kernel], isa, COMMON + KERNEL + flags + define) for kernel in kernels]

        def compile_one(job: tuple[list[str], str, list[str]]) -> list[str]:
            sources, folder, flags = job
            return self.compiler.compile(
                sources,
                output_dir=str(Path(self.build_temp) / folder),
                include_dirs=ext.include_dirs,
                extra_postargs=flags,
                depends=ext.depends,
            )

        with ThreadPoolExecutor(self.parallel or 2) as pool:
            objects = [name for names in pool.map(compile_one, jobs) for name in names]
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, target_lang="c++", extra_postargs=["-pthread"])


setup(
    ext_modules=[
        Extension(
            "fastmtl._C",
            sources=sorted(str(path) for path in CSRC.glob("*.cpp")),
            depends=sorted(str(path) for path in CSRC.glob("*.hpp")),
            include_dirs=[pybind11.get_include(), str(CSRC)],
            language="c++",
            optional=False,
        )
    ],
    cmdclass={"build_ext": BuildPerInstructionSet},
)
