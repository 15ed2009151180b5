"""Faster imports of large libraries, by skipping work that Ortho does not need."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: PyTorch's environment variable that turns `torch.compile` off.
_NO_COMPILER = "TORCHDYNAMO_DISABLE"


@contextmanager
def quick_imports() -> Iterator[None]:
    """For import statements only: garbage collection and `torch.compile` are off in this block.

    Modules are hundreds of thousands of objects that live as long as the process. Scanning them for garbage, repeatedly as their
    number grows, takes a fifth of the time of importing diffusers. After the import they are excluded from collection until the
    process ends. bitsandbytes, which diffusers imports if it is installed, compiles its substitutes for missing kernels, which
    loads PyTorch's compiler and takes another tenth. Without compilation they give the same numbers.
    """
    collected, compiler, before = gc.isenabled(), os.environ.get(_NO_COMPILER), len(sys.modules)
    gc.disable()
    os.environ[_NO_COMPILER] = "1"
    try:
        yield
    finally:
        if compiler is None:
            del os.environ[_NO_COMPILER]
        else:
            os.environ[_NO_COMPILER] = compiler
        if collected:
            if len(sys.modules) > before:  # else nothing was imported, and freezing would keep other objects
                gc.freeze()
                # Unfrozen at exit, so that they are freed: C++ libraries print warnings about leaked objects.
                atexit.register(gc.unfreeze)
            gc.enable()
