"""Benchmarks: p2player beside its rivals, in the same run, as ratios.

trees     real trees of a wanted size, from files that the machine has
ssh       an OpenSSH server on loopback, of our own
figures   repeated timing, medians, the table and the JSON
__main__  the run itself: `make bench`
"""
