"""The C kernel is the one thing that setup.cfg cannot describe.

It is optional: without a compiler the package installs, and functions run the NumPy kernel.
"""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "functions.kernels._gated_ffn",
            sources=["functions/kernels/csrc/gated_ffn.c"],
            depends=glob("functions/kernels/csrc/*.h"),
            extra_compile_args=["-O3", "-std=c11", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
