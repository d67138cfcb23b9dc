#!/usr/bin/env bash
# Fine-tune Stable Diffusion on this machine's GPUs; every setting can come from the environment:
#
#   DATASET_NAME=data/oct bash train.sh
#   DATASET_NAME=reports.csv CUDA_VISIBLE_DEVICES=0,1 bash train.sh --max_train_steps=2000
#
# DATASET_NAME is a dataset folder, a folder of class folders, a CSV or tar shards. Flags given
# here come last and win; python train_text_to_image.py --help lists them.
set -euo pipefail
cd "$(dirname "$0")"

MODEL_NAME="${MODEL_NAME:-CompVis/stable-diffusion-v1-4}"
DATASET_NAME="${DATASET_NAME:-data/oct}"
OUTPUT_DIR="${OUTPUT_DIR:-runs/oct-sd}"
CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-}" # empty: all
MIXED_PRECISION="${MIXED_PRECISION:-bf16}"       # fp16 on cards before Ampere
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-16}"       # images per GPU and pass
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-4}"
MAX_TRAIN_STEPS="${MAX_TRAIN_STEPS:-5000}"
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-}" # e.g. configs/multi_gpu.yaml; empty: none

count_gpus() {
  if [[ -n "$CUDA_VISIBLE_DEVICES" ]]; then
    awk -F, '{print NF}' <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus 2>/dev/null | wc -l
  else
    echo 0
  fi
}

num_gpus="$(count_gpus)"
NUM_PROCESSES="${NUM_PROCESSES:-$((num_gpus > 0 ? num_gpus : 1))}"
if [[ -n "$CUDA_VISIBLE_DEVICES" ]]; then
  export CUDA_VISIBLE_DEVICES
else
  unset CUDA_VISIBLE_DEVICES
fi

launch=(--num_processes "$NUM_PROCESSES" --mixed_precision "$MIXED_PRECISION")
if [[ -n "$ACCELERATE_CONFIG" ]]; then
  launch+=(--config_file "$ACCELERATE_CONFIG")
else
  launch+=(--num_machines 1 --dynamo_backend no)
  if ((num_gpus == 0)); then
    launch+=(--cpu)
  elif ((NUM_PROCESSES > 1)); then
    launch+=(--multi_gpu)
  fi
fi

if [[ -z "${VIRTUAL_ENV:-}" && -d .venv/bin ]]; then
  PATH="$PWD/.venv/bin:$PATH"
fi

exec accelerate launch "${launch[@]}" train_text_to_image.py \
  --pretrained_model_name_or_path="$MODEL_NAME" \
  --train_data_dir="$DATASET_NAME" \
  --use_ema \
  --resolution=512 --center_crop \
  --train_batch_size="$TRAIN_BATCH_SIZE" \
  --gradient_accumulation_steps="$GRADIENT_ACCUMULATION_STEPS" \
  --gradient_checkpointing \
  --max_train_steps="$MAX_TRAIN_STEPS" \
  --learning_rate=1e-05 \
  --max_grad_norm=1 \
  --lr_scheduler=constant --lr_warmup_steps=0 \
  --output_dir="$OUTPUT_DIR" \
  --validation_prompts \
  "normal" \
  "mild retinal edema" \
  "retinal pigment epithelium detachment" \
  "Retinal pigment epithelial layer with strong reflection and bulge" \
  "Cystic low-reflective areas of varying sizes can be seen between retinal layers" \
  "$@"
