#!/usr/bin/env bash
# Stops this kit on this machine. Written by fedfms in place of FLARE's own stop_fl.sh, which advises a command that
# this project's rights do not allow. It asks nobody for permission: whoever runs a kit may stop it at any time.
#
#   startup/stop_fl.sh          a site: at once; a server: after a question, because its running jobs are lost
#   startup/stop_fl.sh --yes    without the question
set -u

startup="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
kit="$(dirname "$startup")"
workspace="${NVFL_WORKSPACE:-$kit}"
SECONDS_TO_WAIT=120

yes=""
for argument in "$@"; do
  case "$argument" in
    --yes) yes=1 ;;
    *)
      echo "stop_fl.sh: unknown argument '$argument'; only --yes is known" >&2
      exit 2
      ;;
  esac
done

# start.sh's lock is held until the last process of the kit has ended, those of jobs among them.
held() {
  [[ -e "$kit/start.lock" ]] && command -v flock >/dev/null && ! flock --nonblock "$kit/start.lock" true
}
loop() { [[ -e "$workspace/daemon_pid.fl" ]] && kill -0 "$(cat "$workspace/daemon_pid.fl")" 2>/dev/null; }

if ! loop; then
  if held; then
    echo "stop_fl.sh: the kit runs in the foreground (start.sh --once): stop the systemd unit or the Slurm job, or send" >&2
    echo "            the process the signal TERM" >&2
    exit 1
  fi
  echo "stop_fl.sh: the kit does not run"
  exit 0
fi
if [[ -e "$startup/fed_server.json" && -z "$yes" ]]; then
  read -r -p "Stop the server? Jobs that are running are lost; sites connect again at its next start. (y/N) " answer
  if [[ "$answer" != [yY] ]]; then
    echo "stop_fl.sh: not stopped; the answer was not y. Without a terminal: --yes" >&2
    exit 1
  fi
fi
touch "$workspace/shutdown.fl"
echo "stop_fl.sh: stopping; this takes about ten seconds"
for ((waited = 0; waited < SECONDS_TO_WAIT; waited++)); do
  sleep 1
  if ! loop && ! held; then
    echo "stop_fl.sh: stopped"
    exit 0
  fi
done
echo "stop_fl.sh: not ended after $SECONDS_TO_WAIT s; 'fedfms doctor --offline --quick $kit' says which process runs" >&2
exit 1
