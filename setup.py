"""Adds the compiled kernels to the build where the running interpreter can import torch.

An isolated build cannot, and makes a pure Python package whose kernels compile on first use.
`KRYPTON_REQUIRE_EXT=1` makes a build without the kernels an error.
"""

import os
import sysconfig
from glob import glob
from typing import Any

from setuptools import setup

REQUIRED = os.environ.get("KRYPTON_REQUIRE_EXT") == "1"
# A free-threaded interpreter has no limited API.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")


def skip(why: object) -> None:
    print(f"captum-krypton: built without compiled kernels, which compile on first use: {why}")


def extension() -> dict[str, Any]:
    """The arguments of setup() that build captum_krypton._C."""
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if REQUIRED:
            raise
        skip(error)
        return {}

    class Build(BuildExtension):
        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if REQUIRED:
                    raise
                skip(error)
                self.extensions = []

    binary = CppExtension(
        "captum_krypton._C",
        ["csrc/module.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        depends=sorted(glob("csrc/*.h")),
        py_limited_api=LIMITED,
        extra_compile_args=[
            "/O2" if os.name == "nt" else "-O3",
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            *(["-DPy_LIMITED_API=0x030A0000"] if LIMITED else []),
        ],
    )
    return {
        "ext_modules": [binary],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
    }


setup(**extension())
