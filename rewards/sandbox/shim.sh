# Runs first inside a box: numbers the descriptors, sets the limits that only hold from inside, starts
# the program and stays as the first process, whose end is the end of all others. Arguments: ready,
# moves, KiB of address space, CPU seconds, KiB of a file, processes, then the command. The byte on
# `ready` says that all of it worked. Staying, it is reaped by bubblewrap, which would leave a first
# process of its own to whatever runs as process 1 outside.
set -e
ready=$1 moves=$2 memory=$3 seconds=$4 file=$5 processes=$6
shift 6
for move in $moves; do
  eval "exec ${move%:*}<&${move#*:} ${move#*:}<&-"
done
echo 1000 >/proc/self/oom_score_adj
ulimit -c 0
ulimit -n 64
ulimit -f "$file"
[ -z "$processes" ] || ulimit -u "$processes"
ulimit -S -t "$seconds"
ulimit -H -t "$((seconds + 1))"
ulimit -v "$memory"
printf . >&"$ready"
exec {ready}>&-
# A background job would ignore two signals, and so do we when we were started as one: a shell cannot
# undo what it was born with.
env --default-signal=INT,QUIT "$@" <&0 &
for move in 0 1 2 $moves; do
  eval "exec ${move%:*}<&-"
done
wait "$!"
