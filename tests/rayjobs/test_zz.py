from rayjobs.train import run
from tests.rayjobs.training import *
import pytest
pytestmark = pytest.mark.usefixtures("ray_session")
def test_a(trained):
    print(sorted(p.name for p in trained.iterdir()))
    for l in (trained/"train_history.jsonl").read_text().splitlines(): print(l)
@pytest.mark.parametrize("o",[{}, dict(ema=True,checkpoint_every=1), dict(lora_rank=2), dict(num_workers=1)])
def test_b(assigned,tiny_turbo,tmp_path,o):
    run(job(assigned,tiny_turbo,tmp_path/"o",**o))
    print(summary(tmp_path/"o"))
