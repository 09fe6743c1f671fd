# Runs first inside a box: numbers the descriptors, sets the limits that only hold from inside, and
# becomes the program. Arguments: ready, moves, KiB of address space, CPU seconds, KiB of a file,
# processes, then the command. The byte on `ready` says that all of it worked.
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
exec "$@"
