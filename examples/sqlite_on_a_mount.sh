#!/bin/sh
# One SQLite database, two writers at once: one on the mount, one in the source directory.
#
#     examples/sqlite_on_a_mount.sh [ROWS]
#
# Locks are taken on the source too, so the writers wait for each other, and no row is lost.
set -eu
mountctl=${MOUNTCTL:-$(dirname "$0")/../mountctl}

add() { # DATABASE WHO ROWS: a transaction a row
	seq "$3" | sed "s/.*/INSERT INTO event (who) VALUES ('$2');/" |
		sqlite3 -cmd '.timeout 60000' "$1"
}

if [ -z "${ZCFS_MNT:-}" ]; then # make the database, then run this file again on a mount of it
	source=$(mktemp -d)
	trap 'rm -r "$source"' EXIT
	sqlite3 "$source/event.db" 'CREATE TABLE event (id INTEGER PRIMARY KEY, who TEXT)'
	"$mountctl" run "$source" -- "$0" "$source" "${1:-100}"
	exit
fi

source=$1 rows=$2
add "$source/event.db" source "$rows" &
add "$ZCFS_MNT/event.db" mount "$rows"
wait $!
for side in "$source" "$ZCFS_MNT"; do
	echo "$side"
	sqlite3 "$side/event.db" 'SELECT who, count(*) FROM event GROUP BY who'
	test "$(sqlite3 "$side/event.db" 'SELECT count(*) FROM event')" = $((2 * rows))
	test "$(sqlite3 "$side/event.db" 'PRAGMA integrity_check')" = ok
done
