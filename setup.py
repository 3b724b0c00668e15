"""Builds the one compiled extension, `fastmtl._C`; everything else is in pyproject.toml.

Files named `*_cpu.cpp` hold kernels and are compiled once per instruction set, into one extension that picks at
load (csrc/core/isa.hpp); those named `*_exact_cpu.cpp` round every operation as it is written. `*.cu` are compiled
where there is nvcc; without it the extension has no CUDA kernels. No torch header or library is involved, so one build
serves every torch.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
COMMON = ["-std=c++17", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-g0"]
# -ffast-math as a link flag would flip flush-to-zero for the whole process, and -ffinite-math-only would hide NaNs:
# these are the parts of it that only free the order of operations, on the kernel files alone.
KERNEL = ["-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
RELAXED = [*KERNEL, "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math", "-ffp-contract=fast"]
EXACT = [*KERNEL, "-ffp-contract=off"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86 = {"baseline": [], "avx2": AVX2, "avx512": [*AVX2, *AVX512]}
INSTRUCTION_SETS = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}
# Hopper's own code, and PTX that the driver compiles for any other GPU since Ampere.
NVCC = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]
NVCC += ["-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_80,code=compute_80"]


def find_nvcc() -> Path | None:
    """CUDA_HOME's, else the one on the path; FASTMTL_CUDA=0 builds without."""
    if os.environ.get("FASTMTL_CUDA") == "0":
        return None
    found = shutil.which("nvcc", path=str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"))
    found = found or shutil.which("nvcc")
    return Path(found).resolve() if found else None


def library_folder(nvcc: Path) -> Path:
    """The folder of CUDA's static libraries."""
    for name in ("lib64", "lib"):
        if (path := nvcc.parents[1] / name).is_dir():
            return path
    raise SystemExit(
        f"{nvcc} has no folder lib64 or lib in {nvcc.parents[1]}. Set CUDA_HOME to a whole CUDA toolkit, or "
        "FASTMTL_CUDA=0 to build without CUDA kernels."
    )


class BuildPerInstructionSet(build_ext):
    """Compiles the kernel files once per instruction set and links all objects into one module.

    OpenMP is compiled in but not linked: torch has loaded its own libgomp globally by the time the extension is
    imported, and a second copy would bring a second pool of threads.
    """

    def build_extension(self, ext: Extension) -> None:
        kernels = [source for source in ext.sources if source.endswith("_cpu.cpp")]
        others = [source for source in ext.sources if source not in kernels]
        nvcc = find_nvcc()
        libraries = []
        if nvcc is not None:
            # Static: an extension without CUDA's shared libraries loads on machines that have none.
            libraries = [f"-L{library_folder(nvcc)}", "-Wl,--exclude-libs,ALL", "-lcudart_static", "-ldl", "-lrt"]
        jobs = [(others, "plain", COMMON + ["-DFASTMTL_CUDA"] * (nvcc is not None))]
        for isa, flags in INSTRUCTION_SETS.items():
            for kernel in kernels:
                rounding = EXACT if kernel.endswith("_exact_cpu.cpp") else RELAXED
                jobs.append(([kernel], isa, [*COMMON, *rounding, *flags, f"-DFASTMTL_ISA={isa}"]))

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
        if nvcc is not None:
            if not (sources := sorted(CSRC.rglob("*.cu"))):
                raise SystemExit(f"{CSRC} has no CUDA sources: this copy of fastmtl is not whole")
            objects += [self.compile_cuda(nvcc, source) for source in sources]
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, target, target_lang="c++", extra_postargs=[*libraries, "-pthread"])

    def compile_cuda(self, nvcc: Path, source: Path) -> str:
        made = Path(self.build_temp) / "cuda" / f"{source.stem}.o"
        made.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(nvcc), *NVCC, f"-I{CSRC}", "-c", str(source), "-o", str(made)], check=True)
        return str(made)


setup(
    ext_modules=[
        Extension(
            "fastmtl._C",
            sources=sorted(str(path) for path in CSRC.rglob("*.cpp")),
            depends=sorted(str(path) for path in CSRC.rglob("*.hpp")),
            include_dirs=[pybind11.get_include(), str(CSRC)],
            language="c++",
            optional=False,
        )
    ],
    cmdclass={"build_ext": BuildPerInstructionSet},
)
