"""p2player beside rsync and casync: seconds of whole commands, and bytes on the wire.

plan      which runs there are: cases, links, contestants, sizes that suit a link; pure
targets   the goals, as data
stage     one pair of trees, made ready between two hosts
measured  one whole command: its seconds, and what crossed the wire meanwhile
tools     the contestants: what each does before, in, and after a run
rivals    rsync and casync
ours      p2player, its nodes in the two hosts
memory    how much memory nodes take for very large layers
results   the store of runs, JSON lines, that a bench resumes from; medians
table     figures and goals, printed
plots     figures and goals, drawn
__main__  the run itself: `make bench-sync`
"""
