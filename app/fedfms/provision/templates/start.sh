#!/usr/bin/env bash
# Starts this kit after 'fedfms doctor' has found nothing wrong. Written by fedfms in place of FLARE's own start.sh.
#
#   startup/start.sh          starts in the background, restarts what ends unexpectedly; console.log has the output
#   startup/start.sh --once   stays in the foreground: for systemd, Slurm and containers
#
# FEDFMS_SKIP_DOCTOR=1 starts without the check.
set -u
umask 077

startup="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
FEDFMS_KIT="$(dirname "$startup")"
export FEDFMS_KIT
# The server's job store and snapshots; FLARE's default is a folder that all projects of a machine share.
export FEDFMS_STORE="${NVFL_WORKSPACE:-$FEDFMS_KIT}/store"
# Python looks for modules in the folder it is started from; this one is watched by the manifest.
cd "$startup" || exit 1

once=""
for argument in "$@"; do
  case "$argument" in
    --once) once=1 ;;
    *)
      echo "start.sh: unknown argument '$argument'; only --once is known" >&2
      exit 2
      ;;
  esac
done

if ! command -v python3 >/dev/null; then
  echo "start.sh: not started, because there is no python3 in PATH ($PATH)" >&2
  exit 1
elif ! python3 -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("fedfms") and u.find_spec("nvflare")))'; then
  echo "start.sh: not started, because $(command -v python3) has no packages fedfms and nvflare: activate the Python" >&2
  echo "environment that they are installed in ('. ENVIRONMENT/bin/activate'), or put its bin/ first in PATH" >&2
  exit 1
fi

# What another account writes into the kit, its own account could not read or lock afterwards.
if [[ ! -O "$FEDFMS_KIT" ]]; then
  owner="$(ls -ld "$FEDFMS_KIT" | awk '{print $3}')"
  echo "start.sh: not started, because the kit belongs to $owner and this account is $(id -un): start it as $owner" >&2
  exit 1
fi

# Held by every process that comes after, until the last one has ended: a site that runs twice would answer the server
# twice.
exec 9>>"$FEDFMS_KIT/start.lock" || exit 1
if ! command -v flock >/dev/null; then
  echo "start.sh: 'flock' (util-linux) is not installed: a second start of this kit would not be noticed" >&2
elif ! flock --nonblock 9; then
  echo "start.sh: not started, because this kit runs already or is being started (start.lock is held)" >&2
  exit 1
fi

if [[ "${FEDFMS_SKIP_DOCTOR:-}" == "1" ]]; then
  echo "##########################################################################" >&2
  echo "# FEDFMS_SKIP_DOCTOR=1: this kit starts UNCHECKED. Certificates, policy,  #" >&2
  echo "# exit gate, files and data were not looked at. Remove the variable.      #" >&2
  echo "##########################################################################" >&2
  echo "[T:$(date '+%Y-%m-%d %H:%M:%S')][U:$(id -un)][A:start unchecked] FEDFMS_SKIP_DOCTOR=1" >>"$FEDFMS_KIT/audit.log"
else
  code=0
  FEDFMS_STARTING=1 python3 -m fedfms.cli doctor "$FEDFMS_KIT" || code=$?
  if [[ "$code" == 1 ]]; then
    echo "start.sh: not started, because 'fedfms doctor' found something wrong (see above)" >&2
    exit 1
  elif [[ "$code" != 0 ]]; then
    echo "start.sh: not started, because 'fedfms doctor' itself was ended (exit code $code; 137: too little memory)" >&2
    exit 1
  fi
fi

if [[ -n "$once" ]]; then
  exec "$startup/sub_start.sh" --once
fi
nohup "$startup/sub_start.sh" >>"$FEDFMS_KIT/console.log" 2>&1 </dev/null &
echo "start.sh: started in the background, process $!; its output is in $FEDFMS_KIT/console.log"
echo "To stop it: $startup/stop_fl.sh"
