//! The smallest shell around the state machines: a blocking socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use sempre_wire::pg::{Backend, Fields, FirstPacket, Piece, Scanner, Side, write};

/// One end of a connection.
pub struct Shell {
    pub socket: TcpStream,
    tls: Option<rustls::ServerConnection>,
    scanner: Scanner,
    buffer: Vec<u8>,
}

/// A whole message.
pub type Owned = (u8, Vec<u8>);

impl Shell {
    pub fn new(socket: TcpStream, reads: Side) -> Self {
        socket.set_read_timeout(Some(super::postgres::PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, tls: None, scanner: Scanner::new(reads), buffer: Vec::new() }
    }

    /// Connects to a server and sends the start-up message.
    pub fn connect(port: u16, parameters: &[(&str, &str)]) -> Self {
        let mut shell = Self::new(TcpStream::connect(("127.0.0.1", port)).unwrap(), Side::Backend);
        let parameters = parameters.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        shell.say(|out| assert!(write::startup(out, 0, parameters)));
        shell
    }

    pub fn say(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        write(&mut out);
        match &mut self.tls {
            Some(tls) => rustls::Stream::new(tls, &mut self.socket).write_all(&out).unwrap(),
            None => self.socket.write_all(&out).unwrap(),
        }
    }

    fn read(&mut self, into: &mut [u8]) -> usize {
        let read = match &mut self.tls {
            Some(tls) => rustls::Stream::new(tls, &mut self.socket).read(into),
            None => self.socket.read(into),
        };
        match read {
            // libpq does not say good-bye to TLS.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
            read => read.unwrap(),
        }
    }

    fn read_exact(&mut self, into: &mut [u8]) {
        let mut at = 0;
        while at < into.len() {
            let size = self.read(&mut into[at..]);
            assert!(size > 0, "the client left");
            at += size;
        }
    }

    /// The next message; `None` at the end of the stream.
    pub fn hear(&mut self) -> Option<Owned> {
        loop {
            match self.scanner.next(&self.buffer).unwrap() {
                Some(Piece::Whole(message)) => {
                    let owned = (message.tag, message.body.to_vec());
                    let size = message.raw.len();
                    self.buffer.drain(..size);
                    return Some(owned);
                }
                Some(piece) => panic!("a long message: {}", char::from(piece.tag())),
                None => {}
            }
            let mut chunk = [0; 4096];
            match self.read(&mut chunk) {
                0 => return None,
                size => self.buffer.extend_from_slice(&chunk[..size]),
            }
        }
    }

    /// The packet a client begins with; TLS is spoken with `tls`, or refused.
    pub fn hear_startup(
        &mut self,
        tls: Option<&Arc<rustls::ServerConfig>>,
    ) -> Vec<(String, String)> {
        loop {
            let mut head = [0; 4];
            self.read_exact(&mut head);
            let mut packet = head.to_vec();
            packet.resize(u32::from_be_bytes(head) as usize, 0);
            self.read_exact(&mut packet[4..]);
            match FirstPacket::parse(&packet).unwrap() {
                FirstPacket::SslRequest if tls.is_some() => {
                    self.socket.write_all(b"S").unwrap();
                    let config = Arc::clone(tls.unwrap());
                    self.tls = Some(rustls::ServerConnection::new(config).unwrap());
                }
                FirstPacket::SslRequest | FirstPacket::GssEncRequest => {
                    self.socket.write_all(b"N").unwrap();
                }
                FirstPacket::Startup(startup) => {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    return startup.parameters().map(|(n, v)| (text(n), text(v))).collect();
                }
                FirstPacket::CancelRequest { .. } => panic!("nothing to cancel"),
            }
        }
    }

    /// Hears up to ReadyForQuery; gives the tags.
    pub fn until_ready(&mut self) -> String {
        let mut tags = String::new();
        loop {
            let (tag, body) = self.hear().expect("the server goes on");
            tags.push(tag.into());
            if tag == b'E' {
                panic!("{tags}: {}", describe(&body));
            }
            if tag == b'Z' {
                return tags;
            }
        }
    }
}

/// An error, for people.
pub fn describe(body: &[u8]) -> String {
    let Ok(Backend::ErrorResponse(fields)) = Backend::decode(b'E', body) else {
        return format!("{body:?}");
    };
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let _: Fields = fields;
    format!("{} {} {}", text(fields.severity()), text(fields.code()), text(fields.message()))
}
