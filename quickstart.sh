#!/usr/bin/env bash
# The whole job on simulated scans, on any machine: simulate a clinic, fine-tune the tiny base
# pipeline of demo/base on it, draw labelled synthetic scans before and after, train a diagnosis
# classifier on the clinic's scans, evaluate, and write one page.
#
#   bash quickstart.sh                          everything, into runs/quickstart
#   OUTPUT_DIR=/data/try bash quickstart.sh     elsewhere
#   PYTHON=python3.12 bash quickstart.sh        with this interpreter
#
# A stage that has ended is not run again; after a stop, the same command goes on with the next
# one. Remove the output folder to start anew.
set -euo pipefail
cd "$(dirname "$0")"

OUTPUT_DIR="${OUTPUT_DIR:-runs/quickstart}"
MODEL_NAME="${MODEL_NAME:-demo/base}"
NUM_SCANS="${NUM_SCANS:-1200}"             # scans of the simulated clinic, two a patient
MAX_TRAIN_STEPS="${MAX_TRAIN_STEPS:-400}"
NUM_IMAGES="${NUM_IMAGES:-240}"            # synthetic scans, the same number of each finding
SEED="${SEED:-1}"
# bf16 where the CPU computes in it (about 1.6 times faster), else float32
if [ -z "${MIXED_PRECISION:-}" ]; then
  grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && MIXED_PRECISION=bf16 || MIXED_PRECISION=no
fi

source ./setup_env.sh
setup_env requirements.txt

CLINIC="$OUTPUT_DIR/clinic"
mkdir -p "$OUTPUT_DIR/logs"

# stage NAME COMMAND...: run it unless it ended before, with the same command and after the same
# stages; keep what it printed, how long it took, and that it ended. NAME is also the folder that it
# writes, which goes first where an earlier start of the stage left one.
anew=""
stage() {
  local name="$1" log="$OUTPUT_DIR/logs/$1" started
  shift
  if [ -z "$anew" ] && [ "$(cat "$log.done" 2>/dev/null)" = "$*" ]; then
    echo "[$name] done before"
    return
  fi
  anew=yes
  echo "[$name] $*"
  if [ -e "$log.started" ]; then
    rm -rf "$log.done" "${OUTPUT_DIR:?}/$name"
  fi
  started=$(date +%s)
  echo "$started" >"$log.started"
  if ! "$@" >"$log.json"; then
    echo "[$name] failed; the message is above" >&2
    exit 1
  fi
  echo "$(($(date +%s) - started))" >"$log.seconds"
  echo "$*" >"$log.done"
}

# draw NAME MODEL [DATASET N]: a class-balanced synthetic set with the captions of training images.
draw() {
  stage "$1" python generate_synthetic_dataset.py --model "$2" --offline \
    --prompts_from "${3:-$CLINIC}" --class_balanced --num_images "${4:-$NUM_IMAGES}" \
    --guidance_scale 3 --guidance_interval 0.2 0.8 --num_inference_steps 15 --seed "$SEED" \
    --output_dir "$OUTPUT_DIR/$1"
}

# judge NAME SET REAL CLASSIFIER FLAG...: scores of a synthetic set against real test images.
judge() {
  local name="$1" set="$2" real="$3" classifier="$4"
  shift 4
  stage "$name" python evaluate.py --real_dir "$real" --real_split test \
    --synthetic_dir "$OUTPUT_DIR/$set" --feature_extractor "classifier:$OUTPUT_DIR/$classifier/classifier" \
    --output_dir "$OUTPUT_DIR/$name" "$@"
}

# launch SCRIPT FLAG...: a process for each of up to four cores, each with its share of the runs.
launch() {
  local cores
  cores="$(getconf _NPROCESSORS_ONLN)"
  if ((cores == 1)); then
    python "$@"
    return
  fi
  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_machines 1 --dynamo_backend no \
    --num_processes "$((cores < 4 ? cores : 4))" --num_cpu_threads_per_process 1 \
    --main_process_port 0 --mixed_precision no "$@"
}

stage clinic python prepare_dataset.py simulate --output_dir "$CLINIC" \
  --num_images "$NUM_SCANS" --looks portable --seed "$SEED"
stage split python prepare_dataset.py split --data_dir "$CLINIC" --overwrite --seed "$SEED"
stage diagnosis python semi_supervised.py --real_dir "$CLINIC" --arms real --backbone small \
  --resolution 96 --max_epochs 12 --mixed_precision "$MIXED_PRECISION" --seed "$SEED" \
  --output_dir "$OUTPUT_DIR/diagnosis"
stage pipeline accelerate launch --num_machines 1 --num_processes 1 --dynamo_backend no \
  --num_cpu_threads_per_process "$(getconf _NPROCESSORS_ONLN)" \
  --mixed_precision "$MIXED_PRECISION" train_text_to_image.py \
  --pretrained_model_name_or_path "$MODEL_NAME" --train_data_dir "$CLINIC" --offline \
  --resolution 128 --center_crop --train_batch_size 16 --max_train_steps "$MAX_TRAIN_STEPS" \
  --learning_rate 2e-4 --lr_scheduler cosine --lr_warmup_steps 20 --use_ema --seed "$SEED" \
  --report_to none --output_dir "$OUTPUT_DIR/pipeline"
draw synthetic_before "$MODEL_NAME"
draw synthetic "$OUTPUT_DIR/pipeline"
judge evaluation_before synthetic_before "$CLINIC" diagnosis
judge evaluation synthetic "$CLINIC" diagnosis --model "$OUTPUT_DIR/pipeline" --train_dir "$CLINIC"
# few labels: what synthetic and unlabeled scans add, and what pre-training without labels adds
stage few_labels launch semi_supervised.py --real_dir "$CLINIC" \
  --synthetic_dir "$OUTPUT_DIR/synthetic" \
  --arms real real+synthetic 'synthetic->real' real+unlabeled --label_shares 1 --num_seeds 3 \
  --resolution 64 --max_train_steps 120 --early_stopping_patience 0 \
  --mixed_precision "$MIXED_PRECISION" --offline --seed "$SEED" \
  --output_dir "$OUTPUT_DIR/few_labels"
stage self_supervised launch self_supervised.py --real_dir "$CLINIC" --resolution 96 \
  --mae_width 128 --mae_depth 4 --patch_size 12 --decoder_width 64 --decoder_depth 1 \
  --pretrain_steps 500 --label_shares 5 --num_seeds 3 --batch_size 16 --max_train_steps 150 \
  --early_stopping_patience 0 --mixed_precision "$MIXED_PRECISION" --offline --seed "$SEED" \
  --output_dir "$OUTPUT_DIR/self_supervised"
# reports: what synthetic pairs of scan and report add to few real ones
stage reports launch report_generation.py --real_dir "$CLINIC" \
  --synthetic_dir "$OUTPUT_DIR/synthetic" --arms real real+synthetic --label_shares 5 \
  --resolution 96 --batch_size 16 --max_train_steps 500 \
  --early_stopping_patience 0 --mixed_precision "$MIXED_PRECISION" --show_reports --offline \
  --seed "$SEED" --output_dir "$OUTPUT_DIR/reports"
# doctors in the loop: a weak generator that learned the words from few reports; simulated doctors
# rate what it draws; a reward learned from them; a round of training by it
stage few python -m demo.hide_labels --data_dir "$CLINIC" --share 0.2 --seed "$SEED" \
  --output_dir "$OUTPUT_DIR/few"
stage forgetful python -m demo.forgetful_base --model "$MODEL_NAME" --output_dir "$OUTPUT_DIR/forgetful"
stage weak python train_text_to_image.py \
  --pretrained_model_name_or_path "$OUTPUT_DIR/forgetful" \
  --train_data_dir "$OUTPUT_DIR/few/labeled" --offline --resolution 128 --center_crop \
  --train_batch_size 8 --max_train_steps 150 --learning_rate 2e-4 --lr_scheduler cosine \
  --lr_warmup_steps 10 --mixed_precision "$MIXED_PRECISION" --seed "$SEED" --report_to none \
  --output_dir "$OUTPUT_DIR/weak"
DRAWING=(--num_inference_steps 15 --guidance_scale 3 --guidance_interval 0.2 0.8)
stage weak_drawn python generate_synthetic_dataset.py --model "$OUTPUT_DIR/weak" --offline \
  --prompts_from "$OUTPUT_DIR/few/labeled" --class_balanced --num_images 96 \
  --num_images_per_prompt 4 "${DRAWING[@]}" --seed "$SEED" --output_dir "$OUTPUT_DIR/weak_drawn"
stage second python prepare_dataset.py simulate --output_dir "$OUTPUT_DIR/second" \
  --num_images 600 --looks portable --seed "$((SEED + 1000))"
stage second_split python prepare_dataset.py split --data_dir "$OUTPUT_DIR/second" --overwrite \
  --seed "$SEED"
stage oracle python semi_supervised.py --real_dir "$OUTPUT_DIR/second" --arms real \
  --backbone small --resolution 96 --max_train_steps 150 --early_stopping_patience 0 \
  --mixed_precision "$MIXED_PRECISION" --seed "$((SEED + 1))" --output_dir "$OUTPUT_DIR/oracle"
stage study python rate_images.py create --real_dir "$OUTPUT_DIR/few/labeled" --real_split train \
  --synthetic_dir weak="$OUTPUT_DIR/weak_drawn" --num_images 48 --num_pairs 48 \
  --questions turing quality agreement preference --seed "$SEED" --output_dir "$OUTPUT_DIR/study"
stage raters python -m demo.simulated_raters --study_dir "$OUTPUT_DIR/study" \
  --classifier "$OUTPUT_DIR/oracle/classifier" --num_raters 4 --seed "$SEED"
stage ratings python rate_images.py export --study_dir "$OUTPUT_DIR/study" \
  --output_dir "$OUTPUT_DIR/ratings"
stage rating_report python rate_images.py analyze --study_dir "$OUTPUT_DIR/study" \
  --output_dir "$OUTPUT_DIR/rating_report"
stage improved python self_improve.py --mode rlhf --method reward_weighted \
  --model "$OUTPUT_DIR/weak" --real_dir "$OUTPUT_DIR/few/labeled" --ratings "$OUTPUT_DIR/ratings" \
  --classifier "$OUTPUT_DIR/few_labels/classifier" --judge "$OUTPUT_DIR/diagnosis/classifier" \
  --accept_weak_reward --train unet --num_rounds 1 --max_train_steps 120 --learning_rate 1e-4 \
  --train_batch_size 8 --num_images 96 --num_eval_images 72 --drawing_flags="${DRAWING[*]}" \
  --mixed_precision "$MIXED_PRECISION" --offline --seed "$SEED" --output_dir "$OUTPUT_DIR/improved"
# chest X-rays: the OCT model goes on with films, and keeps OCT by rehearsal
FILMS="$OUTPUT_DIR/films"
stage films python prepare_dataset.py simulate --modality CXR --output_dir "$FILMS" \
  --num_images 1200 --seed "$SEED" --findings normal cardiomegaly "left pleural effusion" \
  "right pleural effusion"
stage films_split python prepare_dataset.py split --data_dir "$FILMS" --overwrite --seed "$SEED"
stage film_diagnosis python semi_supervised.py --real_dir "$FILMS" --arms real --backbone small \
  --resolution 96 --max_train_steps 200 --early_stopping_patience 0 \
  --mixed_precision "$MIXED_PRECISION" --seed "$SEED" --output_dir "$OUTPUT_DIR/film_diagnosis"
stage transferred env MODEL_NAME="$OUTPUT_DIR/pipeline" DATASET_NAME="$FILMS" \
  REHEARSAL="$CLINIC" OUTPUT_DIR="$OUTPUT_DIR/transferred" RESOLUTION=128 LEARNING_RATE=1e-3 \
  TRAIN=unet TRAIN_BATCH_SIZE=16 GRADIENT_ACCUMULATION_STEPS=1 GRADIENT_CHECKPOINTING=no \
  MAX_TRAIN_STEPS=300 PROMPT_TEMPLATE='{modality}: {text}' REHEARSAL_SHARE=0.2 RESUME= NUM_PROCESSES=1 \
  MIXED_PRECISION="$MIXED_PRECISION" bash transfer_cxr.sh --lr_scheduler cosine \
  --lr_warmup_steps 20 --adam_beta2 0.99 --report_to none --offline --seed "$SEED"
draw films_drawn "$OUTPUT_DIR/transferred" "$FILMS" 72
draw scans_after "$OUTPUT_DIR/transferred" "$CLINIC" 60
judge film_evaluation films_drawn "$FILMS" film_diagnosis
judge scans_evaluation scans_after "$CLINIC" diagnosis
stage report python -m demo.quickstart_report --run_dir "$OUTPUT_DIR"

echo "The page: $OUTPUT_DIR/report.html"
