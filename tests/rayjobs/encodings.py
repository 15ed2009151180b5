"""Counts the prompts that are encoded in this process, by the step that encodes them."""

from collections import Counter

import pytest

from ortho_core.generators.load import load_generator

#: The modules that load a model: for the pass over the prompts, for the E-step and for the M-step.
LOADING = {
    "pass": "rayjobs.pool.prompt_pass",
    "assign": "rayjobs.pool.engine_search",
    "train": "rayjobs.train.worker",
}


def count_encodings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter[str]]:
    """How often each prompt is encoded by each step from now on; the empty text, which fills up batches, is left out."""
    counted = {step: Counter[str]() for step in LOADING}
    for step, module in LOADING.items():

        def load(*arguments, of_step=counted[step], **options):
            generator = load_generator(*arguments, **options)
            encode = generator.encode_prompts
            generator.encode_prompts = lambda prompts: of_step.update(filter(None, prompts)) or encode(prompts)
            return generator

        monkeypatch.setattr(f"{module}.load_generator", load)
    return counted
