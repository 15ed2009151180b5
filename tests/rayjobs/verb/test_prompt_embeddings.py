import pytest

from ortho_core.errors import UserError
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.verb.prompt_embeddings import PromptEmbeddings


def test_a_model_without_text_encoders_is_refused(tiny_turbo, tmp_path):
    config = ClassConfig(classes=("a", "b"), noise_shape=(2, 4, 4), image_shape=(1, 16, 16), widths=(8, 8, 8))
    ClassGenerator(config, ClassNetwork(config)).save(tmp_path / "classes")
    classes, turbo = ModelFolder.open(tmp_path / "classes"), ModelFolder.open(tiny_turbo)
    asked = PromptEmbeddings(prompt_embeddings="there")
    with pytest.raises(UserError, match=r"--prompt-embeddings: .* is class-conditional and has no text encoders"):
        asked.check_prompt_embeddings(classes)
    asked.check_prompt_embeddings(turbo)
    PromptEmbeddings().check_prompt_embeddings(classes)
