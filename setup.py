"""The C extensions, which setup.cfg cannot describe.

They are optional: without a compiler the package installs, and NumPy computes instead.
"""

from glob import glob

from setuptools import Extension, setup

FUNCTION = "functions/kernels"
ENGINE = "control_plane/engine/kernels"


def extension(package: str, name: str, source: str) -> Extension:
    """The module `name` in `package`. Both are built from one source file and the function's headers."""
    return Extension(
        f"{package.replace('/', '.')}.{name}",
        sources=[f"{package}/csrc/{source}"],
        include_dirs=[f"{FUNCTION}/csrc"],
        depends=sorted(glob(f"{FUNCTION}/csrc/**/*.h", recursive=True) + glob(f"{ENGINE}/csrc/*.h")),
        extra_compile_args=["-O3", "-std=c11", "-pthread"],
        extra_link_args=["-pthread"],
        optional=True,
    )


setup(
    ext_modules=[
        extension(FUNCTION, "_gated_ffn", "gated_ffn.c"),
        extension(ENGINE, "_dense", "dense.c"),
        Extension(
            "control_plane.partition.quantisation._scale_search",
            sources=["control_plane/partition/quantisation/csrc/scale_search.c"],
            # A fused product and sum would round otherwise than NumPy does.
            extra_compile_args=["-O3", "-std=c11", "-ffp-contract=off"],
            optional=True,
        ),
    ]
)
