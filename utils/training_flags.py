"""Flags of ``train_text_to_image.py``: those of diffusers' example of that name, and some more.

Each flag of the example is here with its name, meaning and default, or is refused with a reason.
Nothing heavy is imported: a bad flag must answer at once.
"""

import argparse
from pathlib import Path

from utils import cli
from utils import training_flag_values as values
from utils.checkpoints import LATEST
from utils.latent_cache_flags import add_cache_flags
from utils.preference_flags import add_preference_flags
from utils.prompt_template_flag import add_prompt_template_flag
from utils.rehearsal_flags import add_rehearsal_flags
from utils.weight_flags import add_weight_flags

_DEFAULT = "(default: %(default)s)"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags, in groups."""
    _add_model_flags(parser.add_argument_group("model").add_argument)
    _add_data_flags(parser.add_argument_group("data").add_argument)
    _add_sample_flags(parser.add_argument_group("images and captions").add_argument)
    _add_loss_flags(parser.add_argument_group("loss").add_argument)
    add_preference_flags(parser.add_argument_group("preferences").add_argument)
    _add_optimizer_flags(parser.add_argument_group("optimizer").add_argument)
    _add_length_flags(parser.add_argument_group("length and speed").add_argument)
    add_cache_flags(parser.add_argument_group("latent cache").add_argument)
    _add_watch_flags(parser.add_argument_group("watching").add_argument)
    output = parser.add_argument_group("output")
    cli.add_runtime_flags(output, "output_dir", "offline", output_dir=Path("sd-model-finetuned"))
    _add_output_flags(output.add_argument)


def _add_model_flags(add) -> None:
    add(
        "--pretrained_model_name_or_path",
        type=values.model_source,
        required=True,
        metavar="MODEL",
        help="pipeline folder of any Stable Diffusion 1.x or 2.x, or its name on the hub",
    )
    add(
        "--text_encoder_name_or_path",
        type=values.text_encoder_source,
        metavar="MODEL",
        help="folder or hub name of a text encoder with its tokenizer, BERT-like (PubMedBERT, "
        "CXR-BERT, RadBERT) or CLIP, in place of the model's; where its width is another, the "
        "U-Net learns a projection",
    )
    add("--revision", help="branch, tag or commit of the model on the hub")
    add("--variant", help="variant of its weight files, e.g. fp16")
    add("--non_ema_revision", help="revision of the U-Net to train; the average starts elsewhere")
    add("--cache_dir", type=Path, metavar="DIR", help="where downloads are kept")
    add(
        "--train",
        choices=values.TRAINED,
        default="unet",
        help="what is trained: the U-Net, the text encoder with it, or adapters in the U-Net, "
        f"which need a fraction of the memory {_DEFAULT}",
    )
    add("--lora_rank", type=cli.positive_int, default=16, help=f"width of the adapters {_DEFAULT}")
    add(
        "--lora_alpha", type=cli.positive_float, help="their weight is alpha / rank (default: rank)"
    )
    add(
        "--lora_targets",
        nargs="+",
        default=["to_q", "to_k", "to_v", "to_out.0"],
        metavar="NAME",
        help="ends of the names of the adapted layers (default: those of all attention)",
    )


def _add_data_flags(add) -> None:
    add(
        "--train_data_dir",
        type=values.data_source,
        metavar="DATA",
        help="dataset folder, class folders, CSV, or WebDataset shards (*.tar)",
    )
    add("--dataset_name", metavar="NAME", help="data set of the hub, or a local path")
    add(
        "--dataset_config_name",
        action=values.Refused,
        help="is refused: write the configuration you want with datasets' save_to_disk and give "
        "the folder as --train_data_dir",
    )
    add("--image_column", default="image", help="column of the images; image: the usual names")
    add("--caption_column", default="text", help=f"column of the captions {_DEFAULT}")
    add(
        "--caption",
        type=values.template,
        metavar="TEMPLATE",
        help="make every caption of other columns, e.g. 'retinal OCT B-scan, {label}' (default for "
        "data without captions, such as class folders: the label)",
    )
    add_prompt_template_flag(add)
    add("--label_column", help="column of the diagnoses (default: label)")
    add("--patient_column", help="column of the patients (default: patient_id)")
    add_weight_flags(add)
    add_rehearsal_flags(add)
    add(
        "--train_split",
        default="train",
        choices=("train", "val", "test", "all"),
        help=f"rows to train on, where there is a column split {_DEFAULT}",
    )
    add("--max_train_samples", type=cli.positive_int, help="train on this many, drawn by the seed")
    add("--skip_invalid", action="store_true", help="drop broken rows; else they end the run")
    add(
        "--dataloader_num_workers",
        type=cli.non_negative_int,
        help="processes that read images; 0 reads in the main process (default: the cores of a GPU "
        "machine shared out, at most 8 a process, 2 where all is cached; 0 on a CPU, whose cores "
        "train)",
    )


def _add_sample_flags(add) -> None:
    add("--resolution", type=cli.resolution, default=512, help=f"image side in pixels {_DEFAULT}")
    add(
        "--resize_mode",
        choices=values.RESIZE_MODES,
        default="random_crop",
        help=f"how a wide scan becomes a square; pad loses nothing {_DEFAULT}",
    )
    add(
        "--center_crop",
        dest="resize_mode",
        action="store_const",
        const="center_crop",
        help="same as --resize_mode center_crop",
    )
    add("--random_flip", action="store_true", help="mirror half of the images, left to right")
    add(
        "--flip_swaps_sides",
        action="store_true",
        help="with --random_flip: swap left and right, OD and OS in a mirrored image's caption; "
        "nasal and temporal too, unless the caption names the eye. Else such captions are refused",
    )
    add(
        "--image_interpolation_mode",
        type=values.interpolation,
        default="lanczos",
        help="lanczos, the only one",
    )
    add(
        "--caption_dropout_prob",
        type=cli.probability,
        default=0.1,
        help="share of samples trained on the empty caption, which guidance needs; "
        f"0 as in diffusers' example {_DEFAULT}",
    )
    add(
        "--long_captions",
        choices=("truncate", "chunk"),
        help="cut captions at the text encoder's 77 tokens, or read them in up to 4 chunks of 75, "
        "which generation then does too (default: as the model was trained, else truncate)",
    )


def _add_loss_flags(add) -> None:
    add(
        "--prediction_type",
        choices=("epsilon", "v_prediction"),
        help="what the U-Net learns to predict (default: what the model predicts)",
    )
    add(
        "--rescale_betas_zero_snr",
        action="store_true",
        help="let the last timestep be pure noise, for truly dark images; needs v_prediction",
    )
    add("--snr_gamma", type=cli.positive_float, help="min-SNR weighting of the loss; 5 is usual")
    add("--noise_offset", type=cli.non_negative_float, default=0.0, help="e.g. 0.05 for dark scans")
    add(
        "--input_perturbation",
        type=cli.non_negative_float,
        default=0.0,
        help="extra noise in the U-Net's input only; 0.1 is usual",
    )
    add("--dream_training", action="store_true", help="DREAM; one more forward pass a step")
    add("--dream_detail_preservation", type=cli.positive_float, default=1.0, help="its exponent p")


def _add_optimizer_flags(add) -> None:
    add("--learning_rate", type=cli.positive_float, default=1e-4, help=f"peak rate {_DEFAULT}")
    add("--scale_lr", action="store_true", help="multiply the rate by the images per step")
    add(
        "--lr_scheduler",
        choices=values.LR_SCHEDULERS,
        default="constant",
        help=f"schedule {_DEFAULT}",
    )
    add("--lr_warmup_steps", type=cli.non_negative_int, default=500, help=f"steps {_DEFAULT}")
    add("--adam_beta1", type=cli.probability, default=0.9, help=_DEFAULT)
    add("--adam_beta2", type=cli.probability, default=0.999, help=_DEFAULT)
    add("--adam_weight_decay", type=cli.non_negative_float, default=1e-2, help=_DEFAULT)
    add("--adam_epsilon", type=cli.positive_float, default=1e-8, help=_DEFAULT)
    add("--max_grad_norm", type=cli.positive_float, default=1.0, help=f"gradients' cap {_DEFAULT}")
    add("--use_8bit_adam", action="store_true", help="AdamW of bitsandbytes, less memory")
    add("--use_ema", action="store_true", help="average the weights and save the average")
    add("--ema_decay", type=cli.probability, default=0.9999, help=f"its upper limit {_DEFAULT}")
    add("--offload_ema", action="store_true", help="keep the average in main memory")
    add("--foreach_ema", action="store_true", help="always so here")


def _add_length_flags(add) -> None:
    add("--train_batch_size", type=cli.positive_int, default=16, help="images per process and pass")
    add("--gradient_accumulation_steps", type=cli.positive_int, default=1, help="passes per step")
    add(
        "--num_train_epochs", type=cli.positive_int, default=100, help=f"passes over all {_DEFAULT}"
    )
    add("--max_train_steps", type=cli.positive_int, help="steps in all, counts before the epochs")
    add("--gradient_checkpointing", action="store_true", help="less memory, a third slower")
    add(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        help="type of the arithmetic; the trained weights stay float32 (default: what accelerate "
        "is launched with, and bf16 if that is nothing and the device computes in it)",
    )
    add(
        "--compile",
        choices=("no", "regional", "whole"),
        default="no",
        help="let torch.compile fuse the U-Net's transformer blocks, or all of it; the first step "
        f"then takes minutes {_DEFAULT}",
    )
    add("--allow_tf32", action="store_true", help="TF32 for float32 products on Ampere and later")
    add(
        "--enable_xformers_memory_efficient_attention",
        action="store_true",
        help="attention of xformers in place of PyTorch's own",
    )
    add("--seed", type=cli.non_negative_int, help="default: drawn, and told in options.json")
    add("--local_rank", type=int, default=-1, help="ignored: accelerate launch sets it")


def _add_watch_flags(add) -> None:
    add("--validation_prompts", nargs="+", metavar="PROMPT", help="pictures to draw on the way")
    add(
        "--max_validation_images",
        type=cli.positive_int,
        default=16,
        help=f"draw the first so many prompts only {_DEFAULT}",
    )
    add("--validation_epochs", type=cli.positive_int, default=5, help=f"interval {_DEFAULT}")
    add("--validation_steps", type=cli.positive_int, help="interval in steps, instead of epochs")
    add(
        "--validation_split",
        choices=("train", "val", "test"),
        help="also measure the loss on these rows, with fixed noise and timesteps, written to "
        "validation_log.csv, also by range of timesteps",
    )
    add(
        "--validation_loss_steps",
        type=cli.positive_int,
        help="interval of it in steps (default: that of the pictures)",
    )
    add(
        "--early_stopping_patience",
        type=cli.positive_int,
        metavar="N",
        help="end the training when N measurements of it in a row are no lower than the lowest",
    )
    add(
        "--report_to",
        type=values.tracker,
        default="tensorboard",
        help=f"tensorboard, wandb (offline), all or none {_DEFAULT}",
    )
    add("--tracker_project_name", default="text2image-fine-tune", help=_DEFAULT)
    add("--logging_dir", default="logs", help=f"folder in output_dir for the trackers {_DEFAULT}")
    add("--log_steps", type=cli.positive_int, default=10, help=f"interval of the log {_DEFAULT}")


def _add_output_flags(add) -> None:
    add("--checkpointing_steps", type=cli.positive_int, default=500, help=f"interval {_DEFAULT}")
    add("--checkpoints_total_limit", type=cli.positive_int, help="how many to keep (default: all)")
    add(
        "--resume_from_checkpoint",
        metavar="CHECKPOINT",
        help=f"{LATEST}, the name of one in output_dir, or a path",
    )
    add("--push_to_hub", action="store_true", help="upload the model; needs --hub_model_id")
    add("--hub_model_id", metavar="NAME", help="private repository on the hub to upload to")
    add(
        "--hub_token",
        action=values.Refused,
        help="is refused: it would stand in logs and in options.json; run 'hf auth login' or set "
        "HF_TOKEN",
    )
