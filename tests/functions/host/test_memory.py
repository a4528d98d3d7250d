"""Large buffers are returned to the system when they are freed."""

import subprocess
import sys

SCRIPT = """
import ctypes
from functions.host.memory import return_large_buffers

class Counts(ctypes.Structure):
    # glibc's struct mallinfo2
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = [(name, ctypes.c_size_t) for name in names]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Counts

def mapped(size):
    before = libc.mallinfo2().hblks
    buffer = bytearray(size)
    return libc.mallinfo2().hblks - before

if {here}:
    return_large_buffers()
# By itself, glibc raises its threshold once a large buffer has been freed.
del (large := [bytearray(4 << 20)])[:]
print(mapped(1 << 20), mapped(100 << 10))
"""


def run(here: bool) -> str:
    script = SCRIPT.replace("{here}", str(here))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_large_buffers_are_mapped_and_small_ones_are_not() -> None:
    assert run(True) == "1 0"


def test_glibc_alone_keeps_large_buffers() -> None:
    assert run(False) == "0 0"
