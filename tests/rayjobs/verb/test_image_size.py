import pytest
from pydantic import TypeAdapter, ValidationError

from ortho_core.errors import UserError
from ortho_core.framing.framing import Framing
from ortho_core.framing.image_size import Buckets
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.verb.image_size import BucketSettings, as_options, framing_of


def framing(model, **options):
    return framing_of(BucketSettings(**options), model, 2, 7)


def test_options_become_sizes(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    assert framing(model) == Framing(((32, 32),), seed=7)
    assert framing(model, size="40x24").sizes == framing(model, buckets="40x24").sizes == ((24, 40),)
    assert framing(model, resolution=48).sizes == ((48, 48),)
    several = framing(model, buckets="40X24,32,40x24", crop="random", max_crop=0.2, micro_conditioning="plain")
    assert several == Framing(((24, 40), (32, 32)), "random", 0.2, False, 7)
    automatic = framing(model, buckets="auto", resolution=48)
    assert (len(automatic.sizes), automatic.most_lost, automatic.tells_frames) == (5, 0.34, True)
    assert framing(model, size="48", micro_conditioning="image").tells_frames
    # The same, whatever size the model is at.
    assert framing(model.at((24, 40))) == framing(model)
    assert framing(model.at((24, 40)), buckets="auto") == framing(model, buckets="auto")


def test_options_of_sizes_that_are_known_do_not_depend_on_the_model(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    for options in (
        {},
        {"size": "40x24"},
        {"resolution": 48},
        {"buckets": "auto"},
        {"buckets": "auto", "resolution": 48},
    ):
        job = BucketSettings(**options)
        settled = job.model_copy(update=as_options(framing_of(job, model, 4, 7), model))
        # Other patches would have other automatic sizes.
        assert framing_of(settled, model, 2, 7) == framing_of(job, model, 4, 7)


def test_no_list_of_sizes_is_refused():
    accepts = TypeAdapter(Buckets)
    assert accepts.validate_python("auto") == "auto"
    assert accepts.validate_python(["32x48", "64"]) == "32x48,64x64"
    for wrong in ("", "automatic", "32x", "32x48;48x32"):
        with pytest.raises(ValidationError, match="or auto, or none"):
            accepts.validate_python(wrong)


def test_what_contradicts_is_refused(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    for options, said in (
        ({"size": "32", "resolution": 48}, "leave out either --size or --resolution"),
        ({"size": "32", "buckets": "auto"}, "leave out either --size or --buckets"),
        ({"resolution": 48, "buckets": "32x48,48x32"}, "--resolution is the area of automatic sizes"),
        ({"crop": "none"}, "give several sizes"),
        ({"size": "30x32"}, "--size 30x32: both sides must be multiples of 4"),
    ):
        with pytest.raises(UserError, match=said):
            framing(model, **options)
