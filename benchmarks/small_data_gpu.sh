#!/usr/bin/env bash
# Runs the experiment of benchmarks/small_data on a machine with a GPU that is lent for minutes, without a network.
#
#   benchmarks/small_data_gpu.sh --collect [FOLDER]      here: pack data, ImageNet weights and wheels into FOLDER/.carry
#                                                        (at most 60 MB; FOLDER: the repository)
#   benchmarks/small_data_gpu.sh OUT SECONDS [OPTION...] there: train for SECONDS; options of python -m benchmarks.small_data
#
# OUT gets the lines of results, a log, and from longer runs the models and one archive of overlays.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
NEEDED="attrs docstring_parser hotcoco jaxtyping safetensors tomlkit wadler_lindig" # by the library, without the command line

if [ "${1:-}" = --collect ]; then
  folder=${2:-$PWD}
  export PYTHONPATH="$PWD/src"
  mkdir -p "$folder/.carry"
  for name in nuclei coco_mini_kp plants weights; do
    "$PYTHON" -m benchmarks.small_data.carry "$name" "$folder/.carry" || exit 1
  done
  rm -rf "$folder/.carry/wheels"
  mkdir "$folder/.carry/wheels"
  for name in $NEEDED; do
    cp "${WHEELS:-.wheels}/$name"-*.whl "$folder/.carry/wheels/" || echo "no wheel of $name: run benchmarks/gpu_check.sh --collect"
  done
  size=$(find "$folder/.carry" -type f -printf '%s\n' | awk '{bytes += $1} END {print int(bytes / 1e6)}')
  echo ".carry: $size MB"
  [ "$size" -le 60 ] || { echo "more than 60 MB" >&2; exit 1; }
  exit 0
fi

START=$(date +%s)
OUT=$1
SECONDS_IN_ALL=$2
shift 2
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
RUNS=${RUNS:-/tmp/small_data_runs}
mkdir -p "$RUNS/data" "$RUNS/site"

# A module that the machine has is left alone.
if [ ! -e "$RUNS/installed" ]; then
  missing=$("$PYTHON" - .carry/wheels/*.whl <<'PY'
import importlib.util
import sys
from pathlib import Path

modules = {"attrs": "attr", "python_dateutil": "dateutil"}
for wheel in sys.argv[1:]:
    name = Path(wheel).name.split("-")[0]
    if Path(wheel).exists() and importlib.util.find_spec(modules.get(name, name)) is None:
        print(wheel)
PY
  )
  # shellcheck disable=SC2086
  [ -z "$missing" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$RUNS/site" $missing || exit 1
  touch "$RUNS/installed"
fi
for set in nuclei coco_mini_kp plants; do
  [ -d ".carry/$set" ] && ln -sfn "$PWD/.carry/$set" "$RUNS/data/$set"
done
export PYTHONPATH="$PWD/src:$PWD/.carry/site:$RUNS/site" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1
export XDG_CACHE_HOME="$RUNS/cache"

workers=$(env -u OMP_NUM_THREADS nproc)
device=cpu
sampler=""
if "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  device=cuda
  nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv,noheader -l 5 >"$OUT/gpu.csv" 2>/dev/null &
  sampler=$!
fi
results="$OUT/small_steps.jsonl"
[ -e "$results" ] || cp "$RUNS/small_steps.jsonl" "$results" 2>/dev/null || cp benchmarks/results/small_steps.jsonl "$results" 2>/dev/null
until=$((SECONDS_IN_ALL - $(date +%s) + START - 25)) # the last measurements take up to 25 seconds
{
  nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null || echo "no GPU"
  echo "device $device, $workers cores, $until s of training, options: $*"
} | tee -a "$OUT/log.txt"
timeout --kill-after=5 $((until + 40)) "$PYTHON" -m benchmarks.small_data --device "$device" --workers "$workers" \
  --data "$RUNS/data" --out "$RUNS" --results "$results" --until "$until" "$@" 2>&1 | tee -a "$OUT/log.txt" | tail -n 60
status=${PIPESTATUS[0]}

[ -z "$sampler" ] || kill "$sampler"
cp "$results" "$RUNS/small_steps.jsonl" 2>/dev/null
cp "$RUNS"/front-*.safetensors "$OUT/" 2>/dev/null
(cd "$RUNS" && tar -czf "$OUT/overlays_and_recipes.tar.gz" ./front-*.jpg ./*.txt ./*.images.json 2>/dev/null)
echo "exit status $status, $(($(date +%s) - START)) s, $(grep -c '"final": true' "$results" 2>/dev/null) finished runs" | tee -a "$OUT/log.txt"
exit "$status"
