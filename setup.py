"""The C extensions, which setup.cfg cannot describe.

They are optional: without a compiler the package installs, and Python and NumPy do their work.
"""

import os
from glob import glob

from setuptools import Extension, setup

FUNCTION = "functions/kernels"
FAST_PATH = "functions/fast_path"
ENGINE = "control_plane/engine/kernels"
WIRE = "control_plane/faas/wire"
EXPERTS = "control_plane/engine/experts"
OPTIMISED = "-O1" if "-fsanitize" in os.environ.get("CFLAGS", "") else "-O3"
"""With sanitizers, the compiler takes minutes to optimise one file, and nobody times the result."""


def extension(package: str, name: str, source: str, *options: str) -> Extension:
    """The module `name` in `package`. All are built from one source file and the function's headers."""
    own = f"{package}/csrc"
    return Extension(
        f"{package.replace('/', '.')}.{name}",
        sources=[f"{own}/{source}"],
        include_dirs=[f"{FUNCTION}/csrc"],
        depends=sorted(glob(f"{FUNCTION}/csrc/**/*.h", recursive=True) + glob(f"{own}/*.h")),
        extra_compile_args=[OPTIMISED, "-std=c11", "-pthread", *options],
        extra_link_args=["-pthread"],
        optional=True,
    )


setup(
    ext_modules=[
        extension(FUNCTION, "_gated_ffn", "gated_ffn.c"),
        extension(FAST_PATH, "_fast_path", "fast_path.c"),
        # In ISO C, GCC would not fuse attention's products and sums.
        extension(ENGINE, "_dense", "dense.c", "-ffp-contract=fast"),
        extension(WIRE, "_plain_calls", "plain_calls.c"),
        extension(EXPERTS, "_row_groups", "row_groups.c"),
        Extension(
            "control_plane.partition.quantisation._scale_search",
            sources=["control_plane/partition/quantisation/csrc/scale_search.c"],
            # A fused product and sum would round otherwise than NumPy does.
            extra_compile_args=[OPTIMISED, "-std=c11", "-ffp-contract=off"],
            optional=True,
        ),
    ]
)
