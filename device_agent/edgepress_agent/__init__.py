"""The daemon of edgepress: fetches models, measures and runs them on this board, and tells the host.

Read `daemon` first, then `converge`. Nothing here imports torch, and nothing but the child process imports numpy.
"""
