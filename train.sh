#!/usr/bin/env bash
# Fine-tune Stable Diffusion on one machine or several; every setting can come from the environment:
#
#   DATASET_NAME=data/oct bash train.sh
#   DATASET_NAME=reports.csv CUDA_VISIBLE_DEVICES=0,1 bash train.sh --max_train_steps=2000
#
#   # on each of two machines, which share the folder of OUTPUT_DIR; MACHINE_RANK is 0 on the first
#   NUM_MACHINES=2 MACHINE_RANK=0 MAIN_PROCESS_IP=10.0.0.1 bash train.sh
#
# DATASET_NAME is a dataset folder, a folder of class folders, a CSV or tar shards. Flags given
# here come last and win; python train_text_to_image.py --help lists them. SIGTERM and Ctrl-C reach
# the trainer, which saves before it ends. docs/scaling.md tells which settings suit which machines.
set -euo pipefail
cd "$(dirname "$0")"

MODEL_NAME="${MODEL_NAME:-CompVis/stable-diffusion-v1-4}"
DATASET_NAME="${DATASET_NAME:-data/oct}"
OUTPUT_DIR="${OUTPUT_DIR:-runs/oct-sd}"
CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-}" # empty: all
MIXED_PRECISION="${MIXED_PRECISION:-bf16}"       # fp16 on cards before Ampere
TRAIN_BATCH_SIZE="${TRAIN_BATCH_SIZE:-16}"       # images per GPU and pass
GRADIENT_ACCUMULATION_STEPS="${GRADIENT_ACCUMULATION_STEPS:-4}"
GRADIENT_CHECKPOINTING="${GRADIENT_CHECKPOINTING:-yes}" # no: faster, more memory
MAX_TRAIN_STEPS="${MAX_TRAIN_STEPS:-5000}"
RESUME="${RESUME:-}"                       # latest, a checkpoint, or auto: latest once there is one
ACCELERATE_CONFIG="${ACCELERATE_CONFIG:-}" # e.g. configs/fsdp.yaml; empty: none
NUM_MACHINES="${NUM_MACHINES:-1}"
MACHINE_RANK="${MACHINE_RANK:-0}"                 # 0 on the main machine, 1 on the next, ...
MAIN_PROCESS_IP="${MAIN_PROCESS_IP:-}"            # address or name of the main machine
MAIN_PROCESS_PORT="${MAIN_PROCESS_PORT:-}"        # a port free on it; empty: 29500
SAVE_TIMEOUT_SECONDS="${SAVE_TIMEOUT_SECONDS:-600}" # for the checkpoint at SIGTERM

refuse() {
  echo "train.sh: $1" >&2
  exit 2
}

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
NUM_PROCESSES="${NUM_PROCESSES:-$((num_gpus > 0 ? num_gpus : 1))}" # on this machine
for name in NUM_PROCESSES NUM_MACHINES; do
  [[ "${!name}" =~ ^[1-9][0-9]*$ ]] || refuse "$name=${!name} is not a count"
done
if [[ ! "$MACHINE_RANK" =~ ^[0-9]+$ ]] || ((MACHINE_RANK >= NUM_MACHINES)); then
  refuse "MACHINE_RANK=$MACHINE_RANK is none of 0 to NUM_MACHINES - 1 = $((NUM_MACHINES - 1))"
fi
if ((NUM_MACHINES > 1)) && [[ -z "$MAIN_PROCESS_IP" ]]; then
  refuse "NUM_MACHINES=$NUM_MACHINES needs MAIN_PROCESS_IP, the address of the main machine"
fi
flags=(--use_ema --resolution=512 --center_crop)
case "$GRADIENT_CHECKPOINTING" in
  yes) flags+=(--gradient_checkpointing) ;;
  no) ;;
  *) refuse "GRADIENT_CHECKPOINTING=$GRADIENT_CHECKPOINTING is neither yes nor no" ;;
esac
if [[ -n "$CUDA_VISIBLE_DEVICES" ]]; then
  export CUDA_VISIBLE_DEVICES
else
  unset CUDA_VISIBLE_DEVICES
fi

# accelerate counts the processes of all machines, and wants as many on each
total=$((NUM_PROCESSES * NUM_MACHINES))
launch=(--num_processes "$total" --num_machines "$NUM_MACHINES")
launch+=(--mixed_precision "$MIXED_PRECISION")
if ((NUM_MACHINES > 1)); then
  launch+=(--machine_rank "$MACHINE_RANK" --main_process_ip "$MAIN_PROCESS_IP")
fi
if ((NUM_MACHINES > 1)) || [[ -n "$MAIN_PROCESS_PORT" ]]; then
  launch+=(--main_process_port "${MAIN_PROCESS_PORT:-29500}")
fi
if [[ -n "$ACCELERATE_CONFIG" ]]; then
  launch+=(--config_file "$ACCELERATE_CONFIG")
else
  launch+=(--dynamo_backend no)
  # --cpu starts one process only, whatever their number; --multi_gpu starts them all, and they
  # train together on CPUs too (gloo) where this variable says so.
  if ((num_gpus == 0)); then
    export ACCELERATE_USE_CPU=true
  fi
  if ((total > 1)); then
    launch+=(--multi_gpu)
  elif ((num_gpus == 0)); then
    launch+=(--cpu)
  fi
fi
if ((num_gpus == 0)); then # accelerate gives one thread to each process
  threads=$(($(getconf _NPROCESSORS_ONLN) / NUM_PROCESSES))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
fi

if [[ "$RESUME" == auto ]]; then
  RESUME=""
  if compgen -G "$OUTPUT_DIR/checkpoint-*" >/dev/null; then RESUME=latest; fi
fi
if [[ -n "$RESUME" ]]; then
  flags+=(--resume_from_checkpoint="$RESUME")
fi

if [[ -z "${VIRTUAL_ENV:-}" && -d .venv/bin ]]; then
  PATH="$PWD/.venv/bin:$PATH"
fi

# At SIGTERM accelerate's launcher of one process would leave it alone, and that of several kill
# them after 30 s. So the launchers wait, and the trainer is told.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$SAVE_TIMEOUT_SECONDS"
(
  trap '' INT TERM
  exec accelerate launch "${launch[@]}" train_text_to_image.py \
    --pretrained_model_name_or_path="$MODEL_NAME" \
    --train_data_dir="$DATASET_NAME" \
    "${flags[@]}" \
    --train_batch_size="$TRAIN_BATCH_SIZE" \
    --gradient_accumulation_steps="$GRADIENT_ACCUMULATION_STEPS" \
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
) &
launcher=$!

# shellcheck disable=SC2329 # the trap calls it
end_training() {
  # Without a trainer to tell, the launcher itself goes; without one of these, all is done.
  pkill -TERM -P "$launcher" || kill -KILL "$launcher" || true
}
trap end_training INT TERM

status=0
wait "$launcher" || status=$?
while kill -0 "$launcher" 2>/dev/null; do # a trap ends wait before its time
  status=0
  wait "$launcher" || status=$?
done
exit "$status"
