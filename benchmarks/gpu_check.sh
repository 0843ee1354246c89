#!/usr/bin/env bash
# Checks the package on a machine with a GPU, within 8 minutes and without a network.
#
#   benchmarks/gpu_check.sh --collect [PYTHON]   here: fetch the wheels that such a machine lacks into .wheels/ (PYTHON: 3.12)
#   benchmarks/gpu_check.sh [OUT]                there: run everything, write at most 8 files into OUT (default: gpu_check)
#
# The machine needs Python, torch >= 2.11, torchvision >= 0.26, timm and pytest. What else is missing
# is installed from .wheels/ into a temporary folder. Without a GPU the same steps run small, as a rehearsal.
set -u
cd "$(dirname "$0")/.."
WHEELS=${WHEELS:-.wheels}
NEEDED="cyclopts docstring-parser rich-rst docutils hotcoco beartype pycocotools safetensors jaxtyping wadler-lindig hypothesis sortedcontainers"

if [ "${1:-}" = --collect ]; then
  version=${2:-3.12}
  mkdir -p "$WHEELS"
  platforms=""
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_5 manylinux1; do
    platforms="$platforms --platform ${tag}_x86_64"
  done
  # shellcheck disable=SC2086
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
    --implementation cp $platforms --platform any --dest "$WHEELS" $NEEDED || exit 1
  size=$(du -sm "$WHEELS" | cut -f1)
  echo "$WHEELS holds $(ls "$WHEELS" | wc -l) wheels, $size MB"
  [ "$size" -le 60 ] || { echo "more than 60 MB" >&2; exit 1; }
  exit 0
fi

OUT=${1:-gpu_check}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
START=$(date +%s)
LIMIT=${GPU_CHECK_SECONDS:-480}
PYTHON=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

# A module that the machine has is left alone; another version of it could break what was built against it.
missing=""
for wheel in "$WHEELS"/*.whl; do
  name=$(basename "$wheel" | cut -d- -f1)
  module=$(echo "$name" | sed 's/^attrs$/attr/')
  "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$module') is None)" || missing="$missing $wheel"
done
# shellcheck disable=SC2086
[ -z "$missing" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" $missing || exit 1
export PYTHONPATH="$PWD/src:$site" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

left() { echo $((LIMIT - $(date +%s) + START)); }
failed=0
step() { # step NAME SECONDS COMMAND...: runs a command within a time and within what is left of the whole
  local name=$1 most=$2 seconds status
  shift 2
  seconds=$(left)
  [ "$seconds" -lt "$most" ] || seconds=$most
  if [ "$seconds" -lt 10 ]; then
    echo "$name: skipped, no time left" | tee -a "$OUT/summary.txt"
    failed=1
    return
  fi
  local begin
  begin=$(date +%s)
  timeout --kill-after=5 "$seconds" "$@" >"$OUT/$name.txt" 2>&1
  status=$?
  echo "$name: exit status $status, $(($(date +%s) - begin)) s" | tee -a "$OUT/summary.txt"
  tail -n 4 "$OUT/$name.txt"
  [ "$status" -eq 0 ] || failed=1
}

: >"$OUT/summary.txt"
{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
  "$PYTHON" -c "import platform, torch, torchvision, timm; print('python', platform.python_version(), 'torch', torch.__version__, 'torchvision', torchvision.__version__, 'timm', timm.__version__, 'CUDA', torch.cuda.is_available())"
  git log -1 --format='commit %h %s' 2>/dev/null
} >>"$OUT/summary.txt"
cat "$OUT/summary.txt"

workers=$(nproc)
[ "$workers" -le 12 ] || workers=12
step tests_gpu 90 "$PYTHON" -m pytest -q -rs tests/test_gpu.py
step benchmark 240 "$PYTHON" -m benchmarks gpu --out "$OUT/benchmark.json"
step training 150 "$PYTHON" -m benchmarks.gpu_training "$OUT/training.json"
step tests_all 240 env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q --processes "$workers"
echo "total: $(($(date +%s) - START)) s" | tee -a "$OUT/summary.txt"
exit $failed
