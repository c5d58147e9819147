"""Locks, calls in other threads, and interrupts.

interrupts    exceptions that a signal handler raises into our code
imports       errors of modules that are imported when they are first used
locks         locks between threads that an interrupt leaves whole
threads       calls in other threads
"""
