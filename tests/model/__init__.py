"""Hypothesis drives each shared structure and a plain-Python model of it side by side.

Any act may be cut off at any access to a shared word, as by an exception or by a death whose repair follows: the
structure must then be as before the act or as after it.
"""
