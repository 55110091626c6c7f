"""The command line with short pauses between attempts to send a request, and requests of at most 10 seconds."""

from functools import partial

from twinsqueeze.cli import run
from twinsqueeze.tracking.spool import replay, uploader

if __name__ == "__main__":
    uploader.FIRST_PAUSE = uploader.LONGEST_PAUSE = 0.1
    uploader.REQUEST_TIMEOUT = 10
    replay.request_timeout = partial(replay.request_timeout, 10)
    run()
