import pytest
from pydantic import BaseModel, ValidationError

from ortho_core.marks import conduct, decides, mark_of, resolved, settings
from ortho_core.storage.location import LocalPath


class Group(BaseModel):
    lr: float = decides(0.1, gt=0, description="learning rate")
    workers: int = conduct(1, description="how many")


class Job(BaseModel):
    data: LocalPath = resolved(description="rows")
    seed: int = decides(0, description="decides the noise")
    group: Group = Group()


def test_a_mark_declares_a_field_as_pydantic_does():
    field = Job.model_fields["data"]
    assert (mark_of(field), field.description, field.is_required()) == (resolved, "rows", True)
    with pytest.raises(ValidationError, match="greater than 0"):
        Group(lr=0)
    with pytest.raises(ValidationError, match="Field required"):
        Job()


def test_settings_are_those_with_a_mark_in_groups_and_ready_for_json():
    job = Job(data="a/b")
    assert settings(job, decides) == {"seed": 0, "group": {"lr": 0.1}}
    assert settings(job, resolved, conduct) == {"data": "a/b", "group": {"workers": 1}}
