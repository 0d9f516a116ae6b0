"""psycopg 3, which is libpq below, through the routed port. Usage: psycopg3.py DSN

Prints `ready`, waits for a line on its standard input (a switchover happens meanwhile), and goes on
in the same session. Prints `done` when everything was as it should be.
"""

import sys
import threading

import psycopg
from psycopg import sql

dsn = sys.argv[1]


def basics(conn):
    assert conn.execute("select 1 + %s", (1,)).fetchone() == (2,)
    # Prepared by the driver after a few executions, and used by name from then on.
    for i in range(10):
        assert conn.execute("select %s::int * 2", (i,), prepare=True).fetchone() == (i * 2,)
    assert conn.execute("select %b::text", ("ü" * 1000,)).fetchone() == ("ü" * 1000,)
    big = "x" * 10_000_000
    assert conn.execute("select %s::text", (big,)).fetchone() == (big,)


def errors(conn):
    try:
        conn.execute("select 1/0")
        raise AssertionError("a division by zero passed")
    except psycopg.errors.DivisionByZero:
        pass
    try:
        with conn.transaction():
            conn.execute("insert into psycopg_rows values (1)")
            conn.execute("insert into psycopg_rows values ('no number')")
    except psycopg.errors.InvalidTextRepresentation:
        pass
    assert conn.execute("select count(*) from psycopg_rows").fetchone() == (0,)


def pipelines(conn):
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (i,)) for i in range(100)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(100))
    try:
        with conn.pipeline(), conn.transaction():
            conn.execute("insert into psycopg_rows values (5)")
            conn.execute("select 1/0")
            conn.execute("insert into psycopg_rows values (6)")
        raise AssertionError("a pipeline with an error passed")
    except (psycopg.errors.DivisionByZero, psycopg.errors.PipelineAborted):
        pass
    assert conn.execute("select count(*) from psycopg_rows").fetchone() == (0,)


def copies(conn):
    with conn.transaction(), conn.cursor() as cursor:
        with cursor.copy("copy psycopg_rows from stdin") as copy:
            for i in range(50_000):
                copy.write_row((i,))
        with cursor.copy("copy psycopg_rows to stdout (format binary)") as copy:
            size = sum(len(block) for block in copy)
        assert size > 50_000 * 10, size
    try:
        with conn.cursor().copy("copy psycopg_rows from stdin") as copy:
            copy.write_row((1,))
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert conn.execute("select count(*) from psycopg_rows").fetchone() == (50_000,)


def cursors(conn):
    with conn.transaction():
        with conn.cursor(name="rows") as cursor:
            cursor.itersize = 1000
            cursor.execute("select * from psycopg_rows order by 1")
            assert sum(1 for _ in cursor) == 50_000


def notices(conn):
    seen = []
    conn.add_notice_handler(lambda notice: seen.append(notice.message_primary))
    conn.execute("do $$ begin raise notice 'hello %', 1; end $$")
    assert seen == ["hello 1"], seen
    conn.execute("listen psycopg_channel")
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("notify psycopg_channel, 'word'")
    heard = next(conn.notifies(timeout=20, stop_after=1))
    assert heard.payload == "word"


def cancels(conn):
    timer = threading.Timer(0.3, conn.cancel)
    timer.start()
    try:
        conn.execute("select pg_sleep(60)")
        raise AssertionError("it was not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    timer.join()


def main():
    conn = psycopg.connect(dsn, autocommit=True, application_name="driver psycopg")
    conn.execute("drop table if exists psycopg_rows")
    conn.execute("create table psycopg_rows (i int)")
    for part in (basics, errors, pipelines, copies, cursors, notices, cancels):
        part(conn)
    conn.execute("set work_mem = '7MB'")
    conn.execute("set timezone = 'Asia/Kathmandu'")
    print("ready", flush=True)
    sys.stdin.readline()
    assert conn.execute("show work_mem").fetchone() == ("7MB",)
    assert conn.execute("show timezone").fetchone() == ("Asia/Kathmandu",)
    assert conn.execute("show application_name").fetchone() == ("driver psycopg",)
    # The statement that was prepared before.
    assert conn.execute("select %s::int * 2", (21,), prepare=True).fetchone() == (42,)
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(sql.SQL("notify psycopg_channel, {}").format("again"))
    heard = next(conn.notifies(timeout=20, stop_after=1))
    assert heard.payload == "again"
    basics(conn)
    conn.close()
    print("done", flush=True)


main()
