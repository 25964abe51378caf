"""What each command takes: click alone is imported here, so that help and completion of shells come at once.

A command's work lies in the module of its name beside this package, which is imported when the command is run.
"""
