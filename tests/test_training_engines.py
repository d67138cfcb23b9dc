"""What the trainer hands to FSDP2 and DeepSpeed, and what it refuses; neither runs here."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

from utils.cli import UserError
from utils.training_engines import precision_used, set_up_engine

ROOT = Path(__file__).parents[1]
VERSION_1 = {
    "FSDP_VERSION": "1",
    "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD",
    "FSDP_SYNC_MODULE_STATES": "false",
}


def flags(**changed):
    usual = {"train_batch_size": 3, "max_grad_norm": 0.7, "offload_ema": False, "train": "unet"}
    usual |= {"use_8bit_adam": False, "preference_pairs": None}
    return argparse.Namespace(**usual | changed)


def accelerator(kind, **plugins):
    """As much of accelerate's Accelerator as is looked at."""
    state = SimpleNamespace(**plugins)
    return SimpleNamespace(distributed_type=kind, state=state, mixed_precision="no")


def fsdp(fsdp_settings, monkeypatch, **changed):
    for name, value in (fsdp_settings | changed).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    return accelerator(DistributedType.FSDP, fsdp_plugin=plugin)


def deepspeed(**changed):
    plugin = DeepSpeedPlugin(hf_ds_config=str(ROOT / "configs" / "deepspeed_zero2.json"))
    plugin.deepspeed_config.update(changed)
    return accelerator(DistributedType.DEEPSPEED, deepspeed_plugin=plugin)


def test_the_fsdp_config_is_accepted(fsdp_settings, monkeypatch):
    set_up_engine(flags(), fsdp(fsdp_settings, monkeypatch), "bf16")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (VERSION_1, "fsdp_version: 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient_checkpointing"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading"),
    ],
)
def test_settings_of_fsdp_that_do_not_work_are_refused(fsdp_settings, monkeypatch, settings, told):
    with pytest.raises(UserError, match=told):
        set_up_engine(flags(), fsdp(fsdp_settings, monkeypatch, **settings), "bf16")


@pytest.mark.parametrize("flag", ["offload_ema", "use_8bit_adam"])
def test_flags_that_split_weights_do_not_take_are_refused(fsdp_settings, monkeypatch, flag):
    with pytest.raises(UserError, match=f"--{flag}"):
        set_up_engine(flags(**{flag: True}), fsdp(fsdp_settings, monkeypatch), "bf16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_deepspeed_gets_the_flags(precision):
    engine = deepspeed()
    set_up_engine(flags(), engine, precision)
    config = engine.state.deepspeed_plugin.deepspeed_config
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_clipping"] == 0.7
    assert config["torch_autocast"]["enabled"] is (precision == "bf16")
    assert precision_used(engine) == precision


@pytest.mark.parametrize(
    ("changed", "precision", "told"),
    [
        ({"zero_optimization": {"stage": 3}}, "bf16", "up to stage 2"),
        ({"bf16": {"enabled": True}}, "bf16", "rounds the weights"),
        ({}, "fp16", "--mixed_precision fp16"),
    ],
)
def test_what_does_not_work_with_deepspeed_is_refused(changed, precision, told):
    with pytest.raises(UserError, match=told):
        set_up_engine(flags(), deepspeed(**changed), precision)


def test_a_whole_reference_on_every_gpu_is_refused_and_one_of_adapters_is_not(
    fsdp_settings, monkeypatch
):
    for engine in (fsdp(fsdp_settings, monkeypatch), deepspeed()):
        with pytest.raises(UserError, match="--preference_pairs"):
            set_up_engine(flags(preference_pairs=Path("pairs.csv")), engine, "no")
        set_up_engine(flags(preference_pairs=Path("pairs.csv"), train="lora"), engine, "no")
