"""How a card names its base: by what was downloaded, or fine-tuned from what was."""

import json

import pytest
import yaml

from ortho_core.generators.model_card import model_card
from ortho_core.generators.origin import RECORD, base_name, model_name, origin_of

TURBO = {
    "repository": "stabilityai/sdxl-turbo",
    "revision": "main",
    "commit": "71153311",
    "license": "sai-nc-community",
}


@pytest.fixture
def downloaded(tmp_path):
    folder = tmp_path / "sdxl-turbo"
    folder.mkdir()
    (folder / RECORD).write_text(json.dumps({"sdxl-turbo": {**TURBO, "files": {}}}))
    return folder


def card(base):
    return model_card("Mine", base=base, facts={}, metrics={}, config={}, lora=False)


def test_a_downloaded_model_is_named_as_the_catalogue_and_the_hub_do(downloaded):
    assert base_name(downloaded) == "stabilityai/sdxl-turbo"
    said = "sdxl-turbo (stabilityai/sdxl-turbo at 71153311, licence sai-nc-community)"
    assert str(origin_of(downloaded)) == said


def test_a_model_that_was_fine_tuned_from_it_twice_still_names_it(downloaded, tmp_path):
    base = downloaded
    for cycle in ("cycle_01", "cycle_02"):
        text = card(base_name(base))
        assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "stabilityai/sdxl-turbo"
        base = tmp_path / cycle
        base.mkdir()
        (base / "README.md").write_text(text)
    assert origin_of(base) is None
    assert model_name(base) == "cycle_02, fine-tuned from stabilityai/sdxl-turbo"
    assert model_name(downloaded) == "stabilityai/sdxl-turbo"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {RECORD: "no JSON"},
        {RECORD: json.dumps({"one": TURBO, "two": TURBO})},
        {RECORD: json.dumps({"one": {"repository": "x/y"}})},
        {"README.md": "# A model\n\n---\nbase_model: other/base\n---\n"},
        {"README.md": "---\nbase_model: other/base\ntags: [text-to-image]\n---\n# somebody's\n"},
        {"README.md": "---\nbase_model: [a, b]\ntags: [ortho]\n---\n"},
        {"README.md": "---\ntags: {{\n---\n"},
        {"README.md": card("/models/tiny-turbo")},
    ],
)
def test_any_other_folder_is_named_by_itself(content, tmp_path):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert base_name(tmp_path) == model_name(tmp_path) == tmp_path.name
