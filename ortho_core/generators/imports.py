"""Libraries that take seconds to import, imported without work that nothing needs."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: PyTorch's own variable: what `torch.compile` is asked to compile stays as it is.
_NO_COMPILER = "TORCHDYNAMO_DISABLE"


@contextmanager
def quick_imports() -> Iterator[None]:
    """For import statements alone: no garbage is collected inside, and nothing is compiled at import.

    Modules are hundreds of thousands of objects that live as long as the process. Looking through them for garbage, again
    and again as they grow in number, takes a fifth of the time of importing diffusers; after the import they are set apart,
    until the process ends. bitsandbytes, which diffusers imports wherever it is installed, asks for its substitutes of
    missing kernels to be compiled, and so loads PyTorch's compiler, which takes another tenth. They give the same numbers
    as they are.
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
            if len(sys.modules) > before:  # else all was imported, and what lives now is not of modules
                gc.freeze()
                # On the way out they are garbage: libraries of C++ print what is left of theirs.
                atexit.register(gc.unfreeze)
            gc.enable()
