"""The shared structures at full speed, each with the seven tests that crossbeam-deque has for its queues.

    smoke           in and out, one after the other
    is_empty        what another process is told about emptiness
    spsc            one producer, one consumer: all, in order
    stampede        everybody at the same moment
    stress          random acts of everybody
    no_starvation   everybody gets a share
    destructors     everything ends once, whoever is killed meanwhile

Processes are forked; some hold several threads.  Each test runs for robust mutexes and for record locks, as a fast
variant and as a `slow` one.
"""
