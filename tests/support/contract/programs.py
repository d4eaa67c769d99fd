"""Small applications for every engine: text for a plain `sh`, be it dash on the host or busybox in a guest.

Each prints `ready` once it takes signals. What it keeps in memory it tells in its output: `tick TOKEN COUNT`, where the
token is drawn at each start, so that an application that goes on is told from one that was started again.
"""

COUNTER = """
count=0
[ -f "$P2P_STATE/count" ] && read -r count <"$P2P_STATE/count"
save() { echo "$count" >"$P2P_STATE/count.new" && mv "$P2P_STATE/count.new" "$P2P_STATE/count"; }
trap 'save; exit 0' TERM
trap save USR1
read -r token </proc/sys/kernel/random/uuid
echo "ready $count"
while :; do
    count=$((count + 1))
    echo "tick $token $count"
    sleep 0.05
done
"""

IGNORES_SIGTERM = """
trap '' TERM
echo ready
while :; do sleep 0.2; done
"""

DIES_YOUNG = """
echo 'cannot open the database'
exit 4
"""

DIES_LATER = """
echo ready
sleep 2
exit 7
"""

FAMILY = """
linger() { while :; do sleep 0.2; done; }
linger &
setsid sh -c 'while :; do sleep 0.2; done' &
trap 'exit 0' TERM
echo ready
while :; do sleep 0.2; done
"""

STUBBORN_FAMILY = FAMILY.replace("\nlinger &", "\ntrap '' TERM\nlinger &")

TALKATIVE = """
line=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
line=$line$line$line$line$line$line$line$line$line$line$line$line$line$line$line$line
i=0
while [ $i -lt 12288 ]; do
    echo "$line"
    i=$((i + 1))
done
echo 'the end'
while :; do sleep 0.2; done
"""
"""Prints 12 MiB at once."""
