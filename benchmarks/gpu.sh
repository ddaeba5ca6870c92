#!/usr/bin/env bash
# Times and memory of a training step, and agreement of fp32 and bf16, on a machine with a GPU:
#   benchmarks/gpu.sh [folder for the JSON files]
# Installs nothing: run it where the package is installed; PYTHON names another interpreter.
set -euo pipefail
PYTHON=${PYTHON:-python}
OUT=$(realpath -m "${1:-gpu_steps}")  # of where the caller is
cd "$(dirname "$0")/.."

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "benchmarks/gpu.sh: torch.cuda.is_available() is false for '$PYTHON': no GPU, or PyTorch without CUDA" >&2
    exit 1
fi
mkdir -p "$OUT"
"$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())'
while read -r backbone size batch; do
    "$PYTHON" benchmarks/steps.py --device cuda --backbone "$backbone" --input-size "$size" --batch "$batch" \
        --ways "all blocks" --json "$OUT/${backbone}_$size.json"
    "$PYTHON" benchmarks/agreement.py --device cuda --backbone "$backbone" --input-size "$size"
done <<'SETTINGS'
vit_t 256 4
vit_b 256 4
vit_b 1024 1
SETTINGS
