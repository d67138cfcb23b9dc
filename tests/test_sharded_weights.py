"""configs/fsdp.yaml on two CPU processes: accelerate's own FSDP2 code, with gloo.

accelerate turns FSDP on for GPUs only; these processes are told that it is on. Everything after
that (wrapping, splitting, gathering, checkpoints) is what runs on GPUs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = 3

PROCESS = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor
from utils.sharded_weights import blank_copy, split_average, whole, whole_model
from utils.trained_model import TrainedModel

pipeline, folder, steps, split = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
folder.mkdir(exist_ok=True)

accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
if split == "split":
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
model = TrainedModel(unet)
blank = blank_copy(model)
ema = EMAModel(model.parameters(), decay=0.5, foreach=True)
# a large eps, for AdamW makes whole steps of the rounding of gradients near zero
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3, fused=True)
model, optimizer = accelerator.prepare(model, optimizer)
if split == "split":
    split_average(ema, model, ema.shadow_params)
facts = {"parameters": sum(p.numel() for p in model.parameters())}
facts["held"] = sum(
    p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in model.parameters()
)
facts["groups"] = sum("FSDP" in type(m).__name__ for m in model.modules())
rng = torch.Generator().manual_seed(1)
mine = slice(accelerator.process_index, None, accelerator.num_processes)
facts["losses"], facts["norms"] = [], []
for step in range(steps):
    latents, text = torch.randn(4, 4, 8, 8, generator=rng), torch.randn(4, 77, 32, generator=rng)
    timesteps = torch.randint(0, 1000, (4,), generator=rng)
    prediction = model(latents[mine], timesteps[mine], text[mine]).sample
    loss = (prediction - latents[mine]).square().mean()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    ema.step(model.parameters())
    facts["losses"].append(accelerator.gather(loss.detach()[None]).mean().item())
    facts["norms"].append(whole(norm).item())

# A whole pipeline's U-Net, and the average's
main = accelerator.is_main_process
facts["kept"] = []
for name, average in (("unet", None), ("unet_ema", ema)):
    plain = whole_model(accelerator.unwrap_model(model), blank, average, device="cpu", keep=main)
    facts["kept"].append(plain is not None)
    if main:
        plain.unet.save_pretrained(folder / name)
(folder / f"facts-{accelerator.process_index}.json").write_text(json.dumps(facts))
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def run(tiny_pipeline, fsdp_settings, tmp_path_factory):
    """Runs the processes with what accelerate launch would hand to them; returns their folder."""
    folder = tmp_path_factory.mktemp("sharded")
    script = folder / "process.py"
    script.write_text(PROCESS)

    def start(name, *, num_processes, split):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={num_processes}", str(script), str(tiny_pipeline)]
        command += [str(folder / name), str(STEPS), "split" if split else "together"]
        python_path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment = os.environ | fsdp_settings | python_path
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return folder / name

    return start


@pytest.fixture(scope="module")
def split(run):
    return run("split", num_processes=2, split=True)


@pytest.fixture(scope="module")
def alone(run):
    return run("alone", num_processes=1, split=False)


def facts(folder, rank=0):
    return json.loads((folder / f"facts-{rank}.json").read_text())


def test_each_process_holds_its_part_of_the_weights_only(split):
    held = [facts(split, rank)["held"] for rank in (0, 1)]
    assert sum(held) == pytest.approx(facts(split)["parameters"], rel=0.02)  # with padding
    assert max(held) < 0.6 * facts(split)["parameters"]


def test_the_blocks_that_the_config_names_are_split_each_for_itself(split, tiny_pipeline):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline, subfolder="unet")
    names = [type(module).__name__ for module in unet.modules()]
    blocks = names.count("BasicTransformerBlock") + names.count("ResnetBlock2D")
    assert blocks > 5
    assert facts(split)["groups"] == blocks + 1  # and the rest


def test_a_split_model_learns_what_one_process_learns(split, alone):
    assert facts(split)["losses"] == pytest.approx(facts(alone)["losses"], abs=1e-5)
    assert facts(split)["norms"] == pytest.approx(facts(alone)["norms"], rel=1e-4)


@pytest.mark.parametrize("part", ["unet", "unet_ema"])
def test_what_is_gathered_is_a_whole_unet_that_diffusers_loads(split, alone, part):
    import torch
    from diffusers import UNet2DConditionModel

    one, two = (
        UNet2DConditionModel.from_pretrained(folder, subfolder=part).state_dict()
        for folder in (alone, split)
    )
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6), name
    trained = UNet2DConditionModel.from_pretrained(split, subfolder="unet").state_dict()
    average = UNet2DConditionModel.from_pretrained(split, subfolder="unet_ema").state_dict()
    assert any(not torch.equal(trained[name], average[name]) for name in trained)


def test_only_the_main_process_keeps_whole_weights(split):
    assert facts(split, 0)["kept"] == [True, True]
    assert facts(split, 1)["kept"] == [False, False]
