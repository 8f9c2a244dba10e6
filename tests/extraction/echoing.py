"""Something to run in another process."""

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
