"""The command line.

May use: top level.
"""
