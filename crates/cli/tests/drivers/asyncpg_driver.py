"""asyncpg, which speaks the protocol by itself, through the routed port. As psycopg3.py."""

import asyncio
import sys

import asyncpg

dsn = sys.argv[1]


async def basics(conn):
    assert await conn.fetchval("select 1 + $1::int", 1) == 2
    statement = await conn.prepare("select $1::int * 2")
    for i in range(10):
        assert await statement.fetchval(i) == i * 2
    big = b"x" * 10_000_000
    assert await conn.fetchval("select $1::bytea", big) == big


async def errors(conn):
    try:
        async with conn.transaction():
            await conn.execute("insert into asyncpg_rows values (1)")
            await conn.execute("select 1/0")
        raise AssertionError("a division by zero passed")
    except asyncpg.DivisionByZeroError:
        pass
    assert await conn.fetchval("select count(*) from asyncpg_rows") == 0


async def copies(conn):
    rows = [(i,) for i in range(50_000)]
    await conn.copy_records_to_table("asyncpg_rows", records=rows)
    size = 0

    async def count(data):
        nonlocal size
        size += len(data)

    await conn.copy_from_query("select * from asyncpg_rows", output=count)
    assert size > 50_000 * 4, size
    async with conn.transaction():
        seen = 0
        async for _ in conn.cursor("select * from asyncpg_rows", prefetch=1000):
            seen += 1
        assert seen == 50_000
    await conn.executemany("insert into asyncpg_rows values ($1)", rows[:1000])
    assert await conn.fetchval("select count(*) from asyncpg_rows") == 51_000


async def cancels(conn):
    try:
        await asyncio.wait_for(conn.execute("select pg_sleep(60)"), 0.3)
        raise AssertionError("it was not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await conn.fetchval("select 1") == 1


async def hear(conn, word):
    heard = asyncio.get_running_loop().create_future()
    listener = lambda *args: heard.done() or heard.set_result(args[3])  # noqa: E731
    await conn.add_listener("asyncpg_channel", listener)
    other = await asyncpg.connect(dsn)
    await other.execute(f"notify asyncpg_channel, '{word}'")
    await other.close()
    assert await asyncio.wait_for(heard, 20) == word
    return listener


async def main():
    conn = await asyncpg.connect(dsn, server_settings={"application_name": "driver asyncpg"})
    await conn.execute("drop table if exists asyncpg_rows")
    await conn.execute("create table asyncpg_rows (i int)")
    for part in (basics, errors, copies, cancels):
        await part(conn)
    await hear(conn, "word")
    await conn.execute("set work_mem = '7MB'")
    statement = await conn.prepare("select $1::int * 3")
    assert await statement.fetchval(1) == 3
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    assert await conn.fetchval("show work_mem") == "7MB"
    assert await conn.fetchval("show application_name") == "driver asyncpg"
    # The statement that was prepared before.
    assert await statement.fetchval(14) == 42
    await hear(conn, "again")
    await basics(conn)
    await conn.close()
    print("done", flush=True)


asyncio.run(main())
