#!/usr/bin/env bash
# Four arms from one weak start: the start, SFT on harvested traces, RL, and SFT then RL.
#
#   launch/four_arms.sh            all of it, about five minutes on two cores
#   launch/four_arms.sh FOLDER     the runs go there instead of runs/four_arms
#
#   1. start    a short supervised warm-up, which leaves the model weak.
#   2. rates    the start answers 4,000 sums four times each: their pass rates.
#   3. rl       RL from the start, in three stages (configs/four_arms.toml).
#   4. sft      the right answers of that run, harvested, are what the start learns from.
#   5. sft_rl   RL again, from there.
#   6. All four answer the same held-out sums; intervals count a problem once.
#
# Stopped at any point, the same command goes on where it was.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
launch/env.sh
runs=${1:-runs/four_arms}
config=configs/four_arms.toml
run=.venv/bin/magistral-jax
mkdir -p "$runs"

# Goes on with a run that has begun, and passes over one that is done.
arm() {
    local command=$1 folder=$2 resume=()
    shift 2
    [ -e "$folder/summary.json" ] && return
    [ -e "$folder/metrics.jsonl" ] && resume=(--resume)
    "$run" "$command" "$config" --run-dir "$folder" "${resume[@]}" "$@"
}

rated="$runs/rated.jsonl"
plain=(--warmup.steps 0 --data.path "$rated")

arm train "$runs/start" --trainer.steps 0
if [ ! -e "$runs/rated.done" ]; then
    .venv/bin/python - "$runs/sums.jsonl" <<'PY'
import sys
from magistral_jax.data.sources import Sums
import json
sums, rows = Sums(3), []
for i in range(4000):
    p = sums[i * 7919 % len(sums)]
    rows.append({"id": p.id, "problem": p.question, "answer": p.answer, "domain": "math",
                 "language": "en", "source": p.source})
open(sys.argv[1], "w").write("".join(json.dumps(row) + "\n" for row in rows))
PY
    "$run" traces generate "$runs/sums.jsonl" --config "$config" --run-dir "$runs/start" --n 4 \
        --warmup.steps 0 --out "$runs/guesses.jsonl" --rates "$rated"
    touch "$runs/rated.done"
fi
arm train "$runs/rl" --model.start "$runs/start" "${plain[@]}"
if [ ! -e "$runs/traces.jsonl" ]; then
    "$run" traces harvest "$runs/rl" --out "$runs/traces.jsonl"
fi
arm sft "$runs/sft" --model.start "$runs/start" --sft.path "$runs/traces.jsonl" "${plain[@]}"
arm train "$runs/sft_rl" --model.start "$runs/sft" "${plain[@]}"

for name in start sft rl sft_rl; do
    "$run" eval "$config" --run-dir "$runs/$name" "${plain[@]}" --generator.max_tokens 64 \
        --json "$runs/$name.json" >/dev/null
done
.venv/bin/python - "$runs" <<'PY'
import json, sys
from pathlib import Path
runs = Path(sys.argv[1])
print(f"{'arm':8} {'accuracy':>8}  95% interval      length  stages begun after update (why)")
for name in ("start", "sft", "rl", "sft_rl"):
    found = json.loads((runs / f"{name}.json").read_text())
    row = found["rows"][0]
    stages = runs / name / "stages.jsonl"
    begun = [json.loads(line) for line in stages.read_text().splitlines()] if stages.exists() else []
    told = "; ".join(f"{s['step']} ({s['reason'].split(':')[0]})" for s in begun)
    print(f"{name:8} {row['pass@1']:8.3f}  [{row['95% low']:.3f}, {row['95% high']:.3f}]  "
          f"{row['length']:10.1f}  {told}")
PY
