import re

import pytest
import yaml

from ortho_core.generators.model_card import model_card


def card(**options):
    facts = {"trained on": "24 | rows", "started from": "a model (fingerprint 0123)"}
    settings = {"facts": facts, "metrics": {"latent": 0.123456789}, "config": {"lr": 1e-4, "noise": "matched"}}
    return model_card("My run", **{**settings, "base": "some/base: 1", "lora": False, **options})


@pytest.mark.parametrize(("lora", "relation"), [(False, "finetune"), (True, "adapter")])
def test_the_front_matter_is_yaml_and_names_the_base(lora, relation):
    _, head, text = card(lora=lora).split("---\n", 2)
    content = yaml.safe_load(head)
    assert (content["base_model"], content["base_model_relation"]) == ("some/base: 1", relation)
    assert ("lora" in content["tags"]) == lora
    assert ("load_lora_weights" in text) == lora
    assert text.startswith("\n# My run\n")


def test_facts_metrics_and_configuration_can_be_read():
    text = card()
    assert "| trained on | 24 \\| rows |" in text
    assert "| latent | 0.12346 |" in text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]) == {"lr": 1e-4, "noise": "matched"}
    assert "\n\n\n" not in text
