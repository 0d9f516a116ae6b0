//! Encoders for the messages that are made here. Each appends a whole message to `out`.
//!
//! Strings must not contain NUL (what was decoded here never does); one is cut there.

use crate::pg::backend::TransactionStatus;
use crate::pg::first::FIRST_PACKET_MAX;

/// Appends a message of any type; `body` writes what follows the length.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    counted(out, body);
}

/// Appends what `body` writes, behind its length (32 bits, itself included).
fn counted(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.push(0);
}

fn value(out: &mut Vec<u8>, value: Option<&[u8]>) {
    // A value of 2 GB does not fit a message anyway.
    let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.unwrap_or_default());
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

// What a client says first.

/// StartupMessage for protocol 3.`minor`. False, and nothing is written, when it would be longer
/// than a server takes.
pub fn startup<'a>(
    out: &mut Vec<u8>,
    minor: u16,
    parameters: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> bool {
    let start = out.len();
    counted(out, |out| {
        out.extend_from_slice(&[0, 3]);
        out.extend_from_slice(&minor.to_be_bytes());
        for (name, value) in parameters {
            string(out, name);
            string(out, value);
        }
        out.push(0);
    });
    let fits = out.len() - start <= FIRST_PACKET_MAX;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// SSLRequest.
pub fn ssl_request(out: &mut Vec<u8>) {
    counted(out, |out| out.extend_from_slice(&80_877_103_u32.to_be_bytes()));
}

/// CancelRequest.
pub fn cancel_request(out: &mut Vec<u8>, process: u32, key: &[u8]) {
    counted(out, |out| {
        out.extend_from_slice(&80_877_102_u32.to_be_bytes());
        out.extend_from_slice(&process.to_be_bytes());
        out.extend_from_slice(key);
    });
}

// A client's messages.

/// PasswordMessage: a password, or its md5 answer.
pub fn password(out: &mut Vec<u8>, password: &[u8]) {
    message(out, b'p', |out| string(out, password));
}

/// SASLInitialResponse.
pub fn sasl_initial_response(out: &mut Vec<u8>, mechanism: &str, response: &[u8]) {
    message(out, b'p', |out| {
        string(out, mechanism.as_bytes());
        value(out, Some(response));
    });
}

/// SASLResponse.
pub fn sasl_response(out: &mut Vec<u8>, response: &[u8]) {
    message(out, b'p', |out| out.extend_from_slice(response));
}

/// Query.
pub fn query(out: &mut Vec<u8>, text: &[u8]) {
    message(out, b'Q', |out| string(out, text));
}

/// Parse.
pub fn parse(out: &mut Vec<u8>, name: &[u8], text: &[u8], types: &[u32]) {
    message(out, b'P', |out| {
        string(out, name);
        string(out, text);
        count(out, types.len());
        for oid in types {
            out.extend_from_slice(&oid.to_be_bytes());
        }
    });
}

/// Bind with text parameters, giving text.
pub fn bind(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], parameters: &[Option<&[u8]>]) {
    message(out, b'B', |out| {
        string(out, portal);
        string(out, statement);
        count(out, 0);
        count(out, parameters.len());
        for parameter in parameters {
            value(out, *parameter);
        }
        count(out, 0);
    });
}

/// Bind under other names; `behind_names` is what followed the two names in the one that came.
pub fn bind_renamed(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], behind_names: &[u8]) {
    message(out, b'B', |out| {
        string(out, portal);
        string(out, statement);
        out.extend_from_slice(behind_names);
    });
}

/// The header and the names of a Bind whose body, under its old names (`old_size` bytes of it),
/// has `length` bytes; the rest of the body follows as it comes.
pub fn bind_begin(
    out: &mut Vec<u8>,
    portal: &[u8],
    statement: &[u8],
    length: usize,
    old_size: usize,
) {
    let names = portal.len() + statement.len() + 2;
    let length = u32::try_from(length.saturating_sub(old_size) + names + 4).unwrap_or(u32::MAX);
    out.push(b'B');
    out.extend_from_slice(&length.to_be_bytes());
    string(out, portal);
    string(out, statement);
}

fn target(out: &mut Vec<u8>, tag: u8, kind: u8, name: &[u8]) {
    message(out, tag, |out| {
        out.push(kind);
        string(out, name);
    });
}

/// Describe of a prepared statement.
pub fn describe_statement(out: &mut Vec<u8>, name: &[u8]) {
    target(out, b'D', b'S', name);
}

/// Describe of a portal.
pub fn describe_portal(out: &mut Vec<u8>, name: &[u8]) {
    target(out, b'D', b'P', name);
}

/// Close of a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    target(out, b'C', b'S', name);
}

/// Close of a portal.
pub fn close_portal(out: &mut Vec<u8>, name: &[u8]) {
    target(out, b'C', b'P', name);
}

/// Execute; `max_rows` 0: all of them.
pub fn execute(out: &mut Vec<u8>, portal: &[u8], max_rows: u32) {
    message(out, b'E', |out| {
        string(out, portal);
        out.extend_from_slice(&max_rows.to_be_bytes());
    });
}

/// Flush.
pub fn flush(out: &mut Vec<u8>) {
    out.extend_from_slice(b"H\0\0\0\x04");
}

/// Sync.
pub fn sync(out: &mut Vec<u8>) {
    out.extend_from_slice(b"S\0\0\0\x04");
}

/// Terminate.
pub fn terminate(out: &mut Vec<u8>) {
    out.extend_from_slice(b"X\0\0\0\x04");
}

/// CopyData.
pub fn copy_data(out: &mut Vec<u8>, data: &[u8]) {
    message(out, b'd', |out| out.extend_from_slice(data));
}

/// CopyDone.
pub fn copy_done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"c\0\0\0\x04");
}

/// CopyFail.
pub fn copy_fail(out: &mut Vec<u8>, why: &[u8]) {
    message(out, b'f', |out| string(out, why));
}

// A server's messages.

fn authentication(out: &mut Vec<u8>, code: u32, rest: &[u8]) {
    message(out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(rest);
    });
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    authentication(out, 0, &[]);
}

/// AuthenticationCleartextPassword.
pub fn authentication_cleartext(out: &mut Vec<u8>) {
    authentication(out, 3, &[]);
}

/// AuthenticationMD5Password.
pub fn authentication_md5(out: &mut Vec<u8>, salt: [u8; 4]) {
    authentication(out, 5, &salt);
}

/// AuthenticationSASL.
pub fn authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    message(out, b'R', |out| {
        out.extend_from_slice(&10_u32.to_be_bytes());
        for mechanism in mechanisms {
            string(out, mechanism.as_bytes());
        }
        out.push(0);
    });
}

/// AuthenticationSASLContinue.
pub fn authentication_sasl_continue(out: &mut Vec<u8>, data: &[u8]) {
    authentication(out, 11, data);
}

/// AuthenticationSASLFinal.
pub fn authentication_sasl_final(out: &mut Vec<u8>, data: &[u8]) {
    authentication(out, 12, data);
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, b'S', |out| {
        string(out, name);
        string(out, value);
    });
}

/// BackendKeyData; a client of protocol 3.0 takes a key of 4 bytes only.
pub fn backend_key_data(out: &mut Vec<u8>, process: u32, key: &[u8]) {
    message(out, b'K', |out| {
        out.extend_from_slice(&process.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// NegotiateProtocolVersion: 3.`minor` it is, and these options are not known.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, minor: u16, unknown: &[&[u8]]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&(3 << 16 | u32::from(minor)).to_be_bytes());
        out.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(u32::MAX).to_be_bytes());
        for option in unknown {
            string(out, option);
        }
    });
}

/// ReadyForQuery.
pub fn ready_for_query(out: &mut Vec<u8>, status: TransactionStatus) {
    out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status.as_byte()]);
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| string(out, tag.as_bytes()));
}

/// EmptyQueryResponse.
pub fn empty_query_response(out: &mut Vec<u8>) {
    out.extend_from_slice(b"I\0\0\0\x04");
}

/// ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    out.extend_from_slice(b"1\0\0\0\x04");
}

/// BindComplete.
pub fn bind_complete(out: &mut Vec<u8>) {
    out.extend_from_slice(b"2\0\0\0\x04");
}

/// CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    out.extend_from_slice(b"3\0\0\0\x04");
}

/// NoData.
pub fn no_data(out: &mut Vec<u8>) {
    out.extend_from_slice(b"n\0\0\0\x04");
}

/// ParameterDescription.
pub fn parameter_description(out: &mut Vec<u8>, types: &[u32]) {
    message(out, b't', |out| {
        count(out, types.len());
        for oid in types {
            out.extend_from_slice(&oid.to_be_bytes());
        }
    });
}

/// RowDescription of text columns, as the admin database answers.
pub fn row_description(out: &mut Vec<u8>, columns: &[&str]) {
    /// The type `text`.
    const TEXT: u32 = 25;
    message(out, b'T', |out| {
        count(out, columns.len());
        for column in columns {
            string(out, column.as_bytes());
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&TEXT.to_be_bytes());
            out.extend_from_slice(&(-1_i16).to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&[0; 2]);
        }
    });
}

/// DataRow.
pub fn data_row<'a>(out: &mut Vec<u8>, columns: impl ExactSizeIterator<Item = Option<&'a [u8]>>) {
    message(out, b'D', |out| {
        count(out, columns.len());
        for column in columns {
            value(out, column);
        }
    });
}

/// NotificationResponse.
pub fn notification_response(out: &mut Vec<u8>, process: u32, channel: &[u8], payload: &[u8]) {
    message(out, b'A', |out| {
        out.extend_from_slice(&process.to_be_bytes());
        string(out, channel);
        string(out, payload);
    });
}
