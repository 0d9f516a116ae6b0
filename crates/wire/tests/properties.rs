//! What must hold for any input; the bodies are shared with the fuzz targets.

mod bodies;

use bodies::scan::drive;
use proptest::collection::vec;
use proptest::prelude::*;
use sempre_wire::pg::{
    Authentication, Backend, ErrorResponse, FirstPacket, Frontend, SaslInitialResponse, ScanError,
    Side, Target, TransactionStatus, WHOLE_MAX, frontend, write,
};

/// Types that occur, and some that do not.
fn tag() -> impl Strategy<Value = u8> {
    prop_oneof![
        9 => proptest::sample::select(b"QPBDECHSFdcfXpRZNTAKVvGWInst123".to_vec()),
        1 => any::<u8>(),
    ]
}

/// Bodies of all sizes around the one that streams.
fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => vec(any::<u8>(), 0..60),
        2 => (0_usize..40_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        1 => (WHOLE_MAX - 6..WHOLE_MAX + 6, any::<u8>())
            .prop_map(|(length, byte)| vec![byte; length]),
    ]
}

fn raw(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write::message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

/// What texts are made of, and anything else.
fn word() -> impl Strategy<Value = Vec<u8>> {
    let words = vec![
        "'",
        "\"",
        "$",
        "$a$",
        "--",
        "/*",
        "*/",
        ";",
        "\\",
        "\n",
        " ",
        "\0",
        "e'",
        "set",
        "begin",
        "commit",
        "rollback",
        "to",
        "prepare",
        "transaction",
        "set_config",
        "and",
        "chain",
        "S",
        "P",
        "a\0",
        "T",
        "I",
        "E",
        "COMMIT\0",
        "INSERT 0 1\0",
        "VFATAL\0",
        "C57P01\0",
    ];
    prop_oneof![
        8 => proptest::sample::select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..90),
    ]
}

/// Text without NUL.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8..=255, 0..30)
}

proptest! {
    #[test]
    fn a_stream_gives_its_messages_however_it_is_cut(
        messages in vec((tag(), body()), 0..12), cuts in vec(any::<u8>(), 0..20)
    ) {
        let mut stream = Vec::new();
        for (tag, body) in &messages {
            stream.extend_from_slice(&raw(*tag, body));
        }
        let seen = drive(Side::Backend, &bodies::pieces(&stream, &cuts));
        prop_assert_eq!(&seen.messages, &messages);
        prop_assert_eq!(seen.taken, stream.len());
        bodies::scan::any(&stream, &cuts);
    }

    #[test]
    fn no_stream_panics(bytes in vec(any::<u8>(), 0..300), cuts in vec(any::<u8>(), 0..9)) {
        bodies::scan::any(&bytes, &cuts);
    }

    #[test]
    fn no_body_panics(tag in tag(), body in vec(any::<u8>(), 0..120)) {
        bodies::decode::any(tag, &body);
    }

    #[test]
    fn no_text_panics(words in vec(word(), 0..40), cuts in vec(any::<u8>(), 0..9)) {
        bodies::text::any(&words.concat(), &cuts);
    }

    #[test]
    fn no_conversation_panics(
        moves in vec((any::<u8>(), any::<u8>()), 0..120), words in vec(word(), 0..40)
    ) {
        bodies::track::any(&moves, &words.concat());
    }

    #[test]
    fn no_scram_message_panics(
        first in prop_oneof![
            vec(any::<u8>(), 0..80),
            "[ny]?(p=tls-server-end-point)?,,n=,r=[!-~]{0,30}".prop_map(String::into_bytes),
            "r=(AQEBAQEBAQEBAQEBAQEBAQEBAQEB)?[!-~]{0,30},s=[A-Z=]{0,8},i=[0-9]{1,12}"
                .prop_map(String::into_bytes),
            "SCRAM-SHA-256\\$[0-9]{0,9}:[A-Z=]{0,8}\\$[A-Z]{43}=:[A-Z]{43}="
                .prop_map(String::into_bytes),
        ],
        second in prop_oneof![
            vec(any::<u8>(), 0..80),
            "c=(biws|eSws),r=[!-~]{0,30},p=[A-Z]{43}=".prop_map(String::into_bytes),
            "[ve]=[A-Z]{43}=".prop_map(String::into_bytes),
        ],
    ) {
        bodies::scram::any(&first, &second);
    }

    #[test]
    fn a_clients_messages_come_back(
        name in text(), other in text(), query in text(), types in vec(any::<u32>(), 0..5),
        values in vec(proptest::option::of(vec(any::<u8>(), 0..20)), 0..5), max_rows in 0..i32::MAX as u32
    ) {
        let decode = |write: &dyn Fn(&mut Vec<u8>)| { let mut out = Vec::new(); write(&mut out); out };
        macro_rules! back {
            ($write:expr, $pattern:pat => $check:expr) => {
                let out = decode(&$write);
                let got = Frontend::decode(out[0], &out[5..]);
                match got { Ok($pattern) => $check, other => prop_assert!(false, "{other:?}") }
            };
        }
        back!(|out: &mut Vec<u8>| write::query(out, &query), Frontend::Query { text } =>
            prop_assert_eq!(text, &query));
        back!(|out: &mut Vec<u8>| write::parse(out, &name, &query, &types), Frontend::Parse(parse) => {
            prop_assert_eq!((parse.name, parse.text), (&name[..], &query[..]));
            prop_assert_eq!(parse.types.iter().collect::<Vec<_>>(), types);
        });
        let parameters: Vec<_> = values.iter().map(|value| value.as_deref()).collect();
        back!(|out: &mut Vec<u8>| write::bind(out, &name, &other, &parameters), Frontend::Bind(bind) => {
            prop_assert_eq!((bind.portal, bind.statement), (&name[..], &other[..]));
            prop_assert_eq!(bind.parameters.collect::<Vec<_>>(), parameters.clone());
            // Under other names, at once and in parts.
            let out = decode(&|out| write::bind(out, &name, &other, &parameters));
            let whole = decode(&|out| write::bind_renamed(out, b"", &query, bind.behind_names));
            let old_size = name.len() + other.len() + 2;
            let mut parts = decode(&|out| write::bind_begin(out, b"", &query, out_len(&name, &other, bind.behind_names), old_size));
            parts.extend_from_slice(&out[5 + old_size..]);
            prop_assert_eq!(whole, parts);
        });
        back!(|out: &mut Vec<u8>| write::execute(out, &name, max_rows), Frontend::Execute { portal, max_rows: got } =>
            prop_assert_eq!((portal, got), (&name[..], max_rows)));
        back!(|out: &mut Vec<u8>| write::describe_statement(out, &name), Frontend::Describe(Target::Statement(got)) =>
            prop_assert_eq!(got, &name));
        back!(|out: &mut Vec<u8>| write::describe_portal(out, &name), Frontend::Describe(Target::Portal(got)) =>
            prop_assert_eq!(got, &name));
        back!(|out: &mut Vec<u8>| write::close_statement(out, &name), Frontend::Close(Target::Statement(got)) =>
            prop_assert_eq!(got, &name));
        back!(|out: &mut Vec<u8>| write::close_portal(out, &name), Frontend::Close(Target::Portal(got)) =>
            prop_assert_eq!(got, &name));
        back!(|out: &mut Vec<u8>| write::copy_data(out, &query), Frontend::CopyData(got) =>
            prop_assert_eq!(got, &query));
        back!(|out: &mut Vec<u8>| write::copy_fail(out, &query), Frontend::CopyFail { message } =>
            prop_assert_eq!(message, &query));
        back!(write::flush, Frontend::Flush => ());
        back!(write::sync, Frontend::Sync => ());
        back!(write::terminate, Frontend::Terminate => ());
        back!(write::copy_done, Frontend::CopyDone => ());
        back!(|out: &mut Vec<u8>| write::password(out, &name), Frontend::Password(body) =>
            prop_assert_eq!(frontend::password(body), Ok(&name[..])));
        back!(|out: &mut Vec<u8>| write::sasl_initial_response(out, "SCRAM-SHA-256", &query), Frontend::Password(body) =>
            prop_assert_eq!(SaslInitialResponse::decode(body),
                Ok(SaslInitialResponse { mechanism: b"SCRAM-SHA-256", response: Some(&query) })));
    }

    #[test]
    fn a_servers_messages_come_back(
        name in text(), other in text(), number: u32, salt: [u8; 4], key in vec(any::<u8>(), 4..=256),
        values in vec(proptest::option::of(vec(any::<u8>(), 0..20)), 0..5), types in vec(any::<u32>(), 0..5),
    ) {
        macro_rules! back {
            ($write:expr, $pattern:pat => $check:expr) => {
                let mut out = Vec::new();
                let write: &dyn Fn(&mut Vec<u8>) = &$write;
                write(&mut out);
                let got = Backend::decode(out[0], &out[5..]);
                match got { Ok($pattern) => $check, other => prop_assert!(false, "{other:?}") }
            };
        }
        for status in [TransactionStatus::Idle, TransactionStatus::InBlock, TransactionStatus::Failed] {
            back!(|out| write::ready_for_query(out, status), Backend::ReadyForQuery(got) => prop_assert_eq!(got, status));
        }
        back!(|out| write::parameter_status(out, &name, &other), Backend::ParameterStatus { name: n, value } =>
            prop_assert_eq!((n, value), (&name[..], &other[..])));
        back!(|out| write::backend_key_data(out, number, &key), Backend::BackendKeyData { process, key: k } =>
            prop_assert_eq!((process, k), (number, &key[..])));
        back!(|out| write::command_complete(out, "INSERT 0 1"), Backend::CommandComplete { tag } =>
            prop_assert_eq!(tag, b"INSERT 0 1"));
        back!(|out| write::notification_response(out, number, &name, &other),
            Backend::NotificationResponse { process, channel, payload } =>
            prop_assert_eq!((process, channel, payload), (number, &name[..], &other[..])));
        let columns: Vec<_> = values.iter().map(|value| value.as_deref()).collect();
        back!(|out| write::data_row(out, columns.iter().copied()), Backend::DataRow(got) =>
            prop_assert_eq!(got.collect::<Vec<_>>(), columns.clone()));
        back!(|out| write::parameter_description(out, &types), Backend::ParameterDescription(got) =>
            prop_assert_eq!(got.iter().collect::<Vec<_>>(), types.clone()));
        back!(write::authentication_ok, Backend::Authentication(Authentication::Ok) => ());
        back!(write::authentication_cleartext, Backend::Authentication(Authentication::CleartextPassword) => ());
        back!(|out| write::authentication_md5(out, salt), Backend::Authentication(Authentication::Md5Password { salt: s }) =>
            prop_assert_eq!(s, salt));
        back!(|out| write::authentication_sasl(out, &["A", "BC"]), Backend::Authentication(Authentication::Sasl(list)) => {
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), vec![&b"A"[..], b"BC"]);
            prop_assert!(list.contains("BC") && !list.contains("B"));
        });
        back!(|out| write::authentication_sasl_continue(out, &name), Backend::Authentication(Authentication::SaslContinue(d)) =>
            prop_assert_eq!(d, &name));
        back!(|out| write::authentication_sasl_final(out, &name), Backend::Authentication(Authentication::SaslFinal(d)) =>
            prop_assert_eq!(d, &name));
        back!(|out| write::negotiate_protocol_version(out, 2, &[b"_pq_.x"]),
            Backend::NegotiateProtocolVersion { minor: 2, options: b"_pq_.x\0" } => ());
        back!(write::parse_complete, Backend::ParseComplete => ());
        back!(write::bind_complete, Backend::BindComplete => ());
        back!(write::close_complete, Backend::CloseComplete => ());
        back!(write::no_data, Backend::NoData => ());
        back!(write::empty_query_response, Backend::EmptyQueryResponse => ());
        back!(|out| write::row_description(out, &["a", "b"]), Backend::RowDescription(_) => ());
        back!(|out| out.extend(ErrorResponse::fatal("57P01", "m", "d", "h").encode()), Backend::ErrorResponse(fields) => {
            prop_assert!(fields.is_fatal());
            prop_assert_eq!((fields.code(), fields.message()), (&b"57P01"[..], &b"m"[..]));
            prop_assert_eq!((fields.get(b'D'), fields.get(b'H'), fields.get(b'R')), (Some(&b"d"[..]), Some(&b"h"[..]), None));
        });
    }

    #[test]
    fn a_startup_message_comes_back(pairs in vec(("[a-z_]{1,20}", "[^\0]{0,40}"), 0..10), minor in 0_u16..4) {
        let mut out = Vec::new();
        prop_assert!(write::startup(&mut out, minor, pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()))));
        let Ok(FirstPacket::Startup(startup)) = FirstPacket::parse(&out) else {
            return Err(TestCaseError::fail("not a start-up message"));
        };
        prop_assert_eq!(startup.minor, u32::from(minor));
        let want: Vec<_> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
        prop_assert_eq!(startup.parameters().collect::<Vec<_>>(), want);
    }
}

fn out_len(portal: &[u8], statement: &[u8], behind_names: &[u8]) -> usize {
    portal.len() + statement.len() + 2 + behind_names.len()
}

#[test]
fn the_first_packets_come_back() {
    let mut out = Vec::new();
    write::ssl_request(&mut out);
    assert_eq!(FirstPacket::parse(&out), Ok(FirstPacket::SslRequest));
    out.clear();
    write::cancel_request(&mut out, 7, &[9; 32]);
    assert_eq!(
        FirstPacket::parse(&out),
        Ok(FirstPacket::CancelRequest { process: 7, key: &[9; 32] })
    );
    out.clear();
    let long = vec![b'x'; 10_000];
    assert!(!write::startup(&mut out, 0, [(&b"user"[..], &long[..])]));
    assert!(out.is_empty());
}

#[test]
fn a_client_is_held_to_its_limits() {
    for (bytes, error) in [
        (&b"\0"[..], ScanError::Type(0)),
        (b"GET / HTTP/1.1\r\n", ScanError::Type(b'G')),
        (b"S\0\0\0\x03", ScanError::Length { tag: b'S', length: 3 }),
        (b"S\0\x01\0\0", ScanError::Length { tag: b'S', length: 65_536 }),
        (b"E\0\0\x27\x11", ScanError::Length { tag: b'E', length: 10_001 }),
        (b"Q\x40\0\0\0", ScanError::Length { tag: b'Q', length: 1 << 30 }),
        (b"Q\xff\xff\xff\xff", ScanError::Length { tag: b'Q', length: u32::MAX }),
    ] {
        assert_eq!(drive(Side::Frontend, &[bytes]).error, Some(error));
    }
    assert_eq!(drive(Side::Frontend, &[b"Q\x3f\xff\xff\xff"]).error, None);
}

#[test]
fn the_cancelled_wait_is_known_by_where_it_comes_from() {
    let notice = |fields: &[u8]| {
        let fields: Vec<u8> =
            fields.iter().map(|byte| if *byte == b'|' { 0 } else { *byte }).collect();
        matches!(Backend::decode(b'N', &fields),
            Ok(Backend::NoticeResponse(fields)) if fields.is_cancelled_sync_wait())
    };
    assert!(notice(b"SWARNUNG|VWARNING|C01000|Mirgendwas|Fsyncrep.c|L1|RSyncRepWaitForLSN||"));
    assert!(notice(b"SWARNING|VWARNING|C57P01|Mx|RSyncRepWaitForLSN||"));
    assert!(!notice(b"SWARNING|VWARNING|C01000|Mx|Rexec_stmt_raise||"));
    assert!(!notice(b"SERROR|VERROR|C01000|Mx|RSyncRepWaitForLSN||"));
}
