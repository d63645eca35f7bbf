#!/usr/bin/env bash
# Runs on Cloud TPU VMs through queued resources. See launch/tpu.sh --help.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

usage() {
  cat << 'END'
launch/tpu.sh COMMAND NAME --zone=ZONE [OPTIONS] [-- ARGUMENTS OF electra_jax.main]

  resume    create, wait, setup, run and follow; repeated after a preemption until the run is complete.
            The same failure three times without a new step ends it. When interrupted, it leaves the job
            running; the same command follows it again. Use a machine that stays on.
  create    request the slice (an existing request is reused; a suspended or failed one is replaced)
  setup     wait until it is active, copy the committed tree to all workers, install the packages
  run       start the trainer on all workers and follow it until it exits
  logs      the last lines of every worker; with --follow, those of the first worker continuously
  status    the request's state, and each worker's job
  stop      ask the job to save and exit (status 42)
  simulate-maintenance   announce maintenance to a worker, as the cloud does (--workers=0)
  delete    the request and its VMs; only this ends their cost

  --topology=v5e-16        create, resume: the slice, as --mode=plan names it; 2xv5e-256 for two slices
  --zone=ZONE  --project=PROJECT          default project: gcloud's
  --on-demand              create, resume: not spot, which is cheaper and can be preempted
  --valid-until=6h         create, resume: give up the request if it is not filled by then
  --runtime-version=IMAGE  create, resume: the VM image; default: the generation's
  --create-flag=FLAG       a flag of 'queued-resources create', such as --reserved or --network=NET; may be repeated
  --ssh-flag=FLAG          a flag of 'ssh' and 'scp', such as --tunnel-through-iap; may be repeated
  --extras=tpu,gcs         setup, resume: the extras to install: tpu, gpu or gcs, of requirements-EXTRA.txt
  --env=NAME=VALUE         run, resume: a variable of the trainer's environment; may be repeated
  --delete-when-done       resume: delete the request when the run is complete
  --interval=30            seconds between two polls
  --patience=20            polls without an answer, or with missing workers, before acting on it
  --dry-run                print the commands without running them
END
}

case ${1-} in
  resume | create | setup | run | logs | status | stop | simulate-maintenance | delete) action=$1 ;;
  -h | --help | help) usage && exit ;;
  '') wrong 'no command is given' ;;
  *) wrong "'$1' is not a command" ;;
esac
shift
name='' zone='' project='' topology='' valid_until='' image='' extras=tpu,gcs workers_hit=0
spot=1 follow=0 delete_when_done=0 interval=30 patience=20
create_flags=() ssh_flags=() settings=() trainer=()
while (($#)); do
  case $1 in
    --zone=?*) zone=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --topology=?*) topology=${1#*=} ;;
    --valid-until=?*) valid_until=${1#*=} ;;
    --runtime-version=?*) image=${1#*=} ;;
    --create-flag=?*) create_flags+=("${1#*=}") ;;
    --ssh-flag=?*) ssh_flags+=("${1#*=}") ;;
    --extras=?*) extras=${1#*=} ;;
    --env=*)
      [[ ${1#*=} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || wrong "'$1' is not --env=NAME=VALUE"
      settings+=("${1#*=}")
      ;;
    --workers=?*) workers_hit=${1#*=} ;;
    --interval=?*) interval=${1#*=} ;;
    --patience=?*) patience=${1#*=} ;;
    --on-demand) spot=0 ;;
    --spot) spot=1 ;;
    --follow) follow=1 ;;
    --delete-when-done) delete_when_done=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && trainer=("$@") && break ;;
    -*) wrong "'$1' is not an option, or its value is missing" ;;
    *) [[ -z $name ]] || wrong "'$1' is an unexpected argument; arguments of the trainer follow --" && name=$1 ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || wrong "NAME is '$name'; expected lower-case letters, digits and -, as in: launch/tpu.sh $action mine"
[[ -n $zone ]] || wrong '--zone is missing'
[[ $interval =~ ^[0-9]*\.?[0-9]+$ && $patience =~ ^[1-9][0-9]*$ ]] || wrong '--interval and --patience must be numbers'
slices=1 generation='' accelerator='' capacity=()
if ((spot)); then capacity=(--spot); fi
# Some releases of gcloud use the end of the interval only together with its beginning.
if [[ -n $valid_until ]]; then capacity+=(--valid-after-duration=0s --valid-until-duration="$valid_until"); fi
case $action in
  create | resume)
    [[ -n $topology ]] || wrong '--topology is missing'
    parse_topology "$topology"
    [[ $generation != tpu7x ]] || wrong 'TPU7x is available only through GKE; see launch/gke.sh --help'
    # The images of cloud.google.com/tpu/docs/runtimes.
    case ${image:-$generation} in
      v5e | v5litepod) image=v2-alpha-tpuv5-lite ;;
      v5p) image=v2-alpha-tpuv5 ;;
      v6e) image=v2-alpha-tpuv6e ;;
      v2 | v3 | v4) image=tpu-ubuntu2204-base ;;
    esac
    ;;
esac
case $action in
  run | resume)
    case " ${trainer[*]-} " in
      *' --config='* | *' --mode='*) ;;
      *) wrong 'the arguments of the trainer are missing; give them after --, as in: -- --config=configs/base.py --workdir=gs://BUCKET/RUN' ;;
    esac
    for word in $(distributed "${trainer[@]}"); do trainer+=("$word"); done
    # A job's name identifies its command, so that a restarted loop recognizes its own job.
    fingerprint=$(quoted ${settings[@]+"${settings[@]}"} "${trainer[@]}" | cksum | cut -d ' ' -f 1)
    ;;
  *) ((${#trainer[@]} == 0)) || wrong "$action accepts no arguments of the trainer" ;;
esac

where=(--zone="$zone" ${project:+--project="$project"} --quiet)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
state=absent     # of the request
outcome=         # of an attempt: the trainer's exit status, or one word for what failed
workers=1 id='' offset=0
step=0           # the last step that a run was restored from

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }

pause() { ((dry_run)) || { sleep "$interval" & wait "$!"; }; } # a signal ends `wait` at once, but not `sleep`

#### The request ######################################################################################################

# Sets state, and reason if the request failed. unknown: gcloud did not answer.
look() {
  local answer
  if ((dry_run)); then
    tpus queued-resources describe "$name" --format='value(state.state,state.failedData.error.message)'
    return
  fi
  if answer=$(tpus queued-resources describe "$name" --format='value(state.state,state.failedData.error.message)' \
    2> "$scratch/errors"); then
    read -r state reason <<< "$answer"
    state=${state:-unknown}
  elif grep -qi 'not_found\|not found' "$scratch/errors"; then
    state=absent
  else
    state=unknown
  fi
}

create() {
  local nodes=(--node-id="$name")
  if ((slices > 1)); then nodes=(--node-count="$slices" --node-prefix="$name"); fi
  note "requesting $topology as $name in $zone"
  tpus queued-resources create "$name" "${nodes[@]}" --accelerator-type="$accelerator" --runtime-version="$image" \
    ${capacity[@]+"${capacity[@]}"} ${create_flags[@]+"${create_flags[@]}"} || return
  if ((dry_run)); then state=ACTIVE; fi
}

delete() { tpus queued-resources delete "$name" --force; }

# Waits until the request is active; creates it if necessary. On failure it sets outcome.
await_active() {
  local shown='' unanswered=0 reason=''
  while :; do
    look
    if [[ $state != "$shown" && $state != absent ]]; then note "$name is $state" && shown=$state; fi
    case $state in
      ACTIVE) return 0 ;;
      absent)
        [[ -n $topology ]] || fail "$name is not a request in $zone; create it with launch/tpu.sh create."
        create || { outcome=create && return 1; }
        ((dry_run)) || pause
        ;;
      # Suspended and failed requests are never filled again.
      SUSPENDED) replace || return 1 ;;
      FAILED)
        note "the request failed: ${reason:-no reason given}"
        replace || return 1
        outcome=FAILED && return 1
        ;;
      unknown)
        if ((++unanswered >= patience)); then fail "gcloud does not answer: $(tail -n 1 "$scratch/errors")"; fi
        pause
        ;;
      *) pause ;;
    esac
    [[ $state == unknown ]] || unanswered=0
  done
}

replace() {
  [[ -n $topology ]] || fail "the request $name is $state; replace it with launch/tpu.sh create."
  note "deleting the request, which is $state"
  delete || { outcome=delete && return 1; }
}

#### The workers ######################################################################################################

on_workers() { # first|all COMMAND
  local target=(--node=0 --worker=0)
  if [[ $1 == all ]]; then target=(--node=all --worker=all); fi
  # A silent connection is given up after two minutes, since a lost network would hang the loop.
  tpus queued-resources ssh "$name" "${target[@]}" --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$2"
}

worker() { on_workers "$1" "bash electra_jax/launch/worker.sh $(quoted "${@:2}")"; }

# gcloud skips unreachable slices without an error, so the expected number of workers is counted.
count_workers() {
  local answer format='value(networkEndpoints.len())'
  answer=$(tpus tpu-vm list --filter="queuedResource~/queuedResources/$name\$" --format="$format") || answer=
  workers=$(awk '{sum += $1} END {print sum + 0}' <<< "$answer")
  if ((dry_run)); then workers=1; fi
  ((workers > 0)) || { outcome=unreachable && return 1; }
}

# Packs the committed tree into one file, once, so that each new slice gets the same. Workers need no access to the repository,
# and the commit need not be published.
pack() {
  local tree
  tree=$(cd "$here/.." && pwd)
  commit=$(git -C "$tree" rev-parse --short HEAD) || fail 'this is not a git checkout; the launch scripts copy its commit.'
  [[ -z $(git -C "$tree" status --porcelain --untracked-files=no) ]] ||
    note "changes since commit $commit are not committed and are not copied"
  archive=$scratch/electra_jax.tar.gz
  run git -C "$tree" archive --format=tar.gz --output="$archive" HEAD
}

setup() {
  local answer unpack='if [ -e electra_jax/launch/worker.sh ]; then bash electra_jax/launch/worker.sh idle; fi'
  unpack+=' && rm -rf electra_jax.new && mkdir electra_jax.new && tar -xzf electra_jax.tar.gz -C electra_jax.new'
  unpack+=" && rm -rf electra_jax && mv electra_jax.new electra_jax && bash electra_jax/launch/worker.sh setup $(quoted "$extras")"
  note "setting up commit $commit on $workers worker(s)"
  tpus queued-resources scp "$archive" "$name:electra_jax.tar.gz" --node=all --worker=all \
    ${ssh_flags[@]+"${ssh_flags[@]}"} || { outcome=setup && return 1; }
  answer=$(on_workers all "$unpack") || { printf '%s\n' "$answer" >&2 && outcome=setup && return 1; }
  ((dry_run)) || [[ $(grep -c '^ready ' <<< "$answer") -ge $workers ]] || { outcome=setup && return 1; }
}

start() {
  id=$fingerprint-$(date +%s)-$RANDOM offset=0
  note "starting $(quoted "${trainer[@]}")"
  worker all start "$id" ${settings[@]+"${settings[@]}"} -- "${trainer[@]}" > /dev/null || { outcome=start && return 1; }
}

# Polls every worker. Sets answered, running and statuses of the job $id, or of the job that is found if $id is empty, and raises
# step to the one that the job was restored from.
poll() {
  local answer word job status its at
  answered=0 running=0 statuses=()
  if ((dry_run)); then worker all state && answered=1 statuses=(0) && return; fi
  answer=$(worker all state 2> "$scratch/errors") || true # unreachable workers are missing from the answer
  while read -r word _ job its status at; do
    [[ $word == job ]] || continue
    answered=$((answered + 1))
    [[ -n $id || $its != running ]] || id=$job
    if [[ $job != "$id" ]]; then its=none; fi
    case $its in
      running) running=$((running + 1)) ;;
      exited) statuses+=("$status") ;;
      *) statuses+=(lost) ;;
    esac
    if ((at > step)); then step=$at; fi
  done <<< "$answer"
}

fetch_log() {
  local header
  worker first log "$id" "$offset" > "$scratch/log" 2> /dev/null || return 0
  if read -r header < "$scratch/log" && [[ $header == 'log '* ]]; then
    offset=${header#log }
    tail -n +2 "$scratch/log"
  fi
}

# Prints the first worker's log until the job has exited on all workers, and sets outcome: the exit status; taken if the request
# lost its VMs; unreachable if they do not answer. A failed connection is none of these: the job continues.
follow_job() {
  local unanswered=0 incomplete=0
  note "following $name; the job does not depend on this connection"
  while :; do
    fetch_log
    poll
    if ((answered < workers)); then
      look
      if [[ $state != ACTIVE && $state != unknown ]]; then outcome=taken && return; fi
      if ((++unanswered >= patience)); then outcome=unreachable && return; fi
    else
      unanswered=0
      if ((running == 0)); then
        fetch_log
        outcome=$(worst "${statuses[@]}")
        return
      fi
      # The trainer exits when another process of the run is lost. If it hangs, it is stopped.
      if ((running < workers)) && [[ $(worst "${statuses[@]}") != 0 ]] && ((++incomplete == patience)); then
        note "$running of $workers workers did not exit; stopping them"
        worker all stop "$patience" > /dev/null || true
      fi
    fi
    pause
  done
}

# True if the job of this command already runs on the workers; the loop then follows it.
attach() {
  id=''
  poll
  if ((dry_run || running == 0)); then return 1; fi
  if [[ $id != "$fingerprint"-* ]]; then fail "another command is running on $name; stop it with launch/tpu.sh stop $name --zone=$zone."; fi
  # Workers that did not answer are polled again while following.
  if ((running == answered)); then offset=0 && return 0; fi
  note "the job runs on $running of $answered workers; stopping it"
  worker all stop > /dev/null || true
  return 1
}

#### The loop #########################################################################################################

attempt() {
  await_active && count_workers || return
  attach || { setup && start; } || return
  follow_job
}

# Stops the loop after the same failure three times. A failure caused by lost VMs does not count. Exit status 1 counts like the
# others: it can be a user error, but also a bucket that did not answer, or a worker that started late.
judge() {
  if [[ $outcome != create && $outcome != FAILED ]]; then
    look
    if [[ $state != ACTIVE && $state != unknown ]]; then note "$name is $state" && return; fi
  fi
  if [[ $outcome =~ ^[0-9]+$ ]]; then
    note "the trainer exited with status $outcome; last lines of the workers with this status:"
    worker all tail 20 "$outcome" >&2 2> /dev/null || true
  else
    note "failed: $outcome"
  fi
  if third_time "$scratch/failures" "$outcome" "$step"; then
    give_up "the same failure occurred three times ($outcome) without a saved step in between"
  fi
}

remains() {
  note "$name in $zone still exists and is billed. To delete it:"
  note "  launch/tpu.sh delete $name --zone=$zone${project:+ --project=$project}"
}

give_up() {
  note "stopping: $1"
  if [[ $outcome != create && $outcome != FAILED ]]; then remains; fi
  if [[ $outcome =~ ^[0-9]+$ ]]; then exit "$outcome"; else exit 1; fi
}

interrupted() {
  note 'interrupted; a running job continues, and the same command follows it again'
  remains
  exit "$1"
}

resume() {
  trap 'interrupted 130' INT
  trap 'interrupted 143' TERM
  pack
  while :; do
    outcome=''
    attempt || true
    case $outcome in
      0) break ;;
      42) note 'the run was preempted and saved; restarting' ;;
      taken) note 'the VMs are gone; restarting from the last checkpoint' ;;
      *) judge ;;
    esac
    pause
  done
  note 'the run is complete'
  if ((delete_when_done)); then delete; else remains; fi
}

#### Commands ########################################################################################################

case $action in
  resume) resume ;;
  create)
    look
    case $state in
      absent) create ;;
      SUSPENDED | FAILED) replace && create ;;
      unknown) fail "gcloud does not answer: $(tail -n 1 "$scratch/errors")" ;;
      *) note "$name already exists: $state" ;;
    esac
    ;;
  setup)
    pack
    state=ACTIVE
    if ! { await_active && count_workers && setup; }; then fail "this failed ($outcome)."; fi
    ;;
  run)
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    if ! { count_workers && start && follow_job; }; then fail "this failed ($outcome)."; fi
    note "the trainer exited with status $outcome"
    [[ $outcome =~ ^[0-9]+$ ]] || exit 1
    exit "$outcome"
    ;;
  logs)
    worker all tail 50
    if ((follow)); then
      count_workers || fail "$name in $zone has no workers; see launch/tpu.sh status."
      poll
      [[ -n $id ]] || fail "no job is running on $name."
      follow_job
    fi
    ;;
  status)
    look
    note "$name is $state"
    if [[ $state == ACTIVE || $dry_run == 1 ]]; then worker all state; fi
    ;;
  stop) worker all stop ;;
  simulate-maintenance)
    node=$name
    if [[ -n $topology ]]; then parse_topology "$topology"; fi
    if ((slices > 1)); then node=$name-0; fi
    run gcloud alpha compute tpus tpu-vm simulate-maintenance-event "$node" --workers="$workers_hit" "${where[@]}"
    ;;
  delete)
    look
    if [[ $state == absent && $dry_run == 0 ]]; then note "$name is not a request in $zone"; else delete; fi
    ;;
esac
