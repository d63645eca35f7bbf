#!/usr/bin/env bash
# One process with many CPU devices, to try a mesh without accelerators.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'END'
launch/local_devices.sh [--dry-run] N COMMAND...

Runs the command with N CPU devices in its process:
  launch/local_devices.sh 8 python -m electra_jax.main --config=configs/tiny.py:steps=20,warmup=5
END
}

case ${1-} in
  -h | --help) usage && exit ;;
  --dry-run) dry_run=1 && shift ;;
esac
[[ ${1-} =~ ^[1-9][0-9]*$ ]] || wrong "the first argument is '${1-}'; expected the number of devices"
(($# > 1)) || wrong 'the command to run is missing'
devices=$1
shift
run exec env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices" "$@"
