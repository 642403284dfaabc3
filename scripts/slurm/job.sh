# What the batch scripts share: sourced in the root of the project, it chooses the Python and answers Slurm's signals.
# shellcheck shell=bash
#
# Variables, all optional; sbatch hands them on from the shell that it is called in:
#   PYTHON_ENV    folder of a virtual or conda environment; default: .venv, if there is one, else the python of PATH
#   STAGE_SOURCE  root of the source dataset, a folder or a zip archive: copied to the node's own disk and read there
#   STAGE_TARGET  the same for the target dataset
#   LOCAL_DISK    folder on that disk; default: SLURM_TMPDIR, else TMPDIR, else /tmp

fail() {
    echo "error: $*" >&2
    exit 1
}

say() {
    echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"
}

# USR1 is what --signal asks for; TERM comes when Slurm ends the job. Both are handed on as USR1, which srun passes on
# to all of its tasks, on all nodes; on TERM it would end them at once.
child=
signals=0
trap 'asked_to_stop USR1' USR1
trap 'asked_to_stop TERM' TERM
asked_to_stop() {
    signals=$((signals + 1))
    say "$1 received"
    if [[ -n $child ]]; then
        kill -USR1 "$child" 2>/dev/null || true
    fi
}

if [[ -z ${PYTHON_ENV:-} && -x .venv/bin/python ]]; then
    PYTHON_ENV=.venv
fi
if [[ -n ${PYTHON_ENV:-} ]]; then
    [[ -x $PYTHON_ENV/bin/python ]] || fail "PYTHON_ENV is '$PYTHON_ENV', but there is no $PYTHON_ENV/bin/python"
    PATH=$(cd "$PYTHON_ENV/bin" && pwd):$PATH
fi
command -v python >/dev/null || fail "there is no python on PATH: name the folder of an environment in PYTHON_ENV"

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}             # since Slurm 22.05 srun does not take it over by itself
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}  # the same on every node: it decides the last bits
export PYTHONUNBUFFERED=1
export TQDM_MININTERVAL=${TQDM_MININTERVAL:-30}                 # seconds between two states of the progress bar in the log

say "on $(hostname), restarts: ${SLURM_RESTART_COUNT:-0}, $(command -v python)"

# Flags that the job adds to those of its command line.
flags=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    flags+=(--exp-suffix "seed_$SLURM_ARRAY_TASK_ID")
fi

# stage KEY PATH: copy a dataset root, which may be a folder, an archive, or lie in an archive, to every node of the job; KEY
# then names the copy.
copies=${LOCAL_DISK:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/dada-$SLURM_JOB_ID
on_every_node=()
if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then
    on_every_node=(srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1)
fi
stage() {
    local key=$1 path=${2%/} disk=${2%/} stopped_as=75
    [[ -n $path ]] || return 0
    until [[ -e $disk || $disk != */* ]]; do
        disk=${disk%/*}
    done
    if [[ $disk != "$path" && ! -f $disk || ! -e $disk ]]; then
        fail "there is no '$path' to copy for $key"
    fi
    trap '${on_every_node[@]+"${on_every_node[@]}"} rm -rf "$copies"' EXIT
    # shellcheck disable=SC2016  # the inner shell expands them
    run ${on_every_node[@]+"${on_every_node[@]}"} \
        bash -c 'mkdir -p "$2" && exec flock --no-fork "$2" cp --recursive --dereference "$1" "$2/"' \
        copy "$disk" "$copies/$key"  # one after the other, should LOCAL_DISK be the same for several nodes
    say "$disk is copied to $copies, $(du -sh "$copies/$key" | cut -f1)"
    flags+=(--set "$key=$copies/$key/$(basename "$disk")${path#"$disk"}")
}

# run COMMAND...: returns when it has succeeded. Where a signal asked it to stop, or came before it began, the job is
# requeued; on any other failure the job ends with the command's exit code. Code 75 says that it was stopped before it had
# got anywhere: such a job is requeued from its first start only, or it could come back for ever.
run() {
    local code before
    ((signals == 0)) || requeue 75
    "$@" &  # in the background, because bash does not answer signals while it waits for a command in the foreground
    child=$!
    ((signals == 0)) || kill -USR1 "$child" 2>/dev/null || true  # one that came before the shell knew whom to hand it on to
    while
        before=$signals
        wait "$child" && code=0 || code=$?
        ((signals != before))  # then it was the signal that ended `wait`
    do :; done
    child=
    case $code in
        0) ;;
        138 | 143) requeue "${stopped_as:-$code}" ;;  # 128 and the number of USR1 or TERM
        75) requeue 75 ;;
        *)
            say "exit code $code, not requeued"
            exit "$code"
            ;;
    esac
}

requeue() {
    local state
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    if [[ $state != RUNNING ]]; then
        say "Slurm is ending it ($state): cancelled, or requeued by Slurm itself"
    elif (($1 == 75 && ${SLURM_RESTART_COUNT:-0} > 0)); then
        fail "the warning before the time limit came before the first iteration, not for the first time: the job is not" \
            "requeued, or it might never end. Submit it again with a larger --time, a smaller number of seconds in --signal," \
            "or without STAGE_SOURCE and STAGE_TARGET; it goes on from the last checkpoint, if there is one"
    else
        say "is requeued"
        # Slurm may end this shell before it has answered: only an answer says that it refuses.
        scontrol requeue "$SLURM_JOB_ID" || (($? >= 128)) ||
            say "cannot be requeued on this cluster; the same sbatch command goes on where it has stopped"
    fi
    exit "$1"
}
