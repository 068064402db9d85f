"""Build the extension modules: one kernel module for each instruction set and compute type.

Everything else about the project is in pyproject.toml.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("softce_fast/_kernels")
COMPUTE_TYPES = ("float32", "float64")
COPIES = Path("build/kernels")
# What execute.pyx and the kernel modules must agree on.
INTERFACE = (KERNELS / "problem.pxd", KERNELS / "kind.h")


class Variant(NamedTuple):
    """One build of the kernels: its name, its compiler flags, the CPU features they rely on."""

    name: str
    flags: tuple[str, ...]
    features: tuple[str, ...]

    def needs(self) -> tuple[str, str]:
        """Return the macro that tells cpu.h which features to look for."""
        return f"{self.name.upper()}_NEEDS", "|".join(f"CPU_{f.upper()}" for f in self.features)


# The features are looked up at import (softce_fast/_kernels/cpu.h), best build first.
X86_VARIANTS = (
    Variant(
        "avx512",
        (
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"),
            "-mprefer-vector-width=512",
        ),
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"),
    ),
    Variant("avx2", ("-mavx2", "-mfma", "-mf16c"), ("avx2", "fma", "f16c")),
)
BASELINE = Variant("baseline", (), ())

# Strict IEEE meaning: no -ffast-math. A multiply-add is fused where the source says so
# (-ffp-contract=off), so that every build with fused multiply-adds gives the same bits.
COMPILE_FLAGS = (
    *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fvisibility=hidden", "-Wno-unused-function", "-Wno-psabi"),
)
# For compilers that know them. GCC makes two loops of one whose last step differs, and then keeps
# less in registers: without the flag, rows of float64 take 1.05 to 1.2 times as long. It makes one
# function of all that is called once, too: the passes then share the registers, up to 1.2 times.
# What a group of rows has is cleared and copied by an instruction (rep stos, rep movs) that takes
# longer to begin than a few stores to end: up to 1.08 times for 10 classes.
KNOWN_TO_SOME = (
    *("-fno-split-loops", "-fno-inline-functions-called-once"),
    "-mmemset-strategy=vector_loop:1024:noalign,libcall:-1:noalign",
    "-mmemcpy-strategy=vector_loop:1024:noalign,libcall:-1:noalign",
)

# What SOFTCE_FAST_BUILD can be: every variant; the best that this machine can run; all that it can
# run, for sanitizers: with line numbers, and without what takes the compiler long.
BUILDS = ("all", "native", "debug")
DEBUG_FLAGS = ("-O1", "-g1")

ANY_PROGRAM = "int main(void) { return 0; }\n"
PYTHON_PROGRAM = "#include <Python.h>\nint main(void) { return PY_MAJOR_VERSION < 3; }\n"
OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


def variants() -> tuple[Variant, ...]:
    """Return the variants for the machine that is built for."""
    target = os.environ.get("_PYTHON_HOST_PLATFORM", platform.machine()).lower()
    if any(name in target for name in ("x86_64", "amd64")):
        return (*X86_VARIANTS, BASELINE)
    return (BASELINE,)


def needs() -> list[tuple[str, str]]:
    """Return the macros of all variants that rely on something, whatever is built.

    cpu.h goes by the CPU that the compiler has in mind.
    """
    return [variant.needs() for variant in X86_VARIANTS]


def chosen_build() -> str:
    """Return what is to be built, of `BUILDS`."""
    chosen = os.environ.get("SOFTCE_FAST_BUILD") or "all"
    if chosen not in BUILDS:
        raise SystemExit(f"SOFTCE_FAST_BUILD must be one of {', '.join(BUILDS)}, not {chosen!r}")
    return chosen


def variants_to_build() -> tuple[Variant, ...]:
    """Return all variants, or those of them that SOFTCE_FAST_BUILD asks for."""
    chosen = chosen_build()
    if chosen == "all" or sys.platform == "win32":  # where no program is built to ask with
        return variants()
    asked = '#include "cpu.h"\nint main(void) {{ return !supports_{0}(); }}\n'
    flags = [f"-I{KERNELS}", *(f"-D{name}={value}" for name, value in needs())]
    runnable = tuple(
        variant
        for variant in variants()
        if variant is BASELINE or builds(asked.format(variant.name), flags, [], run=True)
    )
    return runnable[:1] if chosen == "native" else runnable


def jobs() -> int:
    """Return how many compilers may run at once: SOFTCE_FAST_JOBS, else a CPU each.

    Those are the CPUs that this process may use; a container's quota shows in the variable alone.
    """
    asked = os.environ.get("SOFTCE_FAST_JOBS", "")
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise SystemExit(f"SOFTCE_FAST_JOBS must be a number from 1 on, not {asked!r}")
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def debug_flags() -> tuple[str, ...]:
    """Return the flags for a debugger's symbols: none, unless CFLAGS or the build asks for them."""
    if chosen_build() == "debug":
        return DEBUG_FLAGS
    asked = any(flag.startswith("-g") for flag in os.environ.get("CFLAGS", "").split())
    return () if asked else ("-g0",)


def spelled(flags: Iterable[str]) -> list[str]:
    """Spell GCC's flags for the compiler: clang-cl, on Windows, ignores most of them otherwise."""
    return [f"/clang:{flag}" if sys.platform == "win32" else flag for flag in flags]


def openmp_flags() -> tuple[list[str], list[str]]:
    """Return the compile and link flags for OpenMP, found by building a small module with them."""
    if sys.platform == "win32":
        # clang-cl's, where the linker finds LLVM's runtime.
        folders = os.environ.get("LIB", "").split(os.pathsep)
        if any(Path(folder, "libomp.lib").exists() for folder in folders):
            return ["/openmp"], ["libomp.lib"]
    candidates = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":
        candidates = [(["-Xpreprocessor", "-fopenmp"], ["-lomp"]), *candidates]
    for compile_flags, link_flags in candidates:
        if builds(OPENMP_PROGRAM, compile_flags, link_flags):
            return compile_flags, link_flags
    print(
        "softce_fast: WARNING: the compiler has no OpenMP (omp.h or its runtime is missing): "
        "building for one thread only.",
        file=sys.stderr,
    )
    return [], []


def compiler() -> list[str]:
    """Return the command that setuptools compiles C with."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def check_compiler() -> None:
    """End the build at once, and say what to install, where there is no compiler for extensions.

    On Windows setuptools says so itself.
    """
    include = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
    if sys.platform == "win32" or builds(PYTHON_PROGRAM, include, []):
        return
    command, version = " ".join(compiler()), f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which(compiler()[0]) is None:
        missing = f"a C compiler (there is no command {compiler()[0]!r}; CC names another)"
    elif not builds(ANY_PROGRAM, [], []):
        missing = f"a C compiler that works ({command!r} fails on a line of C)"
    else:
        missing = f"Python.h (for Python {version})"
    raise SystemExit(
        f"softce_fast: Missing: {missing}.\n"
        f"    Debian, Ubuntu:  apt-get install gcc libc6-dev python{version}-dev\n"
        "    Fedora:          dnf install gcc glibc-devel python3-devel\n"
        "    macOS:           xcode-select --install"
    )


def builds(
    source: str, compile_flags: list[str], link_flags: list[str], *, run: bool = False
) -> bool:
    """Tell whether a program in C compiles and links, and on request returns 0 when it is run.

    Not on Windows: there setuptools looks for its compiler itself, and clang-cl, which it should
    find, has neither OpenMP under that flag nor GCC's.
    """
    if sys.platform == "win32":
        return False
    flags = os.environ.get("CFLAGS", "").split(), os.environ.get("LDFLAGS", "").split()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.c")
        path.write_text(source)
        program = str(path.with_suffix(".exe"))
        commands = [
            [
                *(*compiler(), *flags[0], *compile_flags, str(path)),
                *("-o", program, *flags[1], *link_flags),
            ],
            *([[program]] if run else []),
        ]
        try:
            return all(
                subprocess.run(command, capture_output=True, check=False).returncode == 0
                for command in commands
            )
        except OSError:
            return False


def digest(paths: Iterable[Path], also: object = "") -> str:
    """Return a hash of what files hold, and of something else."""
    parts = [*(path.read_bytes() for path in paths), repr(also).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def module(source: str, name: str, flags: list[str], **options: Any) -> Extension:
    """Return a module of some Cython, made anew when something that it is made of has changed.

    Neither Cython nor setuptools looks at flags, macros and all that is included; and Cython keeps
    one C source for each .pyx, not for each module. So each has a copy, with a hash at its end.
    """
    import Cython
    import numpy

    options = {"extra_compile_args": flags, "include_dirs": [str(KERNELS)], **options}
    sources = (path for path in KERNELS.rglob("*") if path.suffix in (".pyx", ".pxd", ".pxi", ".h"))
    around = [os.environ.get(variable) for variable in ("CFLAGS", "LDFLAGS")]
    made_with = [options, compiler(), *around, Cython.__version__, numpy.__version__]
    hashed = digest([Path("setup.py"), *sorted(sources)], made_with)
    text, copy = f"{(KERNELS / source).read_text()}# {hashed}\n", COPIES / f"{name}.pyx"
    if not copy.exists() or copy.read_text() != text:
        COPIES.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    return Extension(f"softce_fast._kernels.{name}", [str(copy)], **options)


def extensions() -> list[Extension]:
    """Return every extension module, its C source freshly made from Cython."""
    import numpy
    from Cython.Build import cythonize

    chosen = variants_to_build()
    compile_openmp, link_openmp = openmp_flags()
    compile_flags = [
        *spelled((*COMPILE_FLAGS, *debug_flags())),
        *(flag for flag in KNOWN_TO_SOME if builds(ANY_PROGRAM, ["-Werror", flag], [])),
    ]
    with_openmp = [*compile_flags, *compile_openmp]
    # The kernels are written as many small functions that must melt together.
    inline = "inline" if chosen_build() == "debug" else "inline __attribute__((always_inline))"
    # Modules of one layout alone go together.
    interface = ("SOFTCE_FAST_KERNELS", f'"softce_fast.kernels.{digest(INTERFACE)}"')
    names = ",".join(variant.name for variant in chosen)
    modules = [
        module(
            "probe.pyx", "probe", with_openmp, extra_link_args=link_openmp,
            define_macros=[("SOFTCE_FAST_VARIANTS", f'"{names}"'), *needs()],
        ),
        module(
            "execute.pyx", "execute", with_openmp, extra_link_args=link_openmp,
            include_dirs=[str(KERNELS), numpy.get_include()],
            define_macros=[interface, ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        ),
        *(
            module(
                "kernel.pyx", f"{variant.name}_{compute}", compile_flags + spelled(variant.flags),
                define_macros=[
                    interface, (f"COMPUTE_{compute.upper()}", None), ("CYTHON_INLINE", inline)
                ],
            )
            for variant in chosen
            for compute in COMPUTE_TYPES
        ),
    ]  # fmt: skip
    made: list[Extension] = cythonize(
        modules,
        build_dir="build/cython",
        # The first for what is imported by its whole name.
        include_path=[".", str(KERNELS)],
        # Memory is taken for each call, and what calls share is atomic: no GIL is needed.
        compiler_directives={"autotestdict": False, "freethreading_compatible": True},
        nthreads=jobs(),
    )
    return made


class BuildKernels(build_ext):  # type: ignore[misc]  # its types depend on what is installed
    """Make the extension modules, and only when they are built: metadata needs no Cython."""

    def run(self) -> None:
        """Translate and compile."""
        check_compiler()
        self.parallel = jobs()
        self.distribution.ext_modules = extensions()
        self.swig_opts = None  # it would be split twice
        self.finalize_options()  # again, for the modules
        super().run()


if __name__ == "__main__":
    setup(
        # That there are some: the wheel is for this platform.
        ext_modules=[Extension("softce_fast._kernels.execute", [])],
        cmdclass={"build_ext": BuildKernels},
    )
