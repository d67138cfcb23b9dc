#!/usr/bin/env bash
# Continue an OCT-SD pipeline on chest X-rays with their reports; one model keeps both domains:
#
#   DATASET_NAME=data/cxr bash transfer_cxr.sh
#   DATASET_NAME=data/cxr REHEARSAL=data/oct bash transfer_cxr.sh --max_train_steps=2000
#
# docs/transfer.md has the commands of a demo on simulated films that needs no GPU.
#
# MODEL_NAME is what train.sh has made, or any Stable Diffusion. DATASET_NAME is a dataset folder
# with the columns text and modality (prepare_dataset.py import --modality CXR). REHEARSAL is the
# data set that the model knows already; a share of it is mixed in so that it is not forgotten.
# All settings of train.sh hold here too, and flags given here come last and win. Films are not
# mirrored: left and right are findings.
set -euo pipefail
cd "$(dirname "$0")"

export MODEL_NAME="${MODEL_NAME:-runs/oct-sd}"
export DATASET_NAME="${DATASET_NAME:-data/cxr}"
export OUTPUT_DIR="${OUTPUT_DIR:-runs/cxr-sd}"
RESOLUTION="${RESOLUTION:-512}"
LEARNING_RATE="${LEARNING_RATE:-1e-05}"
# The words of chest X-rays are new too: with the text encoder as RoentGen found best (Chambon et al.
# 2022, https://arxiv.org/abs/2211.12737); unet or lora take less memory.
TRAIN="${TRAIN:-unet+text_encoder}"
PROMPT_TEMPLATE="${PROMPT_TEMPLATE:-"{modality}: {text}"}"
REHEARSAL="${REHEARSAL:-}"             # a data set, e.g. data/oct; empty: none
REHEARSAL_SHARE="${REHEARSAL_SHARE:-0.1}"

flags=(--train="$TRAIN" --resolution="$RESOLUTION" --learning_rate="$LEARNING_RATE")
flags+=(--prompt_template="$PROMPT_TEMPLATE")
if [[ -n "$REHEARSAL" ]]; then
  flags+=(--rehearsal="$REHEARSAL" --rehearsal_share="$REHEARSAL_SHARE")
fi

prompts=()
for text in \
  "No acute cardiopulmonary process." \
  "Moderate left pleural effusion." \
  "Moderate right pleural effusion." \
  "The heart is enlarged. The lungs are clear." \
  "Right upper lobe consolidation."; do
  prompt="${PROMPT_TEMPLATE//"{modality}"/CXR}"
  prompts+=("${prompt//"{text}"/$text}")
done

exec bash ./train.sh "${flags[@]}" --validation_prompts "${prompts[@]}" "$@"
