// node-postgres through the routed port. As psycopg3.py.

const assert = require('node:assert')
const readline = require('node:readline')
const { Client } = require('pg')

const dsn = process.argv[2]

async function basics(client) {
  assert.equal((await client.query('select 1 + $1::int as n', [1])).rows[0].n, 2)
  // Several statements in one message, several results.
  const results = await client.query('select 1 as a; select 2 as b')
  assert.equal(results.length, 2)
  const named = { name: 'twice', text: 'select $1::int * 2 as n' }
  for (let i = 0; i < 10; i++) {
    assert.equal((await client.query({ ...named, values: [i] })).rows[0].n, i * 2)
  }
  const big = 'x'.repeat(10_000_000)
  assert.equal((await client.query('select $1::text as t', [big])).rows[0].t, big)
}

async function errors(client) {
  await client.query('begin')
  await client.query('insert into node_rows values (1)')
  await assert.rejects(client.query('select 1/0'), { code: '22012' })
  await assert.rejects(client.query('select 1'), { code: '25P02' })
  await client.query('rollback')
  assert.equal((await client.query('select count(*)::int as n from node_rows')).rows[0].n, 0)
}

async function hear(client, word) {
  const heard = new Promise((resolve) => client.once('notification', (m) => resolve(m.payload)))
  const other = new Client(dsn)
  await other.connect()
  await other.query(`notify node_channel, '${word}'`)
  await other.end()
  assert.equal(await heard, word)
}

async function main() {
  const client = new Client({ connectionString: dsn, application_name: 'driver node' })
  await client.connect()
  await client.query('drop table if exists node_rows')
  await client.query('create table node_rows (i int)')
  await basics(client)
  await errors(client)
  const notice = new Promise((resolve) => client.once('notice', (n) => resolve(n.message)))
  await client.query("do $$ begin raise notice 'hello'; end $$")
  assert.equal(await notice, 'hello')
  await client.query('listen node_channel')
  await hear(client, 'word')
  await client.query("set work_mem = '7MB'")
  console.log('ready')
  const lines = readline.createInterface({ input: process.stdin })
  await new Promise((resolve) => lines.once('line', resolve))
  lines.close()
  assert.equal((await client.query('show work_mem')).rows[0].work_mem, '7MB')
  assert.equal((await client.query('show application_name')).rows[0].application_name, 'driver node')
  // Known to the driver as prepared: it only binds and executes it.
  const named = { name: 'twice', text: 'select $1::int * 2 as n' }
  assert.equal((await client.query({ ...named, values: [21] })).rows[0].n, 42)
  await hear(client, 'again')
  await basics(client)
  await client.end()
  console.log('done')
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
