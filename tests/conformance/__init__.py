"""One suite for every executor: ours with each start method, the serial one, and the stdlib's as control."""
