import gc
import importlib
import os
import subprocess
import sys

import pytest

from ortho_core.generators.imports import quick_imports

LOADED = """
import gc, sys
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
assert "diffusers" not in sys.modules
load_generator(ModelFolder.open("models/tiny-turbo"))
print(gc.isenabled(), gc.get_freeze_count() > 100_000, "torch._inductor.compile_fx" in sys.modules)
"""

NOWHERE = "no_such_module_anywhere"


def test_garbage_is_collected_again_afterwards_also_after_a_failed_import(monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "as it was")
    frozen = gc.get_freeze_count()

    def failing() -> None:
        with quick_imports():
            assert not gc.isenabled()
            assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
            importlib.import_module(NOWHERE)

    with pytest.raises(ModuleNotFoundError):
        failing()
    assert gc.isenabled()
    assert os.environ["TORCHDYNAMO_DISABLE"] == "as it was"
    assert gc.get_freeze_count() == frozen, "nothing was imported, and what lives is set apart from collection"


def test_inside_another_one_only_the_outer_one_ends_it(monkeypatch):
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with quick_imports():
        with quick_imports():
            pass
        assert not gc.isenabled()
        assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
    assert gc.isenabled()
    assert "TORCHDYNAMO_DISABLE" not in os.environ


def test_a_model_is_loaded_without_the_compiler_and_its_modules_are_set_apart():
    process = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=300)
    assert process.stdout == "True True False\n", process.stderr
    assert "leaked" not in process.stderr
