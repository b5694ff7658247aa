#!/bin/bash
# The participant level as an array job of SLURM, one task a participant:
#
#   sbatch --array=1-$(ls -d BIDS_DIR/sub-*/ | wc -l) slurm-array.sh BIDS_DIR OUTPUT_DIR [OPTIONS]
#
# OPTIONS go to mri2pet. SIF names the container, mri2pet.sif here unless it is set; or COMMAND says
# how to start an installed mri2pet. WORK names a folder for what is kept in between, one for each
# OUTPUT_DIR, which has it in OUTPUT_DIR/.work otherwise; what is done with is deleted. A task that
# was killed goes on when it is submitted again: on any node that has the same WORK.
#SBATCH --job-name=mri2pet
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=02:00:00
#SBATCH --output=mri2pet-%A_%a.log
set -euo pipefail

mkdir -p "$2" ${WORK:+"$WORK"} # what is bound has to be there
bids=$(realpath "$1")
out=$(realpath "$2")
shift 2
participants=("$bids"/sub-*/)
label=$(basename "${participants[SLURM_ARRAY_TASK_ID - 1]}")
cpus=${SLURM_CPUS_PER_TASK:-1}
given=(participant --participant-label "$label" --clean-workdir --nprocs "$cpus")

# A container that is shut off does not see what SLURM grants. Nine tenths of it, as mri2pet takes
# by itself: the rest is for what nobody counts.
granted=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * cpus))} # MiB
if [ "$granted" -gt 0 ]; then
    tenths=$((granted * 9 / 1024)) # of a GiB
    given+=(--mem-gb "$((tenths / 10)).$((tenths % 10))")
fi
given+=("$@")

if [ -n "${COMMAND:-}" ]; then
    $COMMAND "$bids" "$out" "${given[@]}" ${WORK:+-w "$WORK"}
else
    apptainer run --cleanenv --containall --no-home \
        -B "$bids:/bids:ro" -B "$out:/out" ${WORK:+-B "$(realpath "$WORK"):/work"} \
        "${SIF:-mri2pet.sif}" /bids /out "${given[@]}" ${WORK:+-w /work}
fi
