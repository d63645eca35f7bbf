#!/usr/bin/env bash
# TPU slices of a GKE cluster, through XPK. See launch/gke.sh --help.
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
  run       a workload on the cluster's slices; create the cluster first with 'xpk cluster create'.
            It restarts after a preemption (exit status 42), a lost process (43) and a crash by a signal
  status    the workload, as 'xpk workload list' shows it
  delete    the workload; the cluster stays and is still billed

  --project=PROJECT        default: gcloud's project
  --restarts=20            run: maximum number of restarts, for any reason
  --env=NAME=VALUE         run: a variable of the trainer's environment; may be repeated
  --xpk-flag=FLAG          run: a flag of 'xpk workload create', such as --priority=high; may be repeated
  --dry-run                print the commands without running them

Needs xpk ('pip install xpk'), kubectl and docker.
END
}

case ${1-} in
  build | run | status | delete) action=$1 ;;
  -h | --help | help) usage && exit ;;
  '') wrong 'no command is given' ;;
  *) wrong "'$1' is not a command" ;;
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
    --env=*)
      [[ ${1#*=} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || wrong "'$1' is not --env=NAME=VALUE"
      flags+=("$1")
      ;;
    --xpk-flag=?*) flags+=("${1#*=}") ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage && exit ;;
    --) shift && trainer=("$@") && break ;;
    -*) wrong "'$1' is not an option, or its value is missing" ;;
    *) [[ -z $name ]] || wrong "'$1' is an unexpected argument; arguments of the trainer follow --" && name=$1 ;;
  esac
  shift
done
if [[ $action == build || $action == run ]]; then
  [[ -n $image ]] || wrong '--image is missing'
fi
if [[ $action != build ]]; then
  [[ -n $name ]] || wrong 'NAME, the name of the workload, is missing'
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || wrong "NAME is '$name'; expected lower-case letters, digits and -"
  [[ -n $cluster && -n $zone ]] || wrong '--cluster and --zone are both required'
fi
where=(--cluster="$cluster" --zone="$zone" ${project:+--project="$project"})

build() {
  local tree commit
  tree=$(cd "$here/.." && pwd)
  commit=$(git -C "$tree" rev-parse --short HEAD) || fail 'the image is made from a commit, and this is not a git checkout.'
  [[ -z $(git -C "$tree" status --porcelain --untracked-files=no) ]] ||
    note "changes since commit $commit are not committed and are not in the image"
  # The commit is the build context, so that runs, environments and secrets beside it are not in the image.
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
  [[ -n $topology ]] || wrong '--topology is missing'
  parse_topology "$topology"
  case " ${trainer[*]-} " in
    *' --config='* | *' --mode='*) ;;
    *) wrong 'the arguments of the trainer are missing; give them after --, as in: -- --config=configs/base.py --workdir=gs://BUCKET/RUN' ;;
  esac
  local word
  # XPK writes the command into a file of several lines.
  [[ ${trainer[*]} != *[[:cntrl:]]* ]] || wrong 'an argument of the trainer has a line break or another control character'
  for word in $(distributed "${trainer[@]}"); do trainer+=("$word"); done
  # exec: XPK sends SIGTERM to the shell that runs the command, which must therefore become the trainer.
  # XPK itself restarts a workload after 42 and 127 to 255.
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
