#!/bin/bash
# keep.sh DIR NAME CMD...: runs CMD with its output in DIR/NAME.log, and runs it
# again when it ends, as an init system would; DIR/NAME.pid is its id in this
# PID namespace. While there is DIR/NAME.hold it is not run again.
dir=$1 name=$2
shift 2
exec 2>>"$dir/$name.log" # the shell's own words about its end, too
while :; do
	while [ -e "$dir/$name.hold" ]; do read -rt 0.1 <> <(:); done
	"$@" >>"$dir/$name.log" 2>&1 </dev/null &
	echo $! >"$dir/$name.pid.new"
	mv "$dir/$name.pid.new" "$dir/$name.pid"
	wait $!
	echo "keep: $name ended with status $?" >>"$dir/$name.log"
	read -rt 0.3 <> <(:)
done
