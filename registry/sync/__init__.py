"""Locks, calls in other threads, and interrupts.

interrupts    exceptions that a signal handler raises into our code
locks         locks between threads that an interrupt leaves whole
threads       calls in other threads
"""
