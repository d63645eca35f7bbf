# Sourced by the scripts in this folder: messages, dry runs, names of slices, when to give up.
# shellcheck shell=bash

dry_run=0
exec 3>&1      # where a dry run prints, also from inside $(...)

note() { printf '[%s] %s\n' "$(date +%T)" "$*" >&2; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Reports an invalid argument. The caller defines a function `usage`.
wrong() {
  printf '%s: %s\n\n' "$(basename "$0")" "$*" >&2
  usage >&2
  exit 2
}

# Prints the words as one line, quoted for a shell.
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
# Sets slices, generation and accelerator (Cloud TPU's name) from a name that --mode=plan accepts: v5e-16, v4-8, 2xv5e-256.
parse_topology() {
  [[ $1 =~ ^(([1-9][0-9]*)x)?(v2|v3|v4|v5e|v5litepod|v5p|v6e|tpu7x)-([0-9]+)$ ]] ||
    wrong "the topology is '$1'; expected a TPU slice such as v5e-16, v4-8, v6e-64 or 2xv5e-256"
  slices=${BASH_REMATCH[2]:-1}
  generation=${BASH_REMATCH[3]}
  accelerator=${generation/#v5e/v5litepod}-${BASH_REMATCH[4]}
}

# Prints the trainer's argument for runs of several processes: they find each other through the cluster's environment.
distributed() {
  case " $* " in
    *' --distributed'* | *' --coordinator'*) ;;
    *' --mode=train '* | *' --mode=evaluate '*) printf -- '--distributed=cluster\n' ;;
    *' --mode='*) ;; # the other modes run in one process
    *) printf -- '--distributed=cluster\n' ;;
  esac
}

# Prints the exit status that explains why a run ended, out of those of its processes: a crash before a kill, before 43 (another
# process was lost), before 42 (preempted), before 0. Of several crashes, the first argument.
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

# Records a failure; true when it is the third equal one in a row without a saved step in between.
third_time() { # HISTORY FAILURE STEP; STEP: the failed run was restored from it
  printf '%s, restored at step %s\n' "$2" "$3" >> "$1"
  [[ $(wc -l < "$1") -ge 3 && $(tail -n 3 "$1" | sort -u | wc -l) -eq 1 ]]
}

# Prints a field of the trainer's status file, which has one field per line (docs/reference/status.md). Empty if the field is null or
# the file does not exist.
status_field() { # FILE FIELD
  local value
  value=$(sed -n "s/^  \"$2\": \(.*[^,]\),\{0,1\}\$/\1/p" "$1" 2> /dev/null) || true
  [[ $value != null ]] || value=''
  if [[ $value == '"'*'"' ]]; then
    value=${value:1:${#value}-2}
    printf '%b\n' "${value//\\\"/\"}" # printf understands the other escapes of JSON strings
  else
    printf '%s\n' "$value"
  fi
}

# Prints the number of optimizer steps that were saved when the start that wrote a status file began; 0 without a file.
restored_step() { # FILE
  local step
  step=$(status_field "$1" restored_step)
  printf '%s\n' "${step:-0}"
}
