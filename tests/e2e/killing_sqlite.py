"""Runs a command whose process gets SIGKILL at one of its writes to SQLite.

``python killing_sqlite.py KILL_AT WHEN python -P -m shoal.node.cli up …`` runs that command
in this process, with a connection to SQLite that counts: the commit that writes a job is
the first, and the process dies right ``before`` or right ``after`` the one that is asked
for. What a daemon runs knows nothing of it.
"""

import os
import runpy
import signal
import sqlite3
import sys
from functools import partial


class KillingConnection(sqlite3.Connection):
    """Dies at one commit after the first job was written."""

    commits = None
    kill_at, when = 0, ""

    def executemany(self, statement, rows):
        if statement.startswith("INSERT INTO jobs") and self.commits is None:
            KillingConnection.commits = 0
        return super().executemany(statement, rows)

    def execute(self, statement, *values):
        if statement != "COMMIT" or self.commits is None:
            return super().execute(statement, *values)
        KillingConnection.commits += 1
        due = self.commits == self.kill_at
        if due and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = super().execute(statement)
        if due and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor


if __name__ == "__main__":
    KillingConnection.kill_at, KillingConnection.when = int(sys.argv[1]), sys.argv[2]
    sqlite3.connect = partial(sqlite3.connect, factory=KillingConnection)
    sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
