# Sourced by quickstart.sh and run_tests.sh, from the repository's root:
#
#   source ./setup_env.sh
#   setup_env requirements.txt [more requirement files]
#
# makes `python` an interpreter of a virtual environment that has the packages of these files:
# the one that PYTHON=... belongs to; else the active one; else .venv, made with PYTHON or python3
# if it is missing. Packages are installed only where a file or the interpreter has changed since:
# the environment's folder .oct-sd keeps a stamp for each file.

# Stop with a message.
_setup_fail() {
  printf 'error: %s\n' "$@" >&2
  exit 1
}

# Print the folder of the virtual environment an interpreter belongs to; nothing if it has none.
_setup_environment_of() {
  "$1" -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else "", end="")'
}

_setup_check_version() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || _setup_fail \
    "Python 3.11 or newer is needed (the pinned packages ask for it); $1 is $("$1" --version 2>&1 || echo 'not to be started')." \
    "Name another one, e.g.: PYTHON=python3.12 bash $(basename "$0")"
}

# Make .venv with the interpreter $1, unless it is there, works, and is of the version asked for.
_setup_make_venv() {
  local version='import sys; print(sys.version_info[:2])'
  if [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if [ -z "${PYTHON:-}" ] || [ "$("$1" -c "$version")" = "$(.venv/bin/python -c "$version")" ]; then
      return
    fi
  fi
  echo "setting up .venv with $("$1" --version)" >&2
  "$1" -m venv --clear .venv || _setup_fail \
    "$1 could not make the environment .venv; its message is above." \
    "On Debian and Ubuntu the package python3-venv is needed."
}

# Print what the stamp of a requirement file must be: hash of the file, version of the interpreter.
_setup_stamp() {
  python - "$1" <<'PYTHON_END'
import hashlib, pathlib, platform, sys
print(hashlib.sha256(pathlib.Path(sys.argv[1]).read_bytes()).hexdigest(), platform.python_version())
PYTHON_END
}

setup_env() {
  local interpreter="${PYTHON:-python3}" environment="" file stale=()
  if [ -z "${PYTHON:-}" ] && [ -n "${VIRTUAL_ENV:-}" ]; then
    interpreter="$VIRTUAL_ENV/bin/python"
  fi
  command -v "$interpreter" >/dev/null || _setup_fail \
    "there is no $interpreter." \
    "Install Python 3.11 or newer, or name it: PYTHON=/path/to/python bash $(basename "$0")"
  _setup_check_version "$interpreter"
  environment="$(_setup_environment_of "$interpreter")"
  if [ -z "$environment" ]; then
    _setup_make_venv "$interpreter"
    environment="$PWD/.venv"
  fi
  export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"
  unset PYTHONHOME
  hash -r

  for file in "$@"; do
    if [ "$(cat "$environment/.oct-sd/$file" 2>/dev/null)" != "$(_setup_stamp "$file")" ]; then
      stale+=("$file")
    fi
  done
  if [ "${#stale[@]}" -eq 0 ]; then
    return
  fi
  echo "installing ${stale[*]} into $environment; the first time this loads some GB and takes minutes" >&2
  # All files, not the stale ones only, so that pip sees every pin at once.
  # shellcheck disable=SC2046
  python -m pip install --disable-pip-version-check --quiet --progress-bar off \
    $(printf -- '-r %s ' "$@") || _setup_fail \
    "pip could not install ${stale[*]}; its message is above." \
    "Without network: install them into an environment elsewhere, activate it, and start again."
  mkdir -p "$environment/.oct-sd"
  for file in "$@"; do
    _setup_stamp "$file" >"$environment/.oct-sd/$file"
  done
}
