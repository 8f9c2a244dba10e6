"""Something to run in another process."""

import os
import struct
import time


def echo(connection, factor):
    """Answers numbers with their multiples; 0 is not answered, a negative one ends the process."""
    while True:
        number = connection.recv()
        if number < 0:
            raise SystemExit(5)
        if number == 0:
            time.sleep(100)
        connection.send(number * factor)


def break_off(connection):
    """Ends in the middle of a message, as a process does that is killed while it speaks."""
    os.write(connection.fileno(), struct.pack("!i", 100) + b"the first words")
    os._exit(5)
