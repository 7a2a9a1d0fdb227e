#!/usr/bin/env bash
# Train a small network and deploy it: to this machine, and to the emulated Arm machine where that is set up.
# examples/demo.sh FOLDER; the variables EDGEQ and PYTHON name the programs.
set -euo pipefail

folder=$1
edgeq=${EDGEQ:-edgeq}
python=${PYTHON:-python3}
examples=$(cd "$(dirname "$0")" && pwd)

show() {
    printf '\n$ %s\n' "${*/#"$edgeq"/edgeq}"
    "$@"
}

"$python" "$examples/digits.py" "$folder"

# The target that describes this machine: a CPU without VNNI adds up products of 8-bit weights in too few bits.
here=(--target x86-avx512)
grep -q vnni /proc/cpuinfo || here=(--target x86-avx2 --device local)

# Integers are not faster on every CPU: without VNNI or its like a network may gain nothing from them.
# --allow-slower lets such an outcome pass, and the report then says so. For a network of yours leave it out.
show "$edgeq" deploy "$folder/model.pt" "${here[@]}" --format all \
    --calib "$folder/calib.npz" --eval "$folder/eval.npz" \
    --max-drop 1% --allow-slower --overwrite --out "$folder/this-machine"

ready='import json, sys; sys.exit(not any(d["name"] == "arm64" and d["ready"] for d in json.load(sys.stdin)["devices"]))'
if "$edgeq" device list --json 2>/dev/null | "$python" -c "$ready"; then
    show "$edgeq" deploy "$folder/model.pt" --target arm-neon --format tflite \
        --calib "$folder/calib.npz" --eval "$folder/eval.npz" \
        --max-drop 1% --overwrite --out "$folder/arm-neon"
else
    printf '\n%s\n' "skipped: arm-neon, since the emulated Arm machine is not set up. To set it up (Debian, network):"
    printf '%s\n' "  $edgeq device setup arm64"
fi
