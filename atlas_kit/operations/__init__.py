"""What the commands do, one module per operation: functions that return result objects and print nothing.

Every result has ``to_json()`` and ``exit_code`` (0 fine, 1 findings or differences, 2 unreadable input).
Knows formats and codecs; knows nothing about terminals, options or the process.
"""
