//! ErrorResponse: how a server says that something went wrong.

/// SQLSTATE codes that routing uses.
pub mod sqlstate {
    /// There is no server to go to at the moment.
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// The session was ended on purpose: a role change, or routing stops.
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// The server went away under the session.
    pub const CRASH_SHUTDOWN: &str = "57P02";
    /// A limit on the number of connections.
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// The client does not speak the protocol.
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    /// The client speaks a version of the protocol that is not supported.
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// The transaction was rolled back; running it again is the cure.
    pub const SERIALIZATION_FAILURE: &str = "40001";
    /// Nobody knows whether the transaction was committed.
    pub const TRANSACTION_RESOLUTION_UNKNOWN: &str = "08007";
    /// The transaction block failed before; only its end is taken.
    pub const IN_FAILED_TRANSACTION: &str = "25P02";
    /// Wrong password, or no such user: the two are not told apart.
    pub const INVALID_PASSWORD: &str = "28P01";
    /// The user may not, whatever they say.
    pub const INVALID_AUTHORIZATION: &str = "28000";
    /// There is no such prepared statement.
    pub const INVALID_STATEMENT_NAME: &str = "26000";
    /// A limit of this program was reached.
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        }
    }
}

/// An error as a client shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// How bad it is.
    pub severity: Severity,
    /// Five characters, see [`sqlstate`].
    pub code: &'static str,
    /// What happened, one line.
    pub message: String,
    /// Why.
    pub detail: String,
    /// What to do next.
    pub hint: String,
}

impl ErrorResponse {
    /// A FATAL error. Empty `detail` or `hint` are left out.
    pub fn fatal(
        code: &'static str,
        message: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Fatal, ..Self::error(code, message, detail, hint) }
    }

    /// An ERROR, after which the session goes on. Empty `detail` or `hint` are left out.
    pub fn error(
        code: &'static str,
        message: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            detail: detail.into(),
            hint: hint.into(),
        }
    }

    /// The message as it goes over the wire, type byte and length included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(64 + self.message.len() + self.detail.len() + self.hint.len());
        out.extend_from_slice(b"E\0\0\0\0");
        let severity = self.severity.as_str();
        for (tag, text) in [
            (b'S', severity),
            (b'V', severity),
            (b'C', self.code),
            (b'M', self.message.as_str()),
            (b'D', self.detail.as_str()),
            (b'H', self.hint.as_str()),
        ] {
            if text.is_empty() && matches!(tag, b'D' | b'H') {
                continue;
            }
            out.push(tag);
            // A NUL would end the field early and turn its rest into field tags.
            out.extend(text.bytes().filter(|byte| *byte != 0));
            out.push(0);
        }
        out.push(0);
        let length = u32::try_from(out.len() - 1).unwrap_or(u32::MAX);
        out[1..5].copy_from_slice(&length.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_encoded_field_by_field() {
        let error = ErrorResponse::fatal(sqlstate::CANNOT_CONNECT_NOW, "no\0pe", "", "wait");
        assert_eq!(error.encode(), b"E\0\0\0\x26SFATAL\0VFATAL\0C57P03\0Mnope\0Hwait\0\0".to_vec());
    }
}
