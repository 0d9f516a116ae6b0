//! What a client sends, decoded without copying.
//!
//! Strings are bytes: they come in the client's encoding.

use crate::pg::read::{DecodeError, List, Reader, Values};

/// A message of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frontend<'a> {
    /// `Q`: statements to run, one or more.
    Query {
        /// Their text.
        text: &'a [u8],
    },
    /// `P`: a statement to prepare.
    Parse(Parse<'a>),
    /// `B`: a prepared statement to be given its parameters.
    Bind(Bind<'a>),
    /// `D`: tell me about it.
    Describe(Target<'a>),
    /// `E`: run a portal.
    Execute {
        /// Its name; empty: the unnamed one.
        portal: &'a [u8],
        /// Stop after this many rows; 0: no limit.
        max_rows: u32,
    },
    /// `C`: forget it.
    Close(Target<'a>),
    /// `H`: send what answers you have.
    Flush,
    /// `S`: the end of a cycle; the implicit transaction ends.
    Sync,
    /// `F`: the old way to call a function.
    FunctionCall {
        /// The function.
        oid: u32,
    },
    /// `d`: data of a COPY.
    CopyData(&'a [u8]),
    /// `c`: the data is complete.
    CopyDone,
    /// `f`: the data will not be completed.
    CopyFail {
        /// Why.
        message: &'a [u8],
    },
    /// `p`: a password or a token; which, only the question before it says: see
    /// [`password`] and [`SaslInitialResponse::decode`]; a SASLResponse is just these bytes.
    Password(&'a [u8]),
    /// `X`: good-bye.
    Terminate,
}

/// A statement to prepare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Its name; empty: the unnamed one.
    pub name: &'a [u8],
    /// Its text.
    pub text: &'a [u8],
    /// The types of its parameters, as far as they are given.
    pub types: List<'a, 4>,
}

/// Parameters for a prepared statement, making a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal; empty: the unnamed one.
    pub portal: &'a [u8],
    /// The statement; empty: the unnamed one.
    pub statement: &'a [u8],
    /// Formats of the parameters.
    pub formats: List<'a, 2>,
    /// The parameters.
    pub parameters: Values<'a>,
    /// Formats of the result's columns.
    pub result_formats: List<'a, 2>,
    /// All that follows the two names, as it came: for sending it on under other names.
    pub behind_names: &'a [u8],
}

/// The two names a Bind begins with; all that can be said of one that is not there as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindNames<'a> {
    /// The portal; empty: the unnamed one.
    pub portal: &'a [u8],
    /// The statement; empty: the unnamed one.
    pub statement: &'a [u8],
    /// How many bytes of the body the two take.
    pub size: usize,
}

/// A prepared statement or a portal; the empty name is the unnamed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

impl<'a> Frontend<'a> {
    /// Decodes the body of a whole message.
    pub fn decode(tag: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        match tag {
            b'Q' => {
                let mut reader = Reader::new("Query", body);
                let text = reader.string()?;
                reader.end()?;
                Ok(Self::Query { text })
            }
            b'P' => Parse::decode(body).map(Self::Parse),
            b'B' => Bind::decode(body).map(Self::Bind),
            b'D' => Target::decode("Describe", body).map(Self::Describe),
            b'C' => Target::decode("Close", body).map(Self::Close),
            b'E' => {
                let mut reader = Reader::new("Execute", body);
                let portal = reader.string()?;
                // PostgreSQL takes a negative limit as none.
                let max_rows = reader.i32()?.try_into().unwrap_or(0);
                reader.end()?;
                Ok(Self::Execute { portal, max_rows })
            }
            b'H' => empty("Flush", body, Self::Flush),
            b'S' => empty("Sync", body, Self::Sync),
            b'X' => empty("Terminate", body, Self::Terminate),
            b'c' => empty("CopyDone", body, Self::CopyDone),
            b'd' => Ok(Self::CopyData(body)),
            b'f' => {
                let mut reader = Reader::new("CopyFail", body);
                let message = reader.string()?;
                reader.end()?;
                Ok(Self::CopyFail { message })
            }
            b'F' => {
                let mut reader = Reader::new("FunctionCall", body);
                let oid = reader.u32()?;
                reader.list16()?;
                reader.values()?;
                reader.u16()?;
                reader.end()?;
                Ok(Self::FunctionCall { oid })
            }
            b'p' => Ok(Self::Password(body)),
            _ => Err(DecodeError { message: "frontend", problem: "there is no such type" }),
        }
    }
}

fn empty<'a>(
    message: &'static str,
    body: &[u8],
    what: Frontend<'a>,
) -> Result<Frontend<'a>, DecodeError> {
    Reader::new(message, body).end().map(|()| what)
}

impl<'a> Parse<'a> {
    /// Decodes the body of a Parse.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Parse", body);
        let name = reader.string()?;
        let text = reader.string()?;
        let types = reader.list32()?;
        reader.end()?;
        Ok(Self { name, text, types })
    }

    /// The name alone, of a body that need not be there as a whole.
    pub fn name_of(body: &'a [u8]) -> Result<&'a [u8], DecodeError> {
        Reader::new("Parse", body).string()
    }
}

impl<'a> Bind<'a> {
    /// Decodes the body of a Bind.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Bind", body);
        let portal = reader.string()?;
        let statement = reader.string()?;
        let behind_names = reader.rest();
        let formats = reader.list16()?;
        let parameters = reader.values()?;
        let result_formats = reader.list16()?;
        reader.end()?;
        Ok(Self { portal, statement, formats, parameters, result_formats, behind_names })
    }
}

impl<'a> BindNames<'a> {
    /// Decodes the names alone, of a body that need not be there as a whole.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("Bind", body);
        let (portal, statement) = (reader.string()?, reader.string()?);
        Ok(Self { portal, statement, size: body.len() - reader.rest().len() })
    }
}

impl<'a> Target<'a> {
    fn decode(message: &'static str, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(message, body);
        let kind = reader.u8()?;
        let name = reader.string()?;
        let target = match kind {
            b'S' => Self::Statement(name),
            b'P' => Self::Portal(name),
            _ => return Err(reader.error("it is about neither a statement nor a portal")),
        };
        reader.end()?;
        Ok(target)
    }
}

/// The password in a PasswordMessage (cleartext or md5).
pub fn password(body: &[u8]) -> Result<&[u8], DecodeError> {
    let mut reader = Reader::new("Password", body);
    let password = reader.string()?;
    reader.end()?;
    Ok(password)
}

/// The first message of a SASL exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// The mechanism the client chose.
    pub mechanism: &'a [u8],
    /// What the mechanism says first, if it does.
    pub response: Option<&'a [u8]>,
}

impl<'a> SaslInitialResponse<'a> {
    /// Decodes the body of a `p` that answers AuthenticationSASL.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("SASLInitialResponse", body);
        let mechanism = reader.string()?;
        let response = match reader.i32()? {
            -1 => None,
            length => {
                let length =
                    usize::try_from(length).map_err(|_| reader.error("a length is negative"))?;
                Some(reader.bytes(length)?)
            }
        };
        reader.end()?;
        Ok(Self { mechanism, response })
    }
}
