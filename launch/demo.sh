#!/usr/bin/env bash
# Magistral in miniature, on this computer's processor: no accelerator, no download but packages.
#
#   launch/demo.sh                           the whole run
#   launch/demo.sh --trainer.steps 5         any field of configs/demo.toml, by its dotted name
#
# What happens, in order:
#   1. The first time, launch/env.sh makes .venv from pinned versions.
#   2. A small network, from scratch, sees solved sums until it can answer in the format the
#      verifier asks for, and is often wrong. It answers held-out sums: the accuracy before.
#   3. Reinforcement learning. The generator answers each sum several times, the verifier judges,
#      the batch turns rewards into advantages, the trainer learns and sends new weights to the
#      generator, which takes them between two tokens. One line per step: watch the reward rise.
#   4. Held-out sums again: the accuracy after.
#
# Where to look afterwards: the folder runs/demo, which holds the numbers of every step, some
# whole transcripts, TensorBoard events, and the checkpoints from which a run that was stopped
# goes on. The README says what each file is.
set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
bash "$root/launch/env.sh"

# From the project's folder, so that runs/demo is there wherever this was called from.
cd "$root"

# Run again, it begins anew, beside the finished run; a run that was stopped goes on instead.
if [ -e runs/demo/summary.json ]; then
    mv runs/demo "runs/demo-$(date +%Y%m%d-%H%M%S)"
elif ls runs/demo/checkpoints/[0-9]* >/dev/null 2>&1; then
    set -- --resume "$@"
fi
exec .venv/bin/magistral-jax train configs/demo.toml "$@"
