# Sourced by the scripts of this folder: words for a person, dry runs, names of slices, when to stop trying.
# shellcheck shell=bash

dry_run=0
exec 3>&1      # where a dry run prints, also from inside $(...)

say() { printf '[%s] %s\n' "$(date +%T)" "$*" >&2; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# A mistake in the arguments. The caller has a function `usage`.
wrong() {
  printf '%s: %s\n\n' "$(basename "$0")" "$*" >&2
  usage >&2
  exit 2
}

# The words as one line that a shell reads back as the same words.
quoted() {
  local word line='' escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$escaped}'" ;;
    esac
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

run() {
  if ((dry_run)); then quoted "$@" >&3; else "$@"; fi
}

# shellcheck disable=SC2034  # for the scripts that source this
# Sets slices, generation and accelerator, the cloud's own name, from a name that --mode=plan takes: v5e-16, v4-8, 2xv5e-256.
parse_topology() {
  [[ $1 =~ ^(([1-9][0-9]*)x)?(v2|v3|v4|v5e|v5litepod|v5p|v6e|tpu7x)-([0-9]+)$ ]] ||
    wrong "there is no TPU slice '$1'; names are like v5e-16, v4-8, v6e-64, 2xv5e-256"
  slices=${BASH_REMATCH[2]:-1}
  generation=${BASH_REMATCH[3]}
  accelerator=${generation/#v5e/v5litepod}-${BASH_REMATCH[4]}
}

# What to add to the trainer's arguments where several processes make up the run: they find each other by what the cluster says.
distributed() {
  case " $* " in
    *' --distributed'* | *' --coordinator'*) ;;
    *' --mode=train '* | *' --mode=evaluate '*) printf -- '--distributed=cluster\n' ;;
    *' --mode='*) ;; # the other modes are work of one process
    *) printf -- '--distributed=cluster\n' ;;
  esac
}

# The status that tells why a run ended, of those of its processes: a crash before a kill, a kill before 43 (another process was
# lost), that before 42 (preempted), that before 0. Of several crashes the first given.
worst() {
  local status rank best=-1 found=0
  for status in "$@"; do
    case $status in
      0) rank=0 ;;
      42) rank=1 ;;
      43) rank=2 ;;
      137 | 143 | lost) rank=3 ;;
      *) rank=4 ;;
    esac
    if ((rank > best)); then best=$rank found=$status; fi
  done
  printf '%s\n' "$found"
}

# Writes a failure down; true when it is the third of its kind in a row and no step was saved between them.
third_time() { # HISTORY FAILURE STEP; STEP is the one that the failed run was restored from
  printf '%s, restored at step %s\n' "$2" "$3" >> "$1"
  [[ $(wc -l < "$1") -ge 3 && $(tail -n 3 "$1" | sort -u | wc -l) -eq 1 ]]
}

# A field of a status file of the trainer, which has one field per line (docs/reference/status.md). Empty where the field is null,
# or there is no such file.
status_field() { # FILE FIELD
  local value
  value=$(sed -n "s/^  \"$2\": \(.*[^,]\),\{0,1\}\$/\1/p" "$1" 2> /dev/null) || true
  [[ $value != null ]] || value=''
  if [[ $value == '"'*'"' ]]; then
    value=${value:1:${#value}-2}
    printf '%b\n' "${value//\\\"/\"}" # the other escapes of JSON strings are among those of printf
  else
    printf '%s\n' "$value"
  fi
}

# The optimizer steps that were saved when the start that wrote a status file began; 0 where there is no such file.
restored_step() { # FILE
  local step
  step=$(status_field "$1" restored_step)
  printf '%s\n' "${step:-0}"
}
