#!/usr/bin/env bash
# Several processes of one run on this machine, as on several hosts. launch/local_processes.sh --help says how.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat << 'END'
launch/local_processes.sh [OPTIONS] COMMAND...

Runs the command several times side by side, each with --coordinator=127.0.0.1:PORT --processes=N --process=I at its end:
  launch/local_processes.sh --processes=2 --devices=4 python -m electra_jax.main --config=configs/tiny.py --workdir=runs/two

  --processes=2   how many
  --devices=4     CPU devices in each; 0 leaves the devices as they are
  --port=PORT     the coordinator's; a free one unless told
  --grace=120     seconds that the others have to end by themselves when one fails; then they are asked to, and 5 s later ended
  --dry-run       print the commands and run none

Output lines begin with the process's number. Signals are passed on. The exit status is the one that tells most: that of a
crash, before 43 (another process was lost), before 42 (preempted), before 0.
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
    -*) wrong "there is no option '$1'" ;;
    *) break ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ && $devices =~ ^[0-9]+$ && $grace =~ ^[0-9]+$ && $port =~ ^[0-9]*$ ]] ||
  wrong '--processes, --devices, --grace and --port are whole numbers'
(($#)) || wrong 'there is no command to run'

# A free one below those that the system gives out by itself.
given=$port
taken() { (exec 4<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; }
while [[ -z $port ]] || { [[ -z $given ]] && taken; }; do
  port=$((20000 + RANDOM % 10000))
done
environment=(env)
if ((devices)); then environment+=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"); fi

scratch=$(mktemp -d)
pids=() readers=() statuses=() left=0
end() { # SIGNAL: to those that still run
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

set -m # each process in a group of its own: Ctrl-C reaches it once, through the trap, and what it started ends with it
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
    statuses+=("$status") # in the order of their ends, so that a crash comes before what it led to
    pids[i]='' left=$((left - 1))
    if ((status)); then
      say "process $i left with exit status $status"
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
# What a process started may still hold its output; the readers get a moment and no more.
for ((i = 0; i < 20; i++)); do
  kill -0 "${readers[@]}" 2> /dev/null || break
  sleep 0.1
done
kill "${readers[@]}" 2> /dev/null || true
exit "$(worst "${statuses[@]}")"
