"""What the pipeline's tests look at: files of a store, failures, finished parts; and a signal at a given moment."""

import os
import signal
import threading
import time

from calmrl_lab.store import FeatureStore


def contents(store):
    """Every file of a store but the provenance."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "provenance.json"
    }


def failures(store):
    """id -> reason code of the failed media of a store."""
    return {record["id"]: record["code"] for record in FeatureStore.open(store).failures()}


def parts(out):
    """The finished blocks of an extraction under way."""
    return sorted(out.with_name(out.name + ".parts").glob("*.part"))


def signalled(out, number=signal.SIGINT, after=2):
    """Send this process a signal as soon as `after` blocks of `out` are finished."""

    def watch():
        while len(parts(out)) < after:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
