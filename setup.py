"""Adds the compiled kernels to the build where the running interpreter can import torch.

An isolated build cannot, and makes a pure Python package whose kernels compile on first use.
`KRYPTON_REQUIRE_EXT=1` makes a build without the kernels an error. The kernels for CUDA are built
where torch has CUDA and a toolkit is there; `FORCE_CUDA=1` makes their absence an error,
`FORCE_CUDA=0` leaves them out. `TORCH_CUDA_ARCH_LIST` says for which cards.
"""

import os
import sysconfig
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import setup

CUDA = os.environ.get("FORCE_CUDA", "")
REQUIRED = os.environ.get("KRYPTON_REQUIRE_EXT") == "1" or CUDA == "1"
CARDS = "8.0;9.0;10.0+PTX"
# A free-threaded interpreter has no limited API.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
DEFINES = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    *(["-DPy_LIMITED_API=0x030A0000"] if LIMITED else []),
]
# Interpreters often pass their own -g on, and debug information is seven times the kernels.
OPTIMISE = ["/O2"] if os.name == "nt" else ["-O3", "-g0"]


def skip(why: object, kernels: str = "compiled kernels") -> None:
    print(f"captum-krypton: built without {kernels}, which compile on first use: {why}")


def toolkits() -> Iterator[Path]:
    """Where a CUDA toolkit may be; nvcc may be a wrapper that lies outside its toolkit."""
    from torch.utils.cpp_extension import CUDA_HOME

    for home in (os.environ.get("CUDA_HOME"), CUDA_HOME, "/usr/local/cuda"):
        if home and (Path(home) / "include" / "cuda_runtime.h").is_file():
            yield Path(home)


def has_cuda() -> bool:
    """Whether the kernels for CUDA can be built; points torch at the toolkit."""
    import torch
    from torch.utils import cpp_extension

    home = next(toolkits(), None)
    if CUDA == "0" or home is None or (torch.version.cuda is None and CUDA != "1"):
        if CUDA == "1":
            raise RuntimeError("FORCE_CUDA=1, and there is no CUDA toolkit; CUDA_HOME says where")
        return False
    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(home)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CARDS)
    return True


def extensions() -> dict[str, Any]:
    """The arguments of setup() that build captum_krypton._C and captum_krypton._C_cuda."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        if REQUIRED:
            raise
        skip(error)
        return {}

    class Build(BuildExtension):
        def build_extension(self, extension: Any) -> None:
            try:
                super().build_extension(extension)
            except Exception as error:
                if REQUIRED or extension.name != "captum_krypton._C_cuda":
                    raise
                skip(error, "kernels for CUDA")
                self.extensions = [other for other in self.extensions if other is not extension]

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if REQUIRED:
                    raise
                skip(error)
                self.extensions = []

    def sources(pattern: str) -> list[str]:
        return sorted(glob(f"csrc/{pattern}", recursive=True))

    modules = [
        CppExtension(
            "captum_krypton._C",
            ["csrc/module.cpp", *sources("cpu/**/*.cpp")],
            depends=[*sources("*.h"), *sources("cpu/**/*.h")],
            py_limited_api=LIMITED,
            extra_compile_args=[*OPTIMISE, *DEFINES],
        )
    ]
    if has_cuda():
        host = [*OPTIMISE, "-DUSE_CUDA", *DEFINES]
        modules.append(
            CUDAExtension(
                "captum_krypton._C_cuda",
                ["csrc/cuda/module.cpp", *sources("cuda/*.cu")],
                depends=[*sources("*.h"), *sources("cuda/*.h")],
                py_limited_api=LIMITED,
                extra_compile_args={"cxx": host, "nvcc": ["-O3", "-DUSE_CUDA", *DEFINES]},
            )
        )
    return {
        "ext_modules": modules,
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
    }


setup(**extensions())
