"""What the contract suite of backends needs of each engine.

programs   small shell programs, the same text on every engine
rigs       the seam: how applications get onto an engine, what may be expected of it; the rig of the process backend
leftovers  one folder a test process for all that engines make, and what refers to it: found, swept, reported
reaper     sweeps when the test process is killed
"""
