#!/usr/bin/env bash
# TPU slices of a GKE cluster, through XPK. launch/gke.sh --help says how.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

usage() {
  cat << 'END'
launch/gke.sh build --image=IMAGE [--accelerator=tpu|gpu]
launch/gke.sh run NAME --cluster=CLUSTER --zone=ZONE --topology=2xv5e-256 --image=IMAGE [OPTIONS] -- ARGUMENTS OF electra_jax.main
launch/gke.sh status|delete NAME --cluster=CLUSTER --zone=ZONE

  build     an image of the committed tree (launch/Dockerfile), pushed to IMAGE, such as
            us-central1-docker.pkg.dev/PROJECT/REPOSITORY/electra_jax:1
  run       a workload on the cluster's slices; the cluster is made before, by 'xpk cluster create'.
            It starts again after a preemption (exit status 42), a lost process (43) and a crash by a signal
  status    the workload, as 'xpk workload list' shows it
  delete    the workload; the cluster and its cost stay

  --project=PROJECT        gcloud's own unless told
  --restarts=20            run: how often in all, whatever the reason
  --env=NAME=VALUE         run: a variable of the trainer's environment; repeat it
  --xpk-flag=FLAG          run: one more flag of 'xpk workload create', such as --priority=high; repeat it
  --dry-run                print the commands and run none

Needs xpk ('pip install xpk'), kubectl and docker.
END
}

case ${1-} in
  build | run | status | delete) action=$1 ;;
  -h | --help | help) usage && exit ;;
  '') wrong 'no command was given' ;;
  *) wrong "there is no command '$1'" ;;
esac
shift
name='' cluster='' zone='' project='' topology='' image='' kind=tpu restarts=20
flags=() trainer=()
while (($#)); do
  case $1 in
    --cluster=?*) cluster=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --topology=?*) topology=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --accelerator=tpu | --accelerator=gpu) kind=${1#*=} ;;
    --restarts=[0-9]*) restarts=${1#*=} ;;
    --env=[A-Za-z_]*=*) flags+=("$1") ;;
    --xpk-flag=?*) flags+=("${1#*=}") ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && trainer=("$@") && break ;;
    -*) wrong "there is no option '$1', or it lacks its value" ;;
    *) [[ -z $name ]] || wrong "'$1' is one word too many; arguments of the trainer come after --" && name=$1 ;;
  esac
  shift
done
if [[ $action == build || $action == run ]]; then
  [[ -n $image ]] || wrong 'no --image was given'
fi
if [[ $action != build ]]; then
  [[ -n $name ]] || wrong 'a NAME is needed for the workload'
  [[ -n $cluster && -n $zone ]] || wrong '--cluster and --zone say where, and both are needed'
fi
where=(--cluster="$cluster" --zone="$zone" ${project:+--project="$project"})

build() {
  local tree commit
  tree=$(cd "$here/.." && pwd)
  commit=$(git -C "$tree" rev-parse --short HEAD) || fail 'the image is made of a commit, and this is no git checkout.'
  [[ -z $(git -C "$tree" status --porcelain --untracked-files=no) ]] ||
    say "what was changed since commit $commit is not committed and stays out of the image"
  # The commit is the context: neither runs nor environments nor secrets that lie beside it get into the image.
  local archive=(git -C "$tree" archive HEAD)
  local build=(docker build --file launch/Dockerfile --build-arg "ACCELERATOR=$kind" --label "commit=$commit" --tag "$image" -)
  if ((dry_run)); then
    printf '%s | %s\n' "$(quoted "${archive[@]}")" "$(quoted "${build[@]}")"
  else
    "${archive[@]}" | "${build[@]}"
  fi
  run docker push "$image"
}

start() {
  [[ -n $topology ]] || wrong 'no --topology was given'
  parse_topology "$topology"
  case " ${trainer[*]-} " in
    *' --config='* | *' --mode='*) ;;
    *) wrong 'the trainer needs arguments, after --: -- --config=configs/base.py --workdir=gs://BUCKET/RUN' ;;
  esac
  local word
  for word in $(distributed "${trainer[@]}"); do trainer+=("$word"); done
  # exec: XPK hands SIGTERM to the shell that it runs the command in, and so to the trainer only where that shell became it.
  # XPK starts a workload again after 42 and 127 to 255 by itself.
  run xpk workload create --workload="$name" "${where[@]}" --tpu-type="$accelerator" --num-slices="$slices" \
    --docker-image="$image" --max-restarts="$restarts" --restart-on-exit-codes=43 \
    --termination-grace-period-seconds=120 ${flags[@]+"${flags[@]}"} \
    --command="exec python -m electra_jax.main $(quoted "${trainer[@]}")"
}

case $action in
  build) build ;;
  run) start ;;
  status) run xpk workload list "${where[@]}" --filter-by-job="$name" ;;
  delete) run xpk workload delete --workload="$name" "${where[@]}" --force ;;
esac
