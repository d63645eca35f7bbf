#!/usr/bin/env bash
# launch/tpu.sh runs this on each TPU VM, from the tree that it unpacked in ~/electra_jax.
#
#   setup EXTRAS                           packages, from the locks of EXTRAS (tpu,gcs); prints "ready HOST"
#   start ID [NAME=VALUE ...] -- ARGUMENTS the trainer, independent of this connection
#   state                                  prints "job HOST ID none|running|exited|lost STATUS STEP"
#   log ID OFFSET                          prints "log NEW_OFFSET", then the new part of the log
#   tail LINES [STATUS]                    the end of the log and the exit reason, if the job exited with STATUS
#   stop [SECONDS]                         asks the job to save and exit, and kills it after SECONDS
#   idle                                   true if no job runs
set -euo pipefail
tree=$HOME/electra_jax
venv=$HOME/electra_jax_venv
job=$HOME/electra_jax_job
# shellcheck source=launch/common.sh
source "$tree/launch/common.sh"

apt_install() {
  for _ in 1 2 3 4 5; do
    if sudo apt-get -qq -o DPkg::Lock::Timeout=300 update &&
      sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install "$@"; then
      return
    fi
    sleep 10
  done
  fail "apt-get could not install $*; another process may hold its lock: see 'ps aux | grep apt'."
}

# The TPU images are Ubuntu 22.04 with Python 3.10, and 3.11 to 3.13 is required. If there is none, uv installs one: without
# root or apt, the same on every worker.
find_python() {
  local candidate
  for candidate in python3.12 python3.13 python3.11 python3; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2> /dev/null; then
      command -v "$candidate"
      return
    fi
  done
  python3 -m pip --version > /dev/null 2>&1 || apt_install python3-pip >&2
  export UV_PYTHON_PREFERENCE=only-managed
  [[ -x $HOME/electra_jax_uv/bin/uv ]] ||
    python3 -m pip install --quiet --disable-pip-version-check --target "$HOME/electra_jax_uv" \
      --require-hashes --requirement "$tree/launch/requirements-uv.txt" >&2
  "$HOME/electra_jax_uv/bin/uv" python install 3.12 >&2
  "$HOME/electra_jax_uv/bin/uv" python find 3.12
}

setup() {
  local wanted python extra locks=()
  # These services hold apt's lock for minutes after a boot, and restart services during a run.
  sudo systemctl disable --now unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer > /dev/null 2>&1 || true
  command -v make > /dev/null || apt_install make
  cd "$tree"
  for extra in ${1//,/ }; do
    [[ -e requirements-$extra.txt && $extra != test ]] || fail "--extras is $1; expected some of tpu, gpu and gcs, separated by commas."
    locks+=(--requirement "requirements-$extra.txt")
  done
  # The tree's file times are those of its commit, so make cannot detect changed packages; a checksum of their lists does.
  wanted="$1 $(cat requirements*.txt pyproject.toml | cksum)"
  if [[ $(cat "$venv/.complete" 2> /dev/null) != "$wanted" ]]; then
    python=$(find_python)
    rm -f "$venv/.complete" "$venv/.installed"
    make install VENV="$venv" PYTHON="$python"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
      --requirement requirements.txt "${locks[@]}"
    printf '%s\n' "$wanted" > "$venv/.complete"
  fi
  printf 'ready %s\n' "$(hostname)"
}

id() { cat "$job/id" 2> /dev/null || printf -- '-\n'; }

state() {
  local state=running status=- step
  if [[ ! -e $job/id ]]; then
    state=none
  elif [[ -e $job/status ]]; then
    state=exited status=$(cat "$job/status")
  elif flock --nonblock "$job/lock" true; then
    state=lost # the lock is free and no status was written: the machine was restarted, or all processes were killed
    # It may have exited between the two checks.
    if [[ -e $job/status ]]; then state=exited status=$(cat "$job/status"); fi
  fi
  step=$(restored_step "$job/status.json")
  printf 'job %s %s %s %s %s\n' "$(hostname)" "$(id)" "$state" "$status" "$step"
}

idle() {
  [[ $(state) != *' running '* ]] ||
    fail "a job is running on $(hostname); stop it first with launch/tpu.sh stop."
}

start() {
  local wanted=$1 setting
  shift
  mkdir -p "$job"
  if [[ $(id) == "$wanted" ]]; then # a repeated request after a dropped connection
    state
    return
  fi
  idle
  # Remaining processes of an earlier job may hold the TPU.
  kill -KILL -- "-$(cat "$job/group" 2> /dev/null)" 2> /dev/null || true
  # On a slow network, fail after a minute with less than a kilobyte instead of hanging.
  export TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS=60 TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES=1024
  export TPU_STDERR_LOG_LEVEL=2 TPU_MIN_LOG_LEVEL=2
  # JAX's default port since 0.8.1, 8482, is not opened between slices by the network's default firewall rules; 8476 is.
  export JAX_COORDINATOR_PORT=8476
  # The images preload tcmalloc; set it if ssh did not pass the variable on.
  if [[ -z ${LD_PRELOAD-} && -e /usr/lib/x86_64-linux-gnu/libtcmalloc.so.4 ]]; then
    export LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4
  fi
  for setting in "$@"; do
    [[ $setting != -- ]] || break
    export "${setting?}"
    shift
  done
  shift
  cd "$tree"
  rm -f "$job/status" "$job/status.json" "$job/trainer"
  export ELECTRA_JAX_STATUS=$job/status.json # the first process of the run writes it
  [[ ! -e $job/log ]] || mv "$job/log" "$job/log.before"
  exec 9> "$job/lock"
  flock --wait 5 9 || fail "the previous job is still exiting on $(hostname); try again in a minute."
  printf '%s\n' "$wanted" > "$job/id"
  # In its own session, without a terminal, so that the end of the connection does not affect it.
  setsid nohup bash "$tree/launch/worker.sh" supervise "$@" < /dev/null > "$job/log" 2>&1 3>&1 &
  printf '%s\n' "$!" > "$job/group"
  exec 9>&-
  state
}

# Holds the lock while the trainer runs, and writes its exit status.
supervise() {
  local status=0
  (
    printf '%s\n' "$BASHPID" > "$job/trainer"
    exec "$venv/bin/python" -m electra_jax.main "$@"
  ) || status=$?
  printf '%s\n' "$status" > "$job/status.new"
  mv "$job/status.new" "$job/status"
}

log() {
  local size from=$2
  [[ $(id) == "$1" && -e $job/log ]] || return 0
  size=$(stat -c %s "$job/log")
  # A late reader gets only the end.
  ((size - from <= 65536)) || from=$((size - 65536))
  printf 'log %s\n' "$size"
  tail -c "+$((from + 1))" "$job/log" | head -c "$((size - from))"
}

tail_log() {
  local reason
  if [[ $# -lt 2 || $(cat "$job/status" 2> /dev/null) == "$2" ]]; then
    tail -n "$1" "$job/log" 2> /dev/null | sed "s/^/$(hostname) | /"
    reason=$(status_field "$job/status.json" exit_reason)
    [[ -z $reason ]] || printf '%s | exit reason: %s\n' "$(hostname)" "$reason"
  fi
}

stop() {
  local left
  [[ $(state) == *' running '* ]] || return 0
  kill -TERM "$(cat "$job/trainer")" 2> /dev/null || true
  for ((left = ${1:-120}; left > 0; left--)); do
    [[ $(state) == *' running '* ]] || return 0
    sleep 1
  done
  kill -KILL -- "-$(cat "$job/group")" 2> /dev/null || true
  printf '137\n' > "$job/status"
}

case ${1-} in
  setup | start | state | log | stop | idle | supervise) "$@" ;;
  tail) tail_log "${@:2}" ;;
  *) fail "the command is '${1-}'; expected setup, start, state, log, tail, stop or idle." ;;
esac
