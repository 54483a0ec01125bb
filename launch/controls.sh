#!/usr/bin/env bash
# The demo's control arms: does the gain come from the rewards?
#
#   launch/controls.sh
#
# Arm 1, learning rate 0: everything runs, nothing is learned.
# Arm 2, rewards permuted within each group: the same batches, updates and reward statistics, but a
# reward no longer says which completion earned it.
#
# Both start from the same warm-up as launch/demo.sh (same seed) and should gain less than 0.05.
# About 3 minutes each on two cores. Results: runs/control_frozen and runs/control_permuted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

launch/env.sh
rm -rf runs/control_frozen runs/control_permuted
.venv/bin/magistral-jax train configs/demo.toml --trainer.learning_rate 0 \
  --run-dir runs/control_frozen "$@"
.venv/bin/magistral-jax train configs/demo.toml --batch.control permute_rewards \
  --run-dir runs/control_permuted "$@"
for arm in control_frozen control_permuted; do
  echo "$arm: $(grep -E '"accuracy_(before|after)"' "runs/$arm/summary.json" | tr -d '\n')"
done
