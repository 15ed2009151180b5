"""The option for a folder of prompt embeddings."""

from pydantic import BaseModel

from ortho_core.errors import UserError
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
from ortho_core.marks import conduct
from ortho_core.storage.location import OutputLocation


class PromptEmbeddings(BaseModel):
    """Where embeddings of prompts are kept."""

    prompt_embeddings: OutputLocation | None = conduct(
        None,
        description="folder or URL that keeps the embeddings of all prompts, for every step and run (none: only those that fit "
        "the workers' memory are kept; docs/guides/clusters.md)",
    )

    def check_prompt_embeddings(self, model: ModelFolder) -> None:
        """Raises UserError if the model has no text encoders."""
        if self.prompt_embeddings is not None and model.kind == CLASS_KIND:
            raise UserError(
                f"--prompt-embeddings: {model.path} is class-conditional and has no text encoders; leave it out"
            )
