//! What a server sends, decoded without copying.

use crate::pg::read::{DecodeError, List, Reader, Values};

/// Where a session stands between two cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TransactionStatus {
    /// `I`: in no transaction block.
    #[default]
    Idle,
    /// `T`: in a transaction block.
    InBlock,
    /// `E`: in a transaction block that failed; only its end is taken.
    Failed,
}

impl TransactionStatus {
    /// As ReadyForQuery says it.
    pub fn as_byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InBlock => b'T',
            Self::Failed => b'E',
        }
    }

    /// As ReadyForQuery says it.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InBlock),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// A message of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend<'a> {
    /// `R`: a question about who the client is, or that it is settled.
    Authentication(Authentication<'a>),
    /// `S`: a setting's value, when it changed.
    ParameterStatus {
        /// The setting.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// `K`: what a CancelRequest has to show.
    BackendKeyData {
        /// The process.
        process: u32,
        /// Its secret: 4 bytes in protocol 3.0, 4 to 256 in 3.2.
        key: &'a [u8],
    },
    /// `Z`: a cycle is over.
    ReadyForQuery(TransactionStatus),
    /// `C`: a statement is done.
    CommandComplete {
        /// What it was, and how many rows.
        tag: &'a [u8],
    },
    /// `I`: the text was empty.
    EmptyQueryResponse,
    /// `E`: something went wrong.
    ErrorResponse(Fields<'a>),
    /// `N`: something to know.
    NoticeResponse(Fields<'a>),
    /// `A`: a NOTIFY.
    NotificationResponse {
        /// The process it comes from.
        process: u32,
        /// Its channel.
        channel: &'a [u8],
        /// What it says.
        payload: &'a [u8],
    },
    /// `1`: a statement is prepared.
    ParseComplete,
    /// `2`: a portal is there.
    BindComplete,
    /// `3`: it is forgotten.
    CloseComplete,
    /// `s`: the rows asked for are there, and there may be more.
    PortalSuspended,
    /// `n`: it gives no rows.
    NoData,
    /// `t`: the types of the parameters.
    ParameterDescription(List<'a, 4>),
    /// `T`: the columns, not decoded further.
    RowDescription(&'a [u8]),
    /// `D`: a row.
    DataRow(Values<'a>),
    /// `G`: COPY data may come.
    CopyInResponse,
    /// `H`: COPY data will come.
    CopyOutResponse,
    /// `W`: COPY data flows both ways (replication).
    CopyBothResponse,
    /// `d`: COPY data.
    CopyData(&'a [u8]),
    /// `c`: the data is complete.
    CopyDone,
    /// `V`: what a function gave.
    FunctionCallResponse,
    /// `v`: the server speaks an older minor version, or does not know some options.
    NegotiateProtocolVersion {
        /// The newest minor version of protocol 3 it speaks.
        minor: u32,
        /// The options it does not know, each with its NUL.
        options: &'a [u8],
    },
    /// A type that is not known here; a proxy passes it on.
    Other,
}

/// What a server asks about who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// It is settled.
    Ok,
    /// The password as it is.
    CleartextPassword,
    /// The password's hash, hashed with this salt.
    Md5Password {
        /// The salt.
        salt: [u8; 4],
    },
    /// One of these SASL mechanisms.
    Sasl(Mechanisms<'a>),
    /// More of a SASL exchange.
    SaslContinue(&'a [u8]),
    /// The last word of a SASL exchange.
    SaslFinal(&'a [u8]),
    /// Another way (GSSAPI, SSPI, Kerberos 5): its code.
    Other(u32),
}

/// Names of SASL mechanisms, the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mechanisms<'a>(&'a [u8]);

impl<'a> Mechanisms<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0.split(|byte| *byte == 0).take_while(|name| !name.is_empty())
    }

    /// Is this one among them?
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|known| known == name.as_bytes())
    }
}

impl<'a> Backend<'a> {
    /// Decodes the body of a whole message.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        let known = match tag {
            b'R' => return Authentication::decode(body).map(Self::Authentication),
            b'Z' => {
                let mut reader = Reader::new("ReadyForQuery", body);
                let status = TransactionStatus::from_byte(reader.u8()?)
                    .ok_or(reader.error("there is no such transaction status"))?;
                reader.end()?;
                Self::ReadyForQuery(status)
            }
            b'C' => Self::CommandComplete { tag: Reader::new("CommandComplete", body).string()? },
            b'E' => Self::ErrorResponse(Fields::decode("ErrorResponse", body)?),
            b'N' => Self::NoticeResponse(Fields::decode("NoticeResponse", body)?),
            b'D' => {
                let mut reader = Reader::new("DataRow", body);
                let values = reader.values()?;
                reader.end()?;
                Self::DataRow(values)
            }
            b'S' => {
                let mut reader = Reader::new("ParameterStatus", body);
                let (name, value) = (reader.string()?, reader.string()?);
                reader.end()?;
                Self::ParameterStatus { name, value }
            }
            b'K' => {
                let mut reader = Reader::new("BackendKeyData", body);
                let (process, key) = (reader.u32()?, reader.rest());
                if !(4..=256).contains(&key.len()) {
                    return Err(reader.error("a key has 4 to 256 bytes"));
                }
                Self::BackendKeyData { process, key }
            }
            b'A' => {
                let mut reader = Reader::new("NotificationResponse", body);
                let (process, channel, payload) =
                    (reader.u32()?, reader.string()?, reader.string()?);
                reader.end()?;
                Self::NotificationResponse { process, channel, payload }
            }
            b't' => {
                let mut reader = Reader::new("ParameterDescription", body);
                let types = reader.list32()?;
                reader.end()?;
                Self::ParameterDescription(types)
            }
            b'v' => {
                let mut reader = Reader::new("NegotiateProtocolVersion", body);
                // PostgreSQL sends the whole version; only its lower half is the minor.
                let minor = reader.u32()? & 0xFFFF;
                let count = reader.u32()?;
                let options = reader.rest();
                for _option in 0..count {
                    reader.string()?;
                }
                reader.end()?;
                Self::NegotiateProtocolVersion { minor, options }
            }
            b'1' => Self::ParseComplete,
            b'2' => Self::BindComplete,
            b'3' => Self::CloseComplete,
            b's' => Self::PortalSuspended,
            b'I' => Self::EmptyQueryResponse,
            b'n' => Self::NoData,
            b'T' => Self::RowDescription(body),
            b'G' => Self::CopyInResponse,
            b'H' => Self::CopyOutResponse,
            b'W' => Self::CopyBothResponse,
            b'd' => Self::CopyData(body),
            b'c' => Self::CopyDone,
            b'V' => Self::FunctionCallResponse,
            _ => Self::Other,
        };
        Ok(known)
    }
}

impl<'a> Authentication<'a> {
    /// Decodes the body of an `R`.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Authentication", body);
        Ok(match reader.u32()? {
            0 => Self::Ok,
            3 => Self::CleartextPassword,
            5 => {
                let salt = reader.bytes(4)?;
                Self::Md5Password { salt: [salt[0], salt[1], salt[2], salt[3]] }
            }
            10 => {
                let names = reader.rest();
                while !reader.string()?.is_empty() {}
                reader.end()?;
                Self::Sasl(Mechanisms(names))
            }
            11 => Self::SaslContinue(reader.rest()),
            12 => Self::SaslFinal(reader.rest()),
            code => Self::Other(code),
        })
    }
}

/// The fields of an ErrorResponse or NoticeResponse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn decode(message: &'static str, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(message, body);
        while reader.u8()? != 0 {
            reader.string()?;
        }
        reader.end()?;
        Ok(Self(body))
    }

    /// The fields of a body that need not be there as a whole; the last may be cut.
    pub fn of_head(head: &'a [u8]) -> Self {
        Self(head)
    }

    /// One after the other: the field's letter, and what it says.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (&field, behind) = rest.split_first()?;
            if field == 0 {
                return None;
            }
            let end = behind.iter().position(|byte| *byte == 0)?;
            rest = &behind[end + 1..];
            Some((field, &behind[..end]))
        })
    }

    /// One field.
    pub fn get(&self, field: u8) -> Option<&'a [u8]> {
        self.iter().find(|(known, _)| *known == field).map(|(_, text)| text)
    }

    /// The SQLSTATE (`C`); empty if there is none.
    pub fn code(&self) -> &'a [u8] {
        self.get(b'C').unwrap_or_default()
    }

    /// The message (`M`), in the server's language.
    pub fn message(&self) -> &'a [u8] {
        self.get(b'M').unwrap_or_default()
    }

    /// The severity, not localized (`V`).
    pub fn severity(&self) -> &'a [u8] {
        self.get(b'V').or_else(|| self.get(b'S')).unwrap_or_default()
    }

    /// Does the session end with it?
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity(), b"FATAL" | b"PANIC")
    }

    /// Is it the warning that a wait for synchronous replication was cancelled, so that what was
    /// committed may still be lost? Told by where in the server it comes from, as its text is
    /// localized.
    pub fn is_cancelled_sync_wait(&self) -> bool {
        self.severity() == b"WARNING"
            && matches!(self.code(), b"01000" | b"57P01")
            && self.get(b'R') == Some(b"SyncRepWaitForLSN")
    }
}
