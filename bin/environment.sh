# Sourced by bin/agentos and bin/test, which set `root`: keeps a virtual environment true to pyproject.toml.
#
# A start with nothing to do costs a few file checks and no program but the one it execs. The stamp is written last and
# removed first, so an install that was interrupted is begun again; the directory itself is the lock.

set -euo pipefail

fail() {
  printf 'agentos: %s\n' "$@" >&2
  exit 125
}

# The three rooms are reached through links; git writes text files in their place where core.symlinks is false.
check_rooms() {
  local room link
  for room in supervisor sandbox policies; do
    link=$root/agentos/$room
    [[ -L $link || -d $link ]] && continue
    if rm -f -- "$link" 2>/dev/null && ln -s "../$room" "$link" 2>/dev/null; then
      printf 'agentos: repaired the link %s\n' "$link" >&2
    else
      fail "$link must be a symbolic link to ../$room" \
        "allow links in this clone: git -C $root config core.symlinks true && git -C $root checkout -- agentos"
    fi
  done
}

# Sets `stamp` to what an environment for this checkout must carry. Only builtins: this runs at every start.
read_stamp() { # extra
  IFS= read -rd '' stamp <"$root/pyproject.toml" || true
  stamp="$root $1"$'\n'$stamp
}

is_current() { # directory
  local found=''
  [[ -x $1/bin/python && -r $1/stamp ]] || return 1
  IFS= read -rd '' found <"$1/stamp" || true
  [[ $found == "$stamp" ]]
}

# Sets `venv`: in the checkout, else (when that may not be written) in the user's cache, else in a private place in /tmp.
find_venv() { # name
  venv=$root/$1
  if is_current "$venv" || [[ -w $venv || ( -w $root && ! -e $venv ) ]]; then
    return
  fi
  local cache=${XDG_CACHE_HOME:-} name=${root//\//%}
  if [[ -z $cache && -n ${HOME:-} && -w $HOME ]]; then
    cache=$HOME/.cache
  fi
  if [[ -z $cache ]]; then
    cache=/tmp/agentos-cache-$UID
    mkdir -m 0700 -- "$cache" 2>/dev/null || true
    [[ -O $cache && -d $cache && ! -L $cache ]] || fail "$cache belongs to someone else; set XDG_CACHE_HOME"
  fi
  ((${#name} <= 200)) || name=${name: -200} # a file name holds 255 bytes
  venv=$cache/agentos/$name$1
  export PYTHONPYCACHEPREFIX=$venv/pycache # the checkout cannot hold the bytecode either
}

# The least that an interpreter must do for us. Ends with 0 when every user can execute it, 3 when only some can.
probe='
import os, stat, sys
if sys.version_info < (3, 11):
    sys.exit(1)
import ensurepip, venv
path = os.path.realpath(sys._base_executable)
print(path)
while path != "/":
    if not os.stat(path).st_mode & stat.S_IXOTH:
        sys.exit(3)
    path = os.path.dirname(path)
'

# Sets `python`. The system one first: what lies first on PATH may be in a home where other users cannot go.
find_python() {
  local candidate found code private=''
  local IFS=:
  set -f
  for candidate in /usr/bin/python3 /usr/local/bin/python3 \
    /usr/bin/python3.1{1,2,3,4,5} /usr/local/bin/python3.1{1,2,3,4,5} ${PATH//:/\/python3:}/python3; do
    [[ -x $candidate ]] || continue
    code=0
    found=$("$candidate" -I -c "$probe" 2>/dev/null) || code=$?
    case $code in
      0) python=$found && set +f && return ;;
      3) private=${private:-$found} ;;
    esac
  done
  set +f
  python=$private
  [[ -n $python ]] || fail "no Python 3.11 or newer with the venv and ensurepip modules was found" \
    "on Debian or Ubuntu: apt-get install python3-venv; elsewhere put a newer python3 on PATH"
}

# Sets `venv` to an environment that holds what pyproject.toml asks for, with its optional `extra`; makes or mends it.
ensure_venv() { # name extra
  check_rooms
  read_stamp "$2"
  find_venv "$1"
  is_current "$venv" && return
  mkdir -p -- "$venv" || fail "$venv cannot be made; set XDG_CACHE_HOME to a directory you may write"
  exec 9<"$venv"
  if ! flock -n 9; then
    printf 'agentos: waiting for another start that is installing into %s\n' "$venv" >&2
    flock 9
  fi
  is_current "$venv" || install_venv "$2"
  exec 9<&-
}

install_venv() { # extra
  printf 'agentos: installing what pyproject.toml asks for into %s …\n' "$venv" >&2
  if [[ -x $venv/bin/python && -e $venv/stamp ]] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    rm -f -- "$venv/stamp"
  else
    find_python
    rm -f -- "$venv/stamp"
    "$python" -I -m venv --clear "$venv" || fail "$python could not make a virtual environment in $venv"
  fi
  "$venv/bin/python" -I - "$root" "$1" >"$venv/requirements.txt" <<'PYTHON'
import pathlib, sys, tomllib
root, extra = sys.argv[1:]
project = tomllib.loads((pathlib.Path(root) / "pyproject.toml").read_text())["project"]
print(*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ()), sep="\n")
PYTHON
  "$venv/bin/python" -I -m pip install --quiet --no-input --disable-pip-version-check -r "$venv/requirements.txt" >&2 ||
    fail "the install did not finish; run the command again when the cause above is mended"
  # The checkout itself is on the path: `python -m agentos` works, and nothing has to be installed twice.
  local site=("$venv"/lib/python3*/site-packages)
  printf '%s\n' "$root" >"${site[0]}/agentos-checkout.pth"
  printf '%s' "$stamp" >"$venv/stamp.new"
  mv -f -- "$venv/stamp.new" "$venv/stamp"
  printf 'agentos: installed\n' >&2
}
