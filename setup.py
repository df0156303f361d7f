"""Builds every kernels/<op>/native.pyx once per instruction-set level (kernels/levels.py).

Cython runs once per op; a two-line C file per level includes its output under the level's own module name
(native_x86_64_v3, ...), so that one source serves every processor and import picks the level (kernels/select.py).
No working C compiler: the install goes on without native kernels, says so, and Numba carries the pipeline.
FASTMIXER_BUILD_ISA / FASTMIXER_BUILD_OPS narrow a development build (comma-separated names).
"""

import os
import platform
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

os.chdir(Path(__file__).resolve().parent)  # every path below is relative to the project's root
KERNELS = Path("kernels")
GENERATED = Path("build") / "generated"

known = runpy.run_path(str(KERNELS / "levels.py"))
level_for = known["level_for"]  # which ops are built at which level

# What each level is compiled with.
LEVEL_FLAGS = {
    "portable": [],
    "x86_64_v2": ["-march=x86-64-v2"],
    "x86_64_v3": ["-march=x86-64-v3"],
    "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "x86_64_v4_vnni": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512vnni"],
    "x86_64_v4_bf16": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512vnni", "-mavx512bf16"],
    "x86_64_v4_amx": [
        "-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16",
    ],
    "aarch64_dot": ["-march=armv8.2-a+dotprod"],
}
LEVELS = {name: flags for name, flags in LEVEL_FLAGS.items() if name in known["levels_of"](platform.machine())}

# Contraction to FMA is part of the design (tests hold every level to float64); nothing that breaks infinities or
# NaN is enabled. `inline` in Cython means "inline, always": micro-kernels need their tile constants folded.
COMMON_FLAGS = [
    "-O3", "-g0", "-std=gnu11", "-DCYTHON_INLINE=inline __attribute__((always_inline))",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
    "-Wno-unused-function", "-Wno-unused-variable", "-Wno-unused-but-set-variable", "-Wno-psabi",
]  # fmt: skip
DIRECTIVES = {
    "language_level": "3", "boundscheck": False, "wraparound": False, "cdivision": True,
    "initializedcheck": False, "embedsignature": True, "freethreading_compatible": False,
}  # fmt: skip

# Modules that do not depend on the level: thread pool, processor detection, Cython's shared memoryview code.
SHARED_UTILITY = "fastmixer.kernels.cython_shared"
SINGLE = {"threads": ["pool.c"], "cpu": []}


def kernel_ops() -> list[str]:
    """Names of the folders in kernels/ that hold a per-level native.pyx."""
    chosen = os.environ.get("FASTMIXER_BUILD_OPS")
    ops = sorted(path.parent.name for path in KERNELS.glob("*/native.pyx") if path.parent.name not in SINGLE)
    return [op for op in ops if not chosen or op in chosen.split(",")]


def levels_to_build() -> dict[str, list[str]]:
    chosen = os.environ.get("FASTMIXER_BUILD_ISA")
    return {name: flags for name, flags in LEVELS.items() if not chosen or name in chosen.split(",")}


def compiler_accepts(compiler, flags: list[str]) -> bool:
    """True if the C compiler turns a trivial source into an object file under these flags."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("int fastmixer_probe(void) { return 0; }\n")
        command = [*compiler.compiler_so, *flags, "-c", str(source), "-o", str(source.with_suffix(".o"))]
        try:
            return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        except OSError:
            return False


def announce(message: str) -> None:
    """Print where a person sees it: pip swallows a build's output, a terminal does not."""
    banner = "\n".join(["", "!" * 78, *message.splitlines(), "!" * 78, ""])
    print(banner, file=sys.stderr, flush=True)
    try:
        with open("/dev/tty", "w") as terminal:
            terminal.write(banner + "\n")
    except OSError:
        pass  # no terminal: the build log has it, and the first use of a kernel warns again


def run_cython(sources: list[Path]) -> None:
    """Translate the changed .pyx files to C, once for all levels."""
    # Imported here: `pip install` with no compiler must not need Cython to succeed.
    from Cython.Build import cythonize

    extensions = [
        Extension("fastmixer.kernels." + ".".join(path.relative_to(KERNELS).with_suffix("").parts), [str(path)])
        for path in sources
    ]
    cythonize(
        extensions,
        build_dir=str(GENERATED),
        include_path=[str(KERNELS)],
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name=SHARED_UTILITY,
        quiet=True,
    )


def generate_shared_utility() -> Path:
    """Cython's memoryview runtime, compiled once instead of in each native module."""
    target = GENERATED / "cython_shared.c"
    if not target.exists():
        GENERATED.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "cython", f"--generate-shared={target}", "-3", "-M"], check=True)
    return target


def level_source(op: str, level: str) -> Path:
    """The two-line C file that gives native.c its name at this level."""
    source = GENERATED / "kernels" / op / f"native_{level}.c"
    text = f'#define PyInit_native PyInit_native_{level}\n#include "native.c"\n'
    source.parent.mkdir(parents=True, exist_ok=True)
    if not source.exists() or source.read_text() != text:
        source.write_text(text)
    return source


class BuildKernels(build_ext):
    def run(self):
        from distutils.ccompiler import new_compiler
        from distutils.sysconfig import customize_compiler

        compiler = new_compiler(compiler=self.compiler)
        customize_compiler(compiler)
        if compiler.compiler_type != "unix" or not compiler_accepts(compiler, COMMON_FLAGS):
            if os.environ.get("FASTMIXER_REQUIRE_NATIVE"):
                raise SystemExit("fastmixer: no working C compiler, and FASTMIXER_REQUIRE_NATIVE is set")
            announce(
                "fastmixer: NO WORKING C COMPILER, so the native kernels were not built.\n"
                "Everything runs on Numba instead, several times slower. To get the native\n"
                "kernels: install gcc or clang (Debian: apt-get install gcc python3-dev),\n"
                "then: pip install --force-reinstall --no-cache-dir fastmixer"
            )
            self.extensions[:] = []
            return
        self.extensions[:] = self.plan(compiler)
        self.parallel = self.parallel or os.cpu_count()
        super().run()

    def plan(self, compiler) -> list[Extension]:
        """One extension per (op, level), plus those that exist once. A level unknown to the compiler is left out."""
        levels = {}
        for level, flags in levels_to_build().items():
            if compiler_accepts(compiler, COMMON_FLAGS + flags):
                levels[level] = flags
            else:
                print(
                    f"fastmixer: this C compiler has no {' '.join(flags)}; level {level} is left out", file=sys.stderr
                )
        ops = kernel_ops()
        run_cython([KERNELS / op / "native.pyx" for op in [*SINGLE, *ops]])
        headers = [str(path) for path in [*KERNELS.glob("*.h"), *KERNELS.glob("*/*.h")]]
        extensions = [
            Extension(SHARED_UTILITY, [str(generate_shared_utility())], extra_compile_args=["-O2", "-w"]),
            *(
                Extension(
                    f"fastmixer.kernels.{name}.native",
                    [str(GENERATED / "kernels" / name / "native.c"), *(f"kernels/{name}/{source}" for source in extra)],
                    include_dirs=["kernels"],
                    depends=headers,
                    extra_compile_args=COMMON_FLAGS,
                    extra_link_args=["-pthread"],
                )
                for name, extra in SINGLE.items()
            ),
        ]
        for op in ops:
            for level, flags in levels.items():
                if level_for(op, level) != level:
                    continue
                generated = level_source(op, level)
                extensions.append(
                    Extension(
                        f"fastmixer.kernels.{op}.native_{level}",
                        [str(generated)],
                        include_dirs=["kernels", str(generated.parent)],
                        depends=[*headers, str(generated.with_name("native.c"))],
                        extra_compile_args=[*COMMON_FLAGS, *flags],
                    )
                )
        for extension in extensions:
            extension._needs_stub = False
        return extensions

    def get_source_files(self):
        return [str(path) for suffix in ("*.pyx", "*.pxi", "*.h", "*.c") for path in KERNELS.rglob(suffix)]


packages = find_namespace_packages(include=["fastmixer", "fastmixer.*"], exclude=["fastmixer.kernels*"])
packages = [name for name in packages if Path(name.replace(".", "/")).is_dir() and "__pycache__" not in name]
kernel_packages = ["fastmixer.kernels"] + [
    f"fastmixer.kernels.{path.parent.name}" for path in sorted(KERNELS.glob("*/__init__.py"))
]

setup(
    packages=packages + kernel_packages,
    package_dir={"fastmixer": "fastmixer", "fastmixer.kernels": "kernels"},
    package_data={
        "fastmixer": ["py.typed", "assets/*"],
        **{name: ["*.pyi"] for name in kernel_packages},
    },
    include_package_data=False,  # sources of kernels are for the sdist
    # Filled in by BuildKernels once the compiler has been probed.
    ext_modules=[Extension("fastmixer.kernels.threads.native", [])],
    cmdclass={"build_ext": BuildKernels},
)
