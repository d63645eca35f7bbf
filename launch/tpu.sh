#!/usr/bin/env bash
# Cloud TPU VMs through queued resources, from the request to the last checkpoint. launch/tpu.sh --help says how.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

usage() {
  cat << 'END'
launch/tpu.sh COMMAND NAME --zone=ZONE [OPTIONS] [-- ARGUMENTS OF electra_jax.main]

  resume    all of it: create, wait, setup, run, follow; again after a preemption, until the run is done.
            The same failure three times without a new step ends it. Interrupted, it leaves the job running;
            the same command follows it again. Run it on a machine that stays up.
  create    request the slice (one that is there already is fine; a suspended or failed one is replaced)
  setup     wait until it is active, copy the committed tree to all workers, install the packages
  run       start the trainer on all workers and follow it to its end
  logs      the last lines of every worker; with --follow those of the first as they come
  status    the request's state, and each worker's job
  stop      ask the job to save and leave (exit status 42)
  simulate-maintenance   what the cloud says before it takes a worker (--workers=0)
  delete    the request and its VMs; nothing else ends their cost

  --topology=v5e-16        create, resume: the slice, as --mode=plan names it; 2xv5e-256 for two slices
  --zone=ZONE  --project=PROJECT          where; the project is gcloud's own unless told
  --on-demand              create, resume: not spot, which is cheaper and can be taken away
  --valid-until=6h         create, resume: give the request up where it was not filled by then
  --runtime-version=IMAGE  create, resume: another image than the generation's usual one
  --create-flag=FLAG       one more flag of 'queued-resources create', such as --reserved or --network=NET; repeat it
  --ssh-flag=FLAG          one more flag of 'ssh' and 'scp', such as --tunnel-through-iap; repeat it
  --extras=tpu,gcs         setup, resume: the package's extras to install
  --env=NAME=VALUE         run, resume: a variable of the trainer's environment; repeat it
  --delete-when-done       resume: delete the request after the run's end
  --interval=30            seconds between two looks at it
  --patience=20            looks without an answer, or with some workers gone, before something is done about it
  --dry-run                print the commands and run none
END
}

case ${1-} in
  resume | create | setup | run | logs | status | stop | simulate-maintenance | delete) action=$1 ;;
  -h | --help | help) usage && exit ;;
  '') wrong 'no command was given' ;;
  *) wrong "there is no command '$1'" ;;
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
    --env=[A-Za-z_]*=*) settings+=("${1#*=}") ;;
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
    -*) wrong "there is no option '$1', or it lacks its value" ;;
    *) [[ -z $name ]] || wrong "'$1' is one word too many; arguments of the trainer come after --" && name=$1 ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || wrong "a NAME of small letters, digits and - is needed, as in: launch/tpu.sh $action mine"
[[ -n $zone ]] || wrong 'no --zone was given'
[[ $interval =~ ^[0-9]*\.?[0-9]+$ && $patience =~ ^[1-9][0-9]*$ ]] || wrong '--interval and --patience are numbers'
slices=1 generation='' accelerator='' capacity=()
if ((spot)); then capacity=(--spot); fi
# Some releases of gcloud heed the end of the interval only where its beginning is given too.
if [[ -n $valid_until ]]; then capacity+=(--valid-after-duration=0s --valid-until-duration="$valid_until"); fi
case $action in
  create | resume)
    [[ -n $topology ]] || wrong 'no --topology was given'
    parse_topology "$topology"
    [[ $generation != tpu7x ]] || wrong 'TPU7x can be had through GKE alone; see launch/gke.sh --help'
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
      *) wrong 'the trainer needs arguments, after --: -- --config=configs/base.py --workdir=gs://BUCKET/RUN' ;;
    esac
    for word in $(distributed "${trainer[@]}"); do trainer+=("$word"); done
    # A job's name says what it runs, so that a loop that was started again knows its own.
    fingerprint=$(quoted ${settings[@]+"${settings[@]}"} "${trainer[@]}" | cksum | cut -d ' ' -f 1)
    ;;
  *) ((${#trainer[@]} == 0)) || wrong "$action takes no arguments of the trainer" ;;
esac

where=(--zone="$zone" ${project:+--project="$project"} --quiet)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
state=absent     # of the request; a dry run takes it through its life
outcome=         # of an attempt: the trainer's exit status, or what went wrong in a word
workers=1 id='' offset=0
step=0           # the last that a run was restored from

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }

pause() { ((dry_run)) || { sleep "$interval" & wait "$!"; }; } # a signal ends `wait` at once, `sleep` it would not

#### The request ######################################################################################################

# Sets state, and reason where the request failed. unknown: gcloud gave no answer.
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
  say "requesting $topology as $name in $zone"
  tpus queued-resources create "$name" "${nodes[@]}" --accelerator-type="$accelerator" --runtime-version="$image" \
    ${capacity[@]+"${capacity[@]}"} ${create_flags[@]+"${create_flags[@]}"} || return
  if ((dry_run)); then state=ACTIVE; fi
}

delete() { tpus queued-resources delete "$name" --force; }

# Waits for the request to be active, making it where it is not. False: outcome says what went wrong.
await_active() {
  local said='' unanswered=0 reason=''
  while :; do
    look
    if [[ $state != "$said" && $state != absent ]]; then say "$name is $state" && said=$state; fi
    case $state in
      ACTIVE) return 0 ;;
      absent)
        [[ -n $topology ]] || fail "there is no request $name in $zone; launch/tpu.sh create makes it."
        create || { outcome=create && return 1; }
        ((dry_run)) || pause
        ;;
      # A suspended request is never filled again, a failed one neither.
      SUSPENDED) replace || return 1 ;;
      FAILED)
        say "the cloud says: ${reason:-nothing}"
        replace || return 1
        outcome=FAILED && return 1
        ;;
      unknown)
        if ((++unanswered >= patience)); then fail "gcloud gives no answer: $(tail -n 1 "$scratch/errors")"; fi
        pause
        ;;
      *) pause ;;
    esac
    [[ $state == unknown ]] || unanswered=0
  done
}

replace() {
  [[ -n $topology ]] || fail "the request $name is $state; launch/tpu.sh create replaces it."
  say "deleting the request, which is $state"
  delete || { outcome=delete && return 1; }
}

#### The workers ######################################################################################################

on_workers() { # first|all COMMAND
  local target=(--node=0 --worker=0)
  if [[ $1 == all ]]; then target=(--node=all --worker=all); fi
  # A connection that says nothing for two minutes is given up, or a lost network would hang the loop.
  tpus queued-resources ssh "$name" "${target[@]}" --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$2"
}

worker() { on_workers "$1" "bash electra_jax/launch/worker.sh $(quoted "${@:2}")"; }

# gcloud leaves out, without an error, slices that it cannot reach; so it is counted who should answer.
count_workers() {
  local answer format='value(networkEndpoints.len())'
  answer=$(tpus tpu-vm list --filter="queuedResource~/queuedResources/$name\$" --format="$format") || answer=
  workers=$(awk '{sum += $1} END {print sum + 0}' <<< "$answer")
  if ((dry_run)); then workers=1; fi
  ((workers > 0)) || { outcome=unreachable && return 1; }
}

# The committed tree as one file, made once, so that each new slice gets what the first one got. A copy, not a clone: the
# workers need no right to the repository, and the commit need not be published.
pack() {
  local tree
  tree=$(cd "$here/.." && pwd)
  commit=$(git -C "$tree" rev-parse --short HEAD) || fail 'the launch scripts want a git checkout; they copy its commit.'
  [[ -z $(git -C "$tree" status --porcelain --untracked-files=no) ]] ||
    say "what was changed since commit $commit is not committed and stays here"
  archive=$scratch/electra_jax.tar.gz
  run git -C "$tree" archive --format=tar.gz --output="$archive" HEAD
}

setup() {
  local answer unpack='if [ -e electra_jax/launch/worker.sh ]; then bash electra_jax/launch/worker.sh idle; fi'
  unpack+=' && rm -rf electra_jax.new && mkdir electra_jax.new && tar -xzf electra_jax.tar.gz -C electra_jax.new'
  unpack+=" && rm -rf electra_jax && mv electra_jax.new electra_jax && bash electra_jax/launch/worker.sh setup $(quoted "$extras")"
  say "setting up commit $commit on $workers worker(s)"
  tpus queued-resources scp "$archive" "$name:electra_jax.tar.gz" --node=all --worker=all \
    ${ssh_flags[@]+"${ssh_flags[@]}"} || { outcome=setup && return 1; }
  answer=$(on_workers all "$unpack") || { printf '%s\n' "$answer" >&2 && outcome=setup && return 1; }
  ((dry_run)) || [[ $(grep -c '^ready ' <<< "$answer") -ge $workers ]] || { outcome=setup && return 1; }
}

start() {
  id=$fingerprint-$(date +%s)-$RANDOM offset=0
  say "starting $(quoted "${trainer[@]}")"
  worker all start "$id" ${settings[@]+"${settings[@]}"} -- "${trainer[@]}" > /dev/null || { outcome=start && return 1; }
}

# Asks every worker. Sets answered, running, statuses of the job $id, or where there is none of the job that is found,
# and raises step to what it was restored from.
poll() {
  local answer word job status its at
  answered=0 running=0 statuses=()
  if ((dry_run)); then worker all state && answered=1 statuses=(0) && return; fi
  answer=$(worker all state 2> "$scratch/errors") || true # who cannot be reached is missing from the answer
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

# Prints the first worker's log until the job has left all workers, and sets outcome: its exit status; taken where the request
# lost its VMs; unreachable where they give no answer. A connection that fails is none of these: the job does not notice.
follow_job() {
  local unanswered=0 incomplete=0
  say "following $name; the job goes on without this"
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
      # The trainer ends by itself when another process of the run is lost. Where it hangs it is ended.
      if ((running < workers)) && [[ $(worst "${statuses[@]}") != 0 ]] && ((++incomplete == patience)); then
        say "$running of $workers workers did not end; ending them"
        worker all stop "$patience" > /dev/null || true
      fi
    fi
    pause
  done
}

# True where the job of this very command runs on the workers: a loop that was started again goes on following it.
attach() {
  id=''
  poll
  if ((dry_run || running == 0)); then return 1; fi
  if [[ $id != "$fingerprint"-* ]]; then fail "another command is running on $name; launch/tpu.sh stop $name --zone=$zone ends it."; fi
  # Who gave no answer is asked again while following.
  if ((running == answered)); then offset=0 && return 0; fi
  say "the job runs on $running of $answered workers; ending it"
  worker all stop > /dev/null || true
  return 1
}

#### The loop #########################################################################################################

attempt() {
  await_active && count_workers || return
  attach || { setup && start; } || return
  follow_job
}

# Stops the loop after the same failure three times. What went wrong because the VMs went away is no failure of the run. Exit
# status 1 counts like the others: besides a person's mistake it can be a bucket that did not answer, or a worker that came late.
judge() {
  if [[ $outcome != create && $outcome != FAILED ]]; then
    look
    if [[ $state != ACTIVE && $state != unknown ]]; then say "$name is $state" && return; fi
  fi
  if [[ $outcome =~ ^[0-9]+$ ]]; then
    say "the trainer left with exit status $outcome; the last lines of the workers that say so:"
    worker all tail 20 "$outcome" >&2 2> /dev/null || true
  else
    say "this went wrong: $outcome"
  fi
  if third_time "$scratch/failures" "$outcome" "$step"; then
    give_up "the same failure came three times ($outcome), and no step was saved between"
  fi
}

remains() {
  say "$name in $zone is still there and costs money. To delete it:"
  say "  launch/tpu.sh delete $name --zone=$zone${project:+ --project=$project}"
}

give_up() {
  say "stopping: $1"
  if [[ $outcome != create && $outcome != FAILED ]]; then remains; fi
  if [[ $outcome =~ ^[0-9]+$ ]]; then exit "$outcome"; else exit 1; fi
}

interrupted() {
  say 'interrupted; the same command goes on from here, and a job that runs goes on by itself'
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
      42) say 'the run was preempted, and saved; going on' ;;
      taken) say 'the VMs were taken away; going on from the last checkpoint' ;;
      *) judge ;;
    esac
    pause
  done
  say 'the run is done'
  if ((delete_when_done)); then delete; else remains; fi
}

#### What a person asked for ##########################################################################################

case $action in
  resume) resume ;;
  create)
    look
    case $state in
      absent) create ;;
      SUSPENDED | FAILED) replace && create ;;
      unknown) fail "gcloud gives no answer: $(tail -n 1 "$scratch/errors")" ;;
      *) say "$name is there already: $state" ;;
    esac
    ;;
  setup)
    pack
    state=ACTIVE
    if ! { await_active && count_workers && setup; }; then fail "that did not work ($outcome)."; fi
    ;;
  run)
    trap 'interrupted 130' INT
    trap 'interrupted 143' TERM
    if ! { count_workers && start && follow_job; }; then fail "that did not work ($outcome)."; fi
    say "the trainer left with exit status $outcome"
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
    say "$name is $state"
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
    if [[ $state == absent && $dry_run == 0 ]]; then say "there is no request $name in $zone"; else delete; fi
    ;;
esac
