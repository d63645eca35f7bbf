#!/usr/bin/env bash
# Several processes of one run on this machine, as on several hosts. See launch/local_processes.sh --help.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'END'
launch/local_processes.sh [OPTIONS] COMMAND...

Runs the command in several processes at once, each with --coordinator=127.0.0.1:PORT --processes=N --process=I appended:
  launch/local_processes.sh --processes=2 --devices=4 python -m electra_jax.main --config=configs/tiny.py --workdir=runs/two

  --processes=2   number of processes
  --devices=4     CPU devices in each; 0: the machine's devices
  --port=PORT     port of the coordinator; default: a free one
  --grace=120     seconds that the others have to exit when one fails; then they get SIGTERM, and SIGKILL 5 s later
  --dry-run       print the commands without running them

Output lines begin with the process's number. Signals are forwarded. The exit status is that of a crash, if any, else 43
(another process was lost), else 42 (preempted), else 0.
END
}

processes=2 devices=4 port='' grace=120
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    -*) wrong "'$1' is not an option" ;;
    *) break ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ && $devices =~ ^[0-9]+$ && $grace =~ ^[0-9]+$ && $port =~ ^[0-9]*$ ]] ||
  wrong '--processes, --devices, --grace and --port must be integers'
(($#)) || wrong 'the command to run is missing'

# A free port below the range that the system assigns.
given=$port
taken() { (exec 4<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; }
while [[ -z $port ]] || { [[ -z $given ]] && taken; }; do
  port=$((20000 + RANDOM % 10000))
done
environment=(env)
if ((devices)); then environment+=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"); fi

scratch=$(mktemp -d)
pids=() readers=() statuses=() left=0
end() { # SIGNAL: to the processes that still run
  local i
  for ((i = 0; i < ${#pids[@]}; i++)); do
    [[ -z ${pids[i]} ]] || kill -"$1" -- "${2-}${pids[i]}" 2> /dev/null || true
  done
}
trap 'end KILL -; rm -rf "$scratch"' EXIT
trap 'end INT' INT
trap 'end TERM' TERM

prefixed() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

set -m # each process in its own group: Ctrl-C reaches it once, through the trap, together with its children
for ((i = 0; i < processes; i++)); do
  command=("${environment[@]}" "$@" --coordinator=127.0.0.1:"$port" --processes="$processes" --process="$i")
  if ((dry_run)); then quoted "${command[@]}" && continue; fi
  mkfifo "$scratch/$i"
  prefixed "$i" < "$scratch/$i" &
  readers+=("$!")
  "${command[@]}" > "$scratch/$i" 2>&1 3>&- &
  pids+=("$!")
done
set +m
if ((dry_run)); then exit; fi

left=$processes failed_at='' asked=0
while ((left)); do
  for ((i = 0; i < processes; i++)); do
    if [[ -z ${pids[i]} ]] || kill -0 "${pids[i]}" 2> /dev/null; then continue; fi
    status=0
    wait "${pids[i]}" 2> /dev/null || status=$?
    statuses+=("$status") # in the order of their ends, so that a crash precedes its consequences
    pids[i]='' left=$((left - 1))
    if ((status)); then
      note "process $i exited with status $status"
      failed_at=${failed_at:-$SECONDS}
    fi
  done
  if [[ -n $failed_at ]] && ((left)); then
    if ((SECONDS >= failed_at + grace + 5)); then
      end KILL -
    elif ((SECONDS >= failed_at + grace && !asked)); then
      asked=1
      end TERM
    fi
  fi
  sleep 0.1
done
# A child may still hold the output; wait for the readers only briefly.
for ((i = 0; i < 20; i++)); do
  kill -0 "${readers[@]}" 2> /dev/null || break
  sleep 0.1
done
kill "${readers[@]}" 2> /dev/null || true
exit "$(worst "${statuses[@]}")"
