//! What a client may send before the stream of typed messages begins: SSLRequest, GSSENCRequest,
//! CancelRequest, StartupMessage, or, since PostgreSQL 17, a TLS handshake right away.
//!
//! All but the handshake are `length (4 bytes, itself included), code (4 bytes), rest`. The length
//! is bounded before a byte of the rest is read.

/// PostgreSQL's name for itself in TLS (ALPN), which a client must say that does not ask first.
pub const ALPN: &[u8] = b"postgresql";

/// The longest packet accepted here, bytes; PostgreSQL's own limit.
pub const FIRST_PACKET_MAX: usize = 10_000;
/// The shortest packet: length and code.
const FIRST_PACKET_MIN: usize = 8;
/// The longest key of a CancelRequest, bytes (protocol 3.2; 4 before that).
const CANCEL_KEY_MAX: usize = 256;
/// The first byte of a TLS record that carries a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

const CODE_CANCEL: u32 = 80_877_102;
const CODE_SSL: u32 = 80_877_103;
const CODE_GSSENC: u32 = 80_877_104;

/// What the first four bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstHead {
    /// A packet of this many bytes, the four included.
    Packet(usize),
    /// A TLS handshake without SSLRequest (`sslnegotiation=direct`): opaque from its first byte.
    DirectTls,
}

impl FirstHead {
    /// Reads the first four bytes of a connection.
    pub fn read(head: [u8; 4]) -> Result<Self, FirstError> {
        if head[0] == TLS_HANDSHAKE {
            return Ok(Self::DirectTls);
        }
        // Fits usize: every supported platform has at least 32 bits.
        let length = u32::from_be_bytes(head) as usize;
        if (FIRST_PACKET_MIN..=FIRST_PACKET_MAX).contains(&length) {
            Ok(Self::Packet(length))
        } else {
            Err(FirstError::Length(length))
        }
    }
}

/// A packet that is not PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirstError {
    /// No packet is that long or short.
    #[error("invalid length of startup packet: {0} bytes (8 to {FIRST_PACKET_MAX} are allowed)")]
    Length(usize),
    /// The code is not one of ours, and the protocol's major version is not 3.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 and later")]
    Protocol(u32, u32),
    /// The parameters are not pairs of strings with a terminator behind them.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
}

/// A packet as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPacket<'a> {
    /// "May we speak TLS?" Answered with one byte, `S` or `N`.
    SslRequest,
    /// "May we speak GSSAPI encryption?" Answered with one byte, `G` or `N`.
    GssEncRequest,
    /// "Stop what that backend does." Not answered.
    CancelRequest {
        /// The backend's process.
        process: u32,
        /// Its secret.
        key: &'a [u8],
    },
    /// The beginning of a session.
    Startup(Startup<'a>),
}

/// The beginning of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup<'a> {
    /// Minor version of protocol 3.
    pub minor: u32,
    parameters: &'a [u8],
}

impl<'a> Startup<'a> {
    /// The parameters: `user`, `database`, `replication`, settings.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut strings = self.parameters.split(|byte| *byte == 0);
        std::iter::from_fn(move || {
            let name = strings.next().filter(|name| !name.is_empty())?;
            Some((name, strings.next()?))
        })
    }

    /// One parameter.
    pub fn parameter(&self, name: &str) -> Option<&'a [u8]> {
        self.parameters().find(|(known, _)| *known == name.as_bytes()).map(|(_, value)| value)
    }
}

impl<'a> FirstPacket<'a> {
    /// Reads a whole packet, its length included.
    pub fn parse(packet: &'a [u8]) -> Result<Self, FirstError> {
        let (Some(length), Some(code)) = (be_u32(packet, 0), be_u32(packet, 4)) else {
            return Err(FirstError::Length(packet.len()));
        };
        if length as usize != packet.len() || packet.len() > FIRST_PACKET_MAX {
            return Err(FirstError::Length(length as usize));
        }
        let rest = &packet[FIRST_PACKET_MIN..];
        match code {
            CODE_SSL if rest.is_empty() => Ok(Self::SslRequest),
            CODE_GSSENC if rest.is_empty() => Ok(Self::GssEncRequest),
            CODE_CANCEL => match (be_u32(rest, 0), rest.get(4..)) {
                (Some(process), Some(key)) if (4..=CANCEL_KEY_MAX).contains(&key.len()) => {
                    Ok(Self::CancelRequest { process, key })
                }
                _ => Err(FirstError::Length(packet.len())),
            },
            CODE_SSL | CODE_GSSENC => Err(FirstError::Length(packet.len())),
            version if version >> 16 == 3 => Self::startup(version & 0xFFFF, rest),
            version => Err(FirstError::Protocol(version >> 16, version & 0xFFFF)),
        }
    }

    fn startup(minor: u32, parameters: &'a [u8]) -> Result<Self, FirstError> {
        // Walk it as the server will: name NUL value NUL ... NUL, the last byte being that NUL.
        let mut rest = parameters;
        loop {
            match rest {
                [0] => return Ok(Self::Startup(Startup { minor, parameters })),
                [] | [0, ..] => return Err(FirstError::Layout),
                _ => {}
            }
            for _name_then_value in 0..2 {
                let end = rest.iter().position(|byte| *byte == 0).ok_or(FirstError::Layout)?;
                rest = &rest[end + 1..];
            }
        }
    }
}

fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut out = (rest.len() as u32 + 8).to_be_bytes().to_vec();
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(rest);
        out
    }

    #[test]
    fn each_packet_is_known() {
        assert_eq!(FirstPacket::parse(&packet(CODE_SSL, b"")), Ok(FirstPacket::SslRequest));
        assert_eq!(FirstPacket::parse(&packet(CODE_GSSENC, b"")), Ok(FirstPacket::GssEncRequest));
        assert_eq!(
            FirstPacket::parse(&packet(CODE_CANCEL, &[0, 0, 0, 7, 1, 2, 3, 4])),
            Ok(FirstPacket::CancelRequest { process: 7, key: &[1, 2, 3, 4] })
        );
        let startup = packet(3 << 16, b"user\0ann\0options\0\0\0");
        let Ok(FirstPacket::Startup(startup)) = FirstPacket::parse(&startup) else { panic!() };
        assert_eq!(startup.parameter("user"), Some(&b"ann"[..]));
        assert_eq!(startup.parameter("options"), Some(&b""[..]));
        assert_eq!(startup.parameter("database"), None);
        assert_eq!(startup.parameters().count(), 2);
    }

    #[test]
    fn what_is_not_postgresql_is_refused() {
        assert_eq!(FirstHead::read(*b"GET "), Err(FirstError::Length(0x4745_5420)));
        assert_eq!(FirstHead::read([0, 0, 0, 7]), Err(FirstError::Length(7)));
        assert_eq!(FirstHead::read([0x16, 3, 1, 2]), Ok(FirstHead::DirectTls));
        assert_eq!(FirstHead::read([0, 0, 0, 8]), Ok(FirstHead::Packet(8)));
        assert_eq!(FirstPacket::parse(&packet(2 << 16, b"x")), Err(FirstError::Protocol(2, 0)));
        for bad in [&b""[..], b"user\0ann\0", b"user\0", b"user", b"\0x\0", b"a\0b\0\0\0"] {
            assert_eq!(FirstPacket::parse(&packet(3 << 16, bad)), Err(FirstError::Layout));
        }
        assert!(FirstPacket::parse(&packet(CODE_CANCEL, &[0; 7])).is_err());
        assert!(FirstPacket::parse(&packet(CODE_CANCEL, &[0; 600])).is_err());
    }

    proptest! {
        #[test]
        fn no_packet_panics(head: [u8; 4], bytes: Vec<u8>, code in prop_oneof![
            Just(CODE_SSL), Just(CODE_CANCEL), Just(CODE_GSSENC), Just(3u32 << 16), any::<u32>()
        ]) {
            let _ = FirstHead::read(head);
            let _ = FirstPacket::parse(&bytes);
            if let Ok(FirstPacket::Startup(startup)) = FirstPacket::parse(&packet(code, &bytes)) {
                prop_assert!(startup.parameters().count() <= bytes.len());
            }
        }

        #[test]
        fn parameters_come_back(pairs in proptest::collection::vec(
            ("[a-z_]{1,20}", "[^\0]{0,40}"), 0..10)
        ) {
            let mut rest = Vec::new();
            for (name, value) in &pairs {
                rest.extend_from_slice(name.as_bytes());
                rest.push(0);
                rest.extend_from_slice(value.as_bytes());
                rest.push(0);
            }
            rest.push(0);
            let packet = packet(3 << 16, &rest);
            let Ok(FirstPacket::Startup(startup)) = FirstPacket::parse(&packet) else {
                return Err(TestCaseError::fail("not a start-up message"));
            };
            let read: Vec<_> = startup.parameters().collect();
            let want: Vec<_> =
                pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            prop_assert_eq!(read, want);
        }
    }
}
