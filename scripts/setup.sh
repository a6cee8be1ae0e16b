#!/usr/bin/env bash
# Makes .venv: vLLM, torch, the tools and prefmix itself. `make` calls it before everything else.
#
#   scripts/setup.sh [--quiet]     --quiet: print nothing if there is nothing to do
#   BACKEND=cpu|gpu                default: the backend of .venv, else gpu if nvidia-smi works
#   PYTHON=python3.12              default: the first python3 that is new enough
#
# A stamp in .venv names its inputs. After an interruption the next run resumes.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0+cpu
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
VENV=.venv
STAMP=$VENV/prefmix-setup
LOG=.prefmix/setup.log

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore PIP_PROGRESS_BAR=off
unset PYTHONPATH PYTHONHOME

die() {
    printf 'set-up: %s\n' "$1" >&2
    exit 1
}

# --- the state of .venv ----------------------------------------------------------------------

stamped() { sed -n "s/^$1=//p" "$STAMP" 2>/dev/null || true; }

# A stamp of another folder means a copied .venv, whose scripts would still run the old one.
made_here=no
[ "$(stamped folder)" = "$PWD" ] && made_here=yes

backend=${BACKEND:-}
[ -z "$backend" ] && [ $made_here = yes ] && backend=$(stamped backend)
if [ -z "$backend" ]; then
    backend=cpu
    nvidia-smi -L >/dev/null 2>&1 && backend=gpu
fi
case $backend in
    cpu) requirements=requirements/cpu.lock ;;
    gpu) requirements=requirements/gpu.txt ;;
    *) die "BACKEND is '$backend'; allowed: cpu, gpu" ;;
esac

inputs=$(cat "$requirements" pyproject.toml scripts/setup.sh | sha256sum | cut -d ' ' -f 1)

python_version() { "$1" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null; }

is_done() {
    if [ -n "${PYTHON:-}" ] && [ ! -e "$VENV/lib/python$(python_version "$PYTHON")" ]; then
        return 1
    fi
    [ "$(stamped folder)" = "$PWD" ] && [ "$(stamped backend)" = "$backend" ] &&
        [ "$(stamped inputs)" = "$inputs" ] && [ -x $VENV/bin/python ]
}

if is_done; then
    [ "${1:-}" = --quiet ] || echo "set-up is complete ($backend); nothing to do"
    exit 0
fi

# One set-up runs at a time: a second one waits, then finds the work done.
exec 9<scripts/setup.sh
if command -v flock >/dev/null && ! flock -n 9; then
    echo "set-up: waiting for another one in this folder"
    flock 9
    is_done && exit 0
fi

# --- requirements of the machine -------------------------------------------------------------

is_new_enough() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null
}

python=${PYTHON:-}
if [ -n "$python" ]; then
    command -v "$python" >/dev/null || die "PYTHON is '$python', which does not exist"
    is_new_enough "$python" ||
        die "PYTHON is '$python' ($("$python" -V 2>&1)); it must be 3.11 to 3.14"
else
    for candidate in python3 python3.12 python3.13 python3.11 python3.14; do
        if is_new_enough "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] ||
        die "no Python 3.11 to 3.14 found; on Debian or Ubuntu: apt-get install python3 python3-venv"
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    die "$python lacks its venv module; on Debian or Ubuntu: apt-get install python3-venv"
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null ||
    die "no C compiler found; on Debian or Ubuntu: apt-get install build-essential"

has_numa() { "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; }
if [ "$backend" = cpu ] && ! has_numa; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        install_numa=yes
    else
        die "libnuma.so.1, which vLLM's CPU build loads, is missing; apt-get install libnuma1"
    fi
fi

headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ "$backend" = cpu ] || [ -f "$headers/Python.h" ] ||
    die "$headers/Python.h, with which Triton compiles on a GPU, is missing; on Debian or Ubuntu: apt-get install python3-dev"

vllm=$(sed -nE 's/^vllm(-cpu)?==([^ ]+).*/\2/p' $requirements)

# --- the steps -------------------------------------------------------------------------------

mkdir -p "$(dirname $LOG)"
: >$LOG
started=$SECONDS
step=0
num_steps=5
if [ "$backend" = gpu ]; then num_steps=4; fi
if [ -n "${install_numa:-}" ]; then num_steps=$((num_steps + 1)); fi

ticker=
end_ticker() {
    if [ -n "$ticker" ]; then
        kill "$ticker" 2>/dev/null || true
        wait "$ticker" 2>/dev/null || true
        ticker=
    fi
}

stop() {
    trap - INT TERM
    end_ticker
    printf '\nset-up: interrupted; run it again to resume\n' >&2
    exit 130
}
trap stop INT TERM

# do_step TITLE COMMAND...: prints one line, then the time, or the end of the log if it fails.
do_step() {
    local title=$1 begun=$SECONDS line status=0
    shift
    step=$((step + 1))
    line=$(printf '  [%d/%d] %-52s' $step $num_steps "$title")
    printf '%s' "$line"
    printf '\n== %s\n' "$title" >>$LOG
    if [ -t 1 ]; then
        while sleep 1; do printf '\r%s %4d s' "$line" $((SECONDS - begun)); done &
        ticker=$!
    fi
    # In a subshell, so that the command cannot end this one; in the foreground, so that Ctrl-C reaches it.
    ("$@") >>$LOG 2>&1 </dev/null || status=$?
    end_ticker
    if [ -t 1 ]; then printf '\r%s' "$line"; fi
    if [ $status = 0 ]; then
        printf ' %4d s\n' $((SECONDS - begun))
        return
    fi
    printf ' failed\n\n' >&2
    grep -v '^WARNING: Location' $LOG | tail -n 12 | cut -c 1-160 | sed 's/^/    /' >&2
    printf '\nset-up failed at "%s"; the whole log is %s. Run "make setup" again to resume.\n' \
        "$title" $LOG >&2
    exit 1
}

install_system_library() {
    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libnuma1
}

is_usable_venv() {
    if [ -e $STAMP ]; then
        [ $made_here = yes ] && [ "$(stamped backend)" = "$backend" ] || return 1
    fi
    # A moved .venv's scripts still name the old folder.
    [ -e "$VENV/lib/python$1" ] && head -n 1 $VENV/bin/pip | grep -qF "$PWD/" &&
        $VENV/bin/python -m pip --version
}

make_venv() {
    local wanted
    wanted=$(python_version "$python")
    is_usable_venv "$wanted" || "$python" -m venv --clear $VENV || return
    # A killed pip leaves records of packages that look installed: remove those.
    local record
    for record in "$VENV/lib/python$wanted/site-packages/"*.dist-info; do
        if [ -d "$record" ] && [ ! -e "$record/INSTALLER" ]; then rm -r "$record"; fi
    done
    rm -rf "$VENV/lib/python$wanted/site-packages/"~*
    # From here on .venv is unfinished; the rest of the stamp follows at the end.
    printf 'folder=%s\nbackend=%s\n' "$PWD" "$backend" >$STAMP
}

# Byte-compiling every file would nearly double the time. `first_import` compiles the files that a
# start needs; any other is compiled at its first import.
pip_install() { $VENV/bin/python -m pip install --no-compile "$@"; }

install_torch() {
    # `==X+cpu` matches only a CPU build, which pip may find by its own configuration.
    pip_install --no-deps "torch==$TORCH" ||
        pip_install --no-deps --timeout 15 --retries 1 --index-url $TORCH_CPU_INDEX "torch==$TORCH"
}

# setuptools is installed by now, so the build fetches nothing.
install_prefmix() {
    # Earlier versions left their metadata here, where `python -m` would read it first.
    rm -rf prefmix.egg-info
    pip_install --no-deps --no-build-isolation -e .
}

# Also shows that the packages can be loaded.
first_import() {
    PYTHONDONTWRITEBYTECODE='' $VENV/bin/python -c "
import openai, pytest, torch._inductor.compile_fx, transformers, vllm
import vllm.entrypoints.openai.api_server, vllm.model_executor.models.llama, vllm.v1.engine.core
import vllm.v1.worker.${backend}_worker
import prefmix.server, prefmix.weights, prefmix.mixing"
}

echo "set-up: $("$python" -V 2>&1), $backend, into $VENV"
if [ -n "${install_numa:-}" ]; then
    do_step "apt-get install libnuma1" install_system_library
fi
do_step "virtual environment" make_venv
if [ "$backend" = cpu ]; then
    do_step "torch $TORCH" install_torch
    do_step "vLLM $vllm and $(($(grep -c == $requirements) - 1)) more packages" \
        pip_install --no-deps -r $requirements
else
    do_step "vLLM $vllm with the CUDA build of torch (several GB)" pip_install -r $requirements
fi
do_step "prefmix" install_prefmix
do_step "first import" first_import

printf 'inputs=%s\n' "$inputs" >>$STAMP
echo "set-up is complete ($((SECONDS - started)) s)"
include=$($VENV/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
if [ ! -e "$include/Python.h" ] || ! command -v c++ >/dev/null; then
    echo "note: running compiled (enforce_eager: false) also needs: apt-get install g++ python3-dev"
fi
command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null ||
    echo "note: testing the console also needs a browser: apt-get install chromium"
