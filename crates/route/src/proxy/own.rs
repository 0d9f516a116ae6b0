//! Our own questions on a client's server connection.
//!
//! They are extended ones under names of ours, so that they disturb neither the client's unnamed
//! statement nor its portals, and they can stand anywhere between two of its messages.

use super::link::Link;
use sempre_wire::pg::{
    Scanner, Side,
    track::{Tracker, Whose},
    write,
};

const PORTAL: &[u8] = b"sempre";
const XID: &[u8] = b"sempre_xid";
const STATE: &[u8] = b"sempre_state";
const BARRIER: &[u8] = b"sempre_barrier";

/// Which transaction is this, and where in the WAL is a record that carries its id?
///
/// The record ties the id to the WAL: a server that has replayed that position knows the id and
/// has not given it to another transaction. A transaction without an id writes nothing and gets none here.
const XID_TEXT: &[u8] = b"select pg_catalog.pg_current_xact_id_if_assigned(), \
    case when pg_catalog.pg_current_xact_id_if_assigned() is not null \
    then pg_catalog.pg_logical_emit_message(true, 'sempre', '') end, \
    pg_catalog.pg_last_wal_replay_lsn()";

/// What belongs to the session. See [`super::carry`] for what becomes of it. Nothing in it may depend
/// on the session's settings: a backslash, say, is warned of with old strings.
///
/// A row has to fit into what is seen at once. What is longer stays where it is.
const STATE_TEXT: &[u8] = b"select case when long then 'x' else k end, \
        case when long then 'a long text: ' || pg_catalog.left(n, 100) else n end, \
        case when long then '' else v end \
    from (select *, pg_catalog.octet_length(n || v) > 2000 and pg_catalog.octet_length( \
            pg_catalog.convert_to(n || v, pg_catalog.pg_client_encoding())) > 9000 as long from ( \
    select 's' k, name n, setting v from pg_catalog.pg_settings where source = 'session' \
    union all select 's', n, pg_catalog.current_setting(n, true) from pg_catalog.unnest($1::pg_catalog.text[]) n \
        where pg_catalog.current_setting(n, true) is not null \
    union all select 'a', 'session_authorization', session_user::text \
    union all select 'r', 'role', pg_catalog.current_setting('role') \
    union all select 'l', c, '' from pg_catalog.pg_listening_channels() c \
    union all (select case when from_sql then 'p' else 'q' end, name, case when from_sql then statement else '' end \
        from pg_catalog.pg_prepared_statements where not pg_catalog.starts_with(name, 'sempre_')) \
    union all (select 'x', 'the temporary table \"' || relname || '\"', '' from pg_catalog.pg_class \
        where relnamespace = pg_catalog.pg_my_temp_schema() and relkind in ('r', 'p', 'v', 'S', 'm') limit 3) \
    union all (select 'x', 'the held cursor \"' || name || '\"', '' from pg_catalog.pg_cursors \
        where is_holdable limit 3) \
    union all (select 'x', 'an advisory lock of the session', '' from pg_catalog.pg_locks \
        where locktype = 'advisory' and pid = pg_catalog.pg_backend_pid() limit 1)) every) measured";

/// A transaction that is safe only when everything before it is. It waits for the standbys even
/// where the session's own transactions do not.
const BARRIER_TEXT: &[u8] = b"select pg_catalog.set_config('synchronous_commit', \
    case when pg_catalog.current_setting('synchronous_commit') in ('off', 'local') then 'on' \
    else pg_catalog.current_setting('synchronous_commit') end, true), \
    pg_catalog.pg_logical_emit_message(true, 'sempre', '')";

/// How a question ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It is an exchange of its own.
    Sync,
    /// It stands in front of a message of the client, in the client's exchange.
    Flush,
}

/// Asks for the transaction's id.
pub(crate) fn ask_xid(link: &mut Link, tracker: &mut Tracker, end: End) {
    let prepare = !std::mem::replace(&mut link.xid_prepared, true);
    ask(link, tracker, XID, prepare.then_some(XID_TEXT), None, end);
}

/// Asks for the session's state; `names`: settings to ask for by name, as an array.
pub(crate) fn ask_state(link: &mut Link, tracker: &mut Tracker, names: &str) {
    let prepare = !std::mem::replace(&mut link.state_prepared, true);
    let text = prepare.then_some(STATE_TEXT);
    ask(link, tracker, STATE, text, Some(names), End::Sync);
}

/// Puts a barrier behind everything.
pub(crate) fn ask_barrier(link: &mut Link, tracker: &mut Tracker) {
    ask(link, tracker, BARRIER, Some(BARRIER_TEXT), None, End::Sync);
}

fn ask(
    link: &mut Link,
    tracker: &mut Tracker,
    name: &[u8],
    text: Option<&[u8]>,
    parameter: Option<&str>,
    end: End,
) {
    let out = &mut link.out;
    let start = out.len();
    if let Some(text) = text {
        // It may be there already. Closing what is not there is no error.
        write::close_statement(out, name);
        write::parse(out, name, text, &[]);
    }
    let parameter = parameter.map(|text| [Some(text.as_bytes())]);
    write::bind(out, PORTAL, name, parameter.as_ref().map_or(&[], |one| &one[..]));
    write::execute(out, PORTAL, 0);
    write::close_portal(out, PORTAL);
    match end {
        End::Sync => write::sync(out),
        End::Flush => write::flush(out),
    }
    let mut scanner = Scanner::new(Side::Frontend);
    let mut at = start;
    while let Ok(Some(piece)) = scanner.next(&out[at..]) {
        // There is always room for them: the client stops well before the limit.
        let _ = tracker.sent(Whose::Proxy, &piece);
        at += piece.size();
    }
}
