#!/usr/bin/env bash
# Check everything that is computed on a GPU, in about 10 minutes: tests, rates, and a training whose
# generator is exported and used. Run it in a clone, on a machine with a GPU and a torch with CUDA:
#
#     benchmarks/gpu_session.sh WORK [MINUTES_OF_TRAINING]
#
# The log is written to WORK/gpu.txt. Results are reported in docs/results/gpu.md.
set -euo pipefail
work=$(mkdir -p "$1" && cd "$1" && pwd)
minutes=${2:-4}
bin=${BIN:-.venv/bin}
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
exec > >(tee "$work/gpu.txt") 2>&1

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "machine"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
"$bin/python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda); assert torch.cuda.is_available()'

step "tests that need a GPU"
"$bin/python" -m pytest -q -m gpu --ignore tests/containers tests

step "rates of each network"
timeout 150 "$bin/python" benchmarks/devices.py cuda:0 --steps 20 || echo "stopped after 150 s"

step "a cohort on the 2 mm grid"
"$bin/mri2pet-simulate" "$work/bids" --paired 12 --t1w-only 2 --resolution 2 --seed 1
"$bin/mri2pet" "$work/bids" "$work/out" participant --sloppy --resolution 2 --stage preprocess --skip-bids-validation

step "training, $minutes minutes at most; resumes where it was stopped"
status=0
timeout --signal INT "${minutes}m" "$bin/mri2pet" "$work/bids" "$work/out" train --resolution 2 \
    --models tissue semi3d-gan-mse --condition tissue --folds 2 --epochs 40 --device cuda:0 \
    --skip-bids-validation || status=$?
echo "exit code $status"

step "synthesis with the exported generators"
for generator in "$work"/out/generators/*/; do
    "$bin/mri2pet" "$work/bids" "$work/out" participant --sloppy --resolution 2 --stage synthesize \
        --generator "$generator" --device cuda:0 --skip-bids-validation
done
column -t -s $'\t' "$work/out/table1.tsv" | cut -c1-160 || true
step "done"
