#!/bin/bash
# The participant level as an array job of SLURM, one task a participant:
#
#   sbatch --array=1-$(ls -d BIDS_DIR/sub-*/ | wc -l) slurm-array.sh BIDS_DIR OUTPUT_DIR [OPTIONS]
#
# OPTIONS go to mri2pet. SIF names the container, mri2pet.sif here unless it is set; or COMMAND says
# how to start an installed mri2pet. A task that was killed goes on when it is submitted again.
#SBATCH --job-name=mri2pet
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=02:00:00
#SBATCH --output=mri2pet-%A_%a.log
set -euo pipefail

bids=$(realpath "$1")
out=$(realpath "$2")
shift 2
participants=("$bids"/sub-*/)
label=$(basename "${participants[SLURM_ARRAY_TASK_ID - 1]}")
work=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/mri2pet-$SLURM_JOB_ID # on the disk of the node
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
given=(participant --participant-label "$label" --nprocs "${SLURM_CPUS_PER_TASK:-1}" "$@")

if [ -n "${COMMAND:-}" ]; then
    $COMMAND "$bids" "$out" "${given[@]}" -w "$work"
else
    apptainer run --cleanenv --containall --no-home \
        -B "$bids:/bids:ro" -B "$out:/out" -B "$work:/work" \
        "${SIF:-mri2pet.sif}" /bids /out "${given[@]}" -w /work
fi
